"""What was wrong with a picture, read from the adapter's three thoughts.

One forward pass at t = 1, the first sampling step, gives the thoughts; a linear read-out that was
fitted on written thoughts only (`read_out`) turns them into scores of the benchmark's
degradations, and a validation split turns scores into probabilities with thresholds
(`calibration`). Read-out and calibration are kept in the model folder as `explain.npz`.

A prompt that names degradations leaks into the thoughts, so the user's prompt is not used.
"""

import contextlib
import dataclasses
import math
import zipfile
from pathlib import Path
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from cotir_jax import files
from cotir_jax.bench.composites import SINGLES
from cotir_jax.bench.words.table import plain_name
from cotir_jax.checkpoints.loaded_model import LoadedModel
from cotir_jax.explaining.calibration import Calibration
from cotir_jax.explaining.read_out import (
    STRENGTHS,
    ReadOut,
    apply_map,
    degradation_sentence,
    fit_read_out,
    plan_sentence,
    pool,
    scene_sentence,
)
from cotir_jax.images import tiling
from cotir_jax.images.photo import check_pixels, unit_range
from cotir_jax.models.transformer import predict

FILE_NAME = "explain.npz"
# Names no degradation.
DEFAULT_PROMPT = "Please restore this degraded photo."

# Degradations show at a picture's own resolution, so it is read in evenly spread crops of the size
# that the model was trained with; a model that takes pictures whole reads the middle.
MOST_CROPS = 8
WHOLE_SIDE = 512
# Without calibration, from this score on a degradation is named.
_UNCALIBRATED_THRESHOLD = 0.5


