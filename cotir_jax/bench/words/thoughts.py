"""Thoughts in words: what the scene shows, how it was degraded, how to restore it.

Everything is composed from the parameters that were used and from properties measured on the
clean picture. Each thought stays within about 40 words, because text encoders cut it.
"""

import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.random import Generator

from cotir_jax.bench.composites import Step
from cotir_jax.bench.degradations.filters import luma
from cotir_jax.bench.words import phrases
from cotir_jax.bench.words.phrases import join, sentence
from cotir_jax.bench.words.table import WORDS

_MARKERS = ("scene description:", "degradation description:", "enhancement plan:")
_END = "answer:"
_TWO_DIGITS = ("exposure", "saturation", "contrast", "halo", "gain")
_PERCENT = ("cover", "ambient", "kept", "opacity")
_CASTERS = {
    "building": "a building", "object": "something near", "foliage": "leaves", "bars": "bars",
}  # fmt: skip
_LAYOUTS = {
    "line": "a line of text", "tiles": "repeated text", "badge": "a badge", "frame": "framed text",
}  # fmt: skip
_HUES = ("red", "orange", "yellow", "green", "teal", "blue", "purple", "pink")
# Upper ends of the hues above, in degrees; what is left wraps round to red.
_HUE_ENDS = (15, 42, 70, 160, 200, 255, 290, 340)


def describe_scene(picture: np.ndarray, rng: Generator) -> str:
    """Writes a sentence on the measured look of a clean picture, uint8 `[height, width, 3]`."""
    small = picture[::2, ::2].astype(np.float32) / 255
    grey = luma(small)
    lights = ("very dark", "dark", "medium-bright", "bright", "very bright")
    brightness = _word(grey.mean(), (0.22, 0.38, 0.58, 0.72), lights)
    contrast = _word(grey.std(), (0.08, 0.16, 0.24), ("low", "moderate", "strong", "very strong"))
    slope = np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean()
    textures = ("large smooth areas", "some detail", "much detail", "dense fine texture")
    detail = _word(slope, (0.03, 0.07, 0.13), textures)
    text = rng.choice(phrases.SCENES).format(
        brightness=brightness,
        contrast=contrast,
        detail=detail,
        layout=_layout_words(grey),
        colour=_colour_words(small),
    )
    return sentence(f"{text}.")


def _word(value: float, bounds: Sequence[float], words: Sequence[str]) -> str:
    return words[int(np.searchsorted(bounds, value))]


def _layout_words(grey: np.ndarray) -> str:
    """Says where the light is: which half or the middle stands out, if any."""
    height, width = grey.shape
    middle = grey[height // 4 : -height // 4, width // 4 : -width // 4]
    lift = {
        "brighter at the top": grey[: height // 2].mean(),
        "brighter at the bottom": grey[height // 2 :].mean(),
        "brighter on the left": grey[:, : width // 2].mean(),
        "brighter on the right": grey[:, width // 2 :].mean(),
        "brighter in the middle": middle.mean(),
        "darker in the middle": 2 * grey.mean() - middle.mean(),
    }
    place = max(lift, key=lambda words: lift[words])
    return place if lift[place] > 1.08 * grey.mean() else "evenly lit"


def _colour_words(picture: np.ndarray) -> str:
    """Names colourfulness (Hasler and Suesstrunk 2003) and the hue with the most chroma."""
    red, green, blue = np.moveaxis(picture, 2, 0)
    first, second = red - green, (red + green) / 2 - blue
    spread = np.hypot(first.std(), second.std()) + 0.3 * np.hypot(first.mean(), second.mean())
    if spread < 0.02:
        return "no colour"
    highest = np.maximum(np.maximum(red, green), blue)  # faster than max over an axis of three
    chroma = highest - np.minimum(np.minimum(red, green), blue)
    hue = np.degrees(np.arctan2(np.sqrt(3) * (green - blue), 2 * red - green - blue)) % 360
    bins = np.searchsorted(_HUE_ENDS, hue.ravel()) % len(_HUES)
    name = _HUES[int(np.bincount(bins, chroma.ravel(), len(_HUES)).argmax())]
    tones = (f"muted {name} tones", f"{name} tones", f"vivid {name} tones")
    return _word(spread, (0.1, 0.22), tones)


def numbers_of(step: Step) -> dict[str, str]:
    """Returns a step's parameters as short text, by the names that the phrases use."""
    params: Any = step.params
    numbers = {"strength": step.strength}
    for name, value in vars(params).items():
        if isinstance(value, float):
            numbers[name] = f"{value:.2f}" if name in _TWO_DIGITS else f"{value:.1f}"
        elif isinstance(value, int):
            numbers[name] = str(value)
    if "degrees" in numbers:
        numbers["degrees"] = f"{params.degrees:.0f}".replace("-0", "0")
    for name in _PERCENT:
        if name in numbers:
            numbers[name] = f"{100 * getattr(params, name):.0f}"
    if getattr(params, "mask", None) is not None:
        numbers["opacity"] = f"{params.opacity:.2f}"
    if step.name in ("haze", "non-homogeneous-haze"):
        numbers["airlight"] = f"{np.mean(params.airlight):.2f}"
    elif step.name == "motion-blur":
        numbers["path"] = "bent" if params.bend else "straight"
    elif step.name == "noise":
        # For photon noise, the standard deviation at middle grey.
        sigma = params.sigma if params.kind == "gaussian" else (0.5 / params.photons) ** 0.5
        numbers["sigma"] = f"{255 * sigma:.0f}"
        numbers["kind"] = {"gaussian": "Gaussian", "poisson": "photon"}[params.kind]
        if params.grey:
            numbers["kind"] = "grey Gaussian"
    elif step.name == "jpeg-compression":
        numbers["quality"] = str(params.quality)
    return numbers | _words_of(step)


def _words_of(step: Step) -> dict[str, str]:
    """Returns what a step's parameters are called where they are no numbers."""
    params: Any = step.params
    if step.name == "shadow":
        return {"caster": _CASTERS[params.kind]}
    if step.name == "underwater":
        return {"water": params.water}
    if step.name == "specular-reflection":
        if params.kind == "window":
            return {"mirrors": f"a window reflection of {100 * params.share:.0f}% of the light"}
        return {"mirrors": f"{params.count} highlights of radius {params.radius:.1f}"}
    if step.name == "flare":
        row = ("top", "middle", "bottom")[min(int(params.y * 3), 2)]
        column = ("left", "", "right")[min(int(params.x * 3), 2)]
        return {"place": f"{row} {column}".strip()}
    if step.name == "watermark":
        return {"text": params.text, "layout": _LAYOUTS[params.layout]}
    return {}


def describe_degradation(chain: Sequence[Step], rng: Generator) -> str:
    """Says what was done to the picture, in order, with strengths and numbers."""
    named = [step for step in chain if not step.implied]
    facts = [_fill("facts", step, rng, shortest=len(named) > 2) for step in named]
    if len(named) == 1:
        text = rng.choice(["{}; {}", "{}, so {}", "{}: {}"]).format(
            facts[0], rng.choice(WORDS[named[0].name].looks)
        )
    elif len(named) == 2 and rng.random() < 0.5:
        text = rng.choice(["{}, then {}", "{} followed by {}"]).format(*facts)
    else:
        text = f"{', '.join(facts[:-1])}, then {facts[-1]}"
    if len(named) < 3 and any(step.implied for step in chain):
        text += ", with faint noise in the shadows"
    return sentence(f"{text}.")


def describe_plan(chain: Sequence[Step], rng: Generator) -> str:
    """Says how to restore the picture: the steps undone, last one first."""
    named = [step for step in chain if not step.implied]
    fixes = [_fill("fixes", step, rng) for step in reversed(named)]
    if len(named) < 3 and any(step.implied for step in chain):
        fixes.append("suppress the faint noise")
    if len(fixes) == 1:
        ends = ("keep edges and colours natural", "preserve true colours", "keep real texture")
        return sentence(f"{fixes[0]} and {rng.choice(ends)}.")
    return f"First {', then '.join(fixes)}."


def _fill(
    kind: Literal["facts", "fixes"], step: Step, rng: Generator, shortest: bool = False
) -> str:
    masked = getattr(step.params, "mask", None) is not None
    lines = getattr(WORDS[step.name], f"mask_{kind}" if masked else kind)
    phrase = lines[-1] if shortest else str(rng.choice(lines))
    return phrase.format(**numbers_of(step))


def jpeg_type(quality: int) -> str:
    """Returns a JPEG quality's prompt file: below 15 heavy, below 28 medium, else light."""
    return "jpeg-heavy" if quality < 15 else "jpeg-medium" if quality < 28 else "jpeg-light"


def write_meta(
    picture: np.ndarray, chain: Sequence[Step], name: str, rng: Generator, scene: str | None = None
) -> dict[str, Any]:
    """Writes a sample's `meta.json` (CoTIR-Bench layout).

    Args:
        picture: the clean picture, uint8 `[height, width, 3]`.
        chain: what was applied to it.
        name: the degradation's name, e.g. `low-light+haze`.
        rng: picks the phrases.
        scene: a sentence that stands in for the measured one, e.g. a `SceneWriter`'s.

    Returns:
        `{"cot": {"questions": [vague, precise], "answers": text}, "deg": name}`, with
        `"jpeg_type"` where JPEG is the only degradation.
    """
    named = [step for step in chain if not step.implied]
    frame = str(rng.choice(["Please {}.", "{}.", "I need you to {}.", "Could you {}?"]))
    fixes = join([_fill("fixes", step, rng) for step in reversed(named)])
    measured = describe_scene(picture, rng)  # in any case, so that later draws stay the same
    texts = (
        measured if scene is None else without_markers(scene),
        describe_degradation(chain, rng),
        describe_plan(chain, rng),
    )
    answers = " ".join(f"{marker} {text}" for marker, text in zip(_MARKERS, texts, strict=True))
    meta: dict[str, Any] = {
        "cot": {
            "questions": [str(rng.choice(phrases.VAGUE)), sentence(frame.format(fixes))],
            "answers": f"{answers} {_END} {rng.choice(phrases.ANSWERS)}",
        },
        "deg": name,
    }
    if name == "jpeg-compression":
        meta["jpeg_type"] = jpeg_type(named[0].params.quality)
    return meta


def without_markers(text: str) -> str:
    """Removes the colon from what `parse_thoughts` would take for a marker."""
    words = "|".join(marker.rstrip(":") for marker in (*_MARKERS, _END))
    return re.sub(rf"({words})\s*:+", r"\1", text, flags=re.IGNORECASE)


def parse_thoughts(meta: dict[str, Any]) -> tuple[str, str, str]:
    """Reads the scene, degradation and plan texts of a sample's `meta.json`.

    Raises:
        ValueError: the answers are missing, or a marker is missing, out of order or empty.
    """
    cot = meta.get("cot") if isinstance(meta, dict) else None
    answers = cot.get("answers") if isinstance(cot, dict) else None
    if not isinstance(answers, str):
        raise ValueError("meta.json has no text under cot.answers; the sample cannot be used")
    pattern = r"\s*(.*?)\s*".join(re.escape(marker) for marker in _MARKERS)
    found = re.search(pattern + rf"\s*(.*?)\s*(?:\b{_END}|$)", answers, re.DOTALL | re.IGNORECASE)
    thoughts = found.groups() if found else ()
    if len(thoughts) != 3 or not all(thoughts):
        raise ValueError(
            f"cot.answers should hold texts after {', '.join(map(repr, _MARKERS))} in this order, "
            f"got {answers[:60]!r}"
        )
    return thoughts