class Reading(NamedTuple):
    """One degradation.

    Attributes:
      name: of the degradation.
      score: in [0, 1].
      severity: "mild", "moderate", "severe", or "" where the thoughts do not tell.
      named: whether the score reaches the threshold of this degradation.
    """

    name: str
    score: float
    severity: str
    named: bool


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What was wrong with a picture.

    Attributes:
      degradations: highest score first; the calibrated ones, or all nineteen without calibration.
      scene, degradation, plan: a sentence each.
      calibrated: whether scores are probabilities, fitted on a validation split; otherwise they
        are comparable with each other only.
    """

    degradations: tuple[Reading, ...]
    scene: str
    degradation: str
    plan: str
    calibrated: bool

    @property
    def named(self) -> tuple[str, ...]:
        """The degradations that are named, highest score first."""
        return tuple(reading.name for reading in self.degradations if reading.named)

    def to_json(self) -> dict[str, Any]:
        """Converts to plain dictionaries and lists."""
        readings = [r._asdict() | {"score": round(r.score, 4)} for r in self.degradations]
        return dataclasses.asdict(self) | {"degradations": readings}

    def __str__(self) -> str:
        named = [f"{plain_name(r.name)} {r.score:.2f}" for r in self.degradations if r.named]
        scores = f" [{', '.join(named)}]" if named else ""
        note = "" if self.calibrated else " (uncalibrated)"
        return f"{self.degradation} {self.plan} {self.scene}{scores}{note}"


def evenly_spread_crops(pixels: np.ndarray, side: int, most: int = MOST_CROPS) -> np.ndarray:
    """Cuts square crops at a picture's own resolution; a picture that is too small is mirrored.

    Args:
      pixels: `[height, width, 3]`.
      side: of a crop.
      most: crops at most; 1 takes the middle. Order and places depend only on the size.

    Returns:
      `[crops, side, side, 3]`.
    """
    height, width = (max(length, side) for length in pixels.shape[:2])
    counts = [-(-height // side), -(-width // side)]
    while math.prod(counts) > most:
        counts[int(counts[1] > counts[0])] -= 1
    tops, lefts = (
        np.rint((np.arange(count) + 0.5) / count * length - side / 2).clip(0, length - side)
        for count, length in zip(counts, (height, width), strict=True)
    )
    corners = [(top, left) for top in tops.astype(int) for left in lefts.astype(int)]
    return np.stack([tiling.crop(pixels, corner, side) for corner in corners])


class Explainer:
    """Names a picture's degradations.

    Args:
      model: a `LoadedModel`, such as a `Restorer`.
      read_out: fitted with the model's text encoder.
      calibration: from a validation split, or None.
    """

    def __init__(
        self, model: LoadedModel, read_out: ReadOut, calibration: Calibration | None = None
    ):
        self.model, self.read_out, self.calibration = model, read_out, calibration

        def run(weights, pictures, text, pooling):
            """Scene, degradation and plan at t = 1, pooled: `[batch, 3, channels]`, float32."""
            transformer, autoencoder = model.merge(weights)
            condition = autoencoder.encode(pictures)
            # All pictures get the same noise.
            noise = jax.random.normal(jax.random.key(0), condition.shape[1:], jnp.float32)
            noise = jnp.broadcast_to(noise, condition.shape)
            timestep, config = jnp.ones(len(pictures), jnp.float32), model.config
            guidance = jnp.full_like(timestep, config.guidance) if config.guidance_embed else None
            # XLA drops what only the velocity needs.
            out = predict(transformer, noise, condition, text, timestep, guidance)
            thoughts: Any = out.scene, out.degradation, out.plan
            return pool(jnp.stack(thoughts, axis=1), pooling)

        self._program = model.compile(run)

    @classmethod
    def load(cls, model: LoadedModel) -> Self:
        """Reads the model folder's `explain.npz`; without one, fits the read-out.

        Fitting embeds some 4000 sentences: minutes with a large text encoder. The read-out is then
        kept in the folder, if that can be written.

        Raises:
          ValueError: for a damaged file, or one of another model; for a model without adapter.
        """
        if not model.config.adapter_depth:
            raise ValueError(f"{model.config.name} has no CoT adapter, so it cannot explain")
        path = model.folder and Path(model.folder) / FILE_NAME
        if path and path.exists():
            read_out, calibration = load_file(path)
            expected = (3, model.config.text_tokens), 1 + model.config.text_channels
            if (read_out.pooling.shape, len(read_out.scene)) != expected:
                raise ValueError(f"{path}: of another model; delete it and run cotir calibrate")
            return cls(model, read_out, calibration)
        read_out = fit_read_out(model.encoders.tokens)
        if path:
            # A read-only folder: the read-out is kept in memory.
            with contextlib.suppress(OSError):
                save_file(path, read_out, None)
        return cls(model, read_out)

    def __call__(self, pixels: np.ndarray) -> Explanation:
        """Explains one picture, uint8 or uint16 `[height, width, 3]`.

        Raises:
          ValueError: for another shape or dtype.
        """
        return self.read(self.thoughts(pixels))

    def thoughts(self, pixels: np.ndarray) -> np.ndarray:
        """Returns pooled thoughts of a picture, averaged over crops: `[3, channels]`, float32."""
        check_pixels(pixels)
        tile = self.model.config.tile
        crops = evenly_spread_crops(pixels, tile or WHOLE_SIDE, MOST_CROPS if tile else 1)
        size = self.model.crops_per_call if tile else self.model.parts
        filled = np.pad(unit_range(crops), ((0, -len(crops) % size), (0, 0), (0, 0), (0, 0)))
        text, pooling = self.model.embed(DEFAULT_PROMPT, size), self.read_out.pooling
        found = [
            np.asarray(self.model.call(self._program, (batch, text), pooling))
            for batch in np.split(filled, len(filled) // size)
        ]
        return np.concatenate(found)[: len(crops)].mean(axis=0)

    def raw_scores(self, thoughts: np.ndarray) -> np.ndarray:
        """Averages the read-outs of degradation and plan: `[..., 19 * 4]`, see `read_out.ReadOut`.

        Args:
          thoughts: pooled, `[..., 3, channels]`.
        """
        degradation = apply_map(self.read_out.degradation, thoughts[..., 1, :])
        return (degradation + apply_map(self.read_out.plan, thoughts[..., 2, :])) / 2

    def read(self, thoughts: np.ndarray) -> Explanation:
        """Turns pooled thoughts `[3, channels]` into an explanation."""
        raw, calibration = self.raw_scores(thoughts), self.calibration
        names = calibration.names if calibration else SINGLES
        places = [SINGLES.index(name) for name in names]
        if calibration:
            scores = special.expit(raw[places] * calibration.slopes + calibration.constants)
            thresholds = calibration.thresholds
        else:
            scores = np.clip(raw[: len(SINGLES)], 0.0, 1.0)
            thresholds = np.full(len(SINGLES), _UNCALIBRATED_THRESHOLD)
        by_strength = raw[len(SINGLES) :].reshape(len(SINGLES), len(STRENGTHS))
        readings = [
            Reading(name, float(score), _strength(by_strength[place]), bool(score >= threshold))
            for name, place, score, threshold in zip(names, places, scores, thresholds, strict=True)
        ]
        # Sentences follow the order of `SINGLES`, in which light meets the degradations.
        named = [(reading.name, reading.severity) for reading in readings if reading.named]
        return Explanation(
            tuple(sorted(readings, key=lambda reading: -reading.score)),
            scene_sentence(apply_map(self.read_out.scene, thoughts[0])),
            degradation_sentence(named),
            plan_sentence(named),
            calibrated=calibration is not None,
        )


def save_file(path: Path, read_out: ReadOut, calibration: Calibration | None) -> None:
    """Writes read-out (half precision) and calibration as one `.npz`."""
    arrays = {name: array.astype(np.float16) for name, array in read_out._asdict().items()}
    arrays["pooling"] = read_out.pooling
    if calibration:
        fields = calibration._asdict().items()
        arrays |= {f"calibration_{name}": np.asarray(value) for name, value in fields}
    with files.atomic_path(path) as temporary, open(temporary, "wb") as stream:
        np.savez_compressed(stream, **arrays)


def load_file(path: Path) -> tuple[ReadOut, Calibration | None]:
    """Reads what `save_file` wrote.

    Raises:
      ValueError: for a damaged file.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        read_out = ReadOut(*(arrays[name].astype(np.float32) for name in ReadOut._fields))
        kept = {name: arrays.get(f"calibration_{name}") for name in Calibration._fields}
        if kept["names"] is None:
            return read_out, None
        names = tuple(map(str, kept.pop("names")))
        kept["pictures"] = int(kept["pictures"])
        calibration = Calibration(names, **kept)
        numbers = calibration.slopes, calibration.constants, calibration.thresholds
        if not set(names) <= set(SINGLES) or any(x.shape != (len(names),) for x in numbers):
            raise ValueError("calibration of unknown degradations")
        return read_out, calibration
    except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        reason = f"damaged ({files.one_line(error)})"
        raise ValueError(f"{path}: {reason}; delete it and run cotir calibrate") from None


def _strength(scores: np.ndarray) -> str:
    """The likeliest of the three strengths, where it holds more than half of the likelihood."""
    positive = np.maximum(scores, 0)
    best = int(positive.argmax())
    return STRENGTHS[best] if positive[best] > 0.5 * positive.sum() else ""
