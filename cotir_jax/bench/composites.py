"""Which degradations go together, in which order, and how strong each is drawn."""

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cotir_jax.bench.degradations import APPLY, SAMPLE
from cotir_jax.bench.degradations.filters import GAMMA
from cotir_jax.bench.degradations.ranges import draw
from cotir_jax.bench.degradations.sensor import NoiseParams
from cotir_jax.bench.maps import Maps, load_map

SINGLES: tuple[str, ...] = tuple(APPLY)
_NO_MAPS = Maps()

_SETS = tomllib.loads((Path(__file__).parent / "composites.toml").read_text(encoding="utf-8"))
QUICK_SINGLES, QUICK_COMPOSITES, UNSEEN = (
    tuple(_SETS[name]) for name in ("quick_singles", "quick_composites", "unseen")
)
SEEN: tuple[str, ...] = (*QUICK_COMPOSITES, *_SETS["seen"])
COMPOSITES: tuple[str, ...] = (*SEEN, *UNSEEN)


@dataclass(frozen=True)
class Step:
    """One degradation of a chain, with the parameters that are really used, maps included.

    `severity` in [0, 1] is what the parameters were drawn for; `implied` marks the sensor
    noise that comes with a dark exposure and is no part of the chain's name.
    """

    name: str
    params: Any
    severity: float
    implied: bool = False

    @property
    def strength(self) -> str:
        """Returns the severity as a word: mild, moderate or severe."""
        return ("mild", "moderate", "severe")[min(int(self.severity * 3), 2)]


def parts_of(name: str) -> list[str]:
    """Returns the degradations in `name`, e.g. `low-light+haze`, in the order of application.

    Raises:
        ValueError: an unknown degradation, or one named twice.
    """
    parts = name.split("+")
    unknown = [part for part in parts if part not in APPLY]
    if unknown or len(set(parts)) < len(parts):
        what = f"unknown degradation {unknown[0]!r}" if unknown else "a degradation twice"
        raise ValueError(f"{name!r} names {what}; join any of {', '.join(APPLY)} by '+'")
    return sorted(parts, key=SINGLES.index)


def folder_name(name: str) -> str:
    """Returns a degradation's folder: lower case, all but `[a-z0-9._-]` turned into `_`."""
    return re.sub(r"[^a-z0-9._-]", "_", name.lower())


def sample_chain(
    name: str,
    side: int,
    rng: np.random.Generator,
    severity: float | None = None,
    *,
    maps: Maps = _NO_MAPS,
    depth: np.ndarray | None = None,
    second: np.ndarray | None = None,
) -> list[Step]:
    """Draws parameters for every part of `name`.

    Args:
        name: one degradation or several joined by `+`.
        side: shorter side in pixels of the picture to degrade; sizes in pixels grow with it.
        rng: of all draws.
        severity: of every part, in [0, 1]; by default each draws its own, uniformly, and the
            more parts the milder they stay, so that the scene survives them together.
        maps: rain and snow masks to draw from; its depth maps are not looked at here.
        depth: nearness of the picture, float32 `[height, width]` in [0, 1], 1 nearest, cut
            like the picture (`maps.depth_of_photo`). Haze and water gather over it.
        second: another photo, uint8 `[any, any, 3]`, to show in a window reflection; by
            default the picture itself, mirrored.

    Raises:
        ValueError: an unknown part, or a mask that cannot be read.
    """
    parts = parts_of(name)
    top = len(parts) ** -0.4  # 1, 0.76, 0.64, 0.57
    chain = []
    for part in parts:
        strength = float(rng.uniform(0, top)) if severity is None else severity
        params = SAMPLE[part](strength, side, rng)
        params = _with_maps(part, params, strength, maps, depth, second, rng)
        chain.append(Step(part, params, strength))
    if "low-light" in parts:
        chain = _dim_the_air(chain)
    if "low-light" in parts and "noise" not in parts:
        # A dark exposure is amplified, so its read noise shows: 1 to 4 of 255.
        darkness = next(step.severity for step in chain if step.name == "low-light")
        sigma = float((1 + 2 * darkness + rng.uniform(0, 1)) / 255)
        chain.append(Step("noise", NoiseParams("gaussian", sigma=sigma), 0.0, implied=True))
        chain.sort(key=lambda step: SINGLES.index(step.name))
    return chain


def _with_maps(
    part: str,
    params: Any,
    severity: float,
    maps: Maps,
    depth: np.ndarray | None,
    second: np.ndarray | None,
    rng: np.random.Generator,
) -> Any:
    masks = {"rain-streak": maps.rain_masks, "snow": maps.snow_masks}.get(part)
    if masks:
        params = replace(params, mask=load_map(masks[rng.integers(len(masks))]))
        if part == "snow":
            params = replace(params, opacity=draw("snow", "mask_opacity", severity, rng))
        return params
    if depth is not None and part in ("haze", "non-homogeneous-haze", "underwater"):
        return replace(params, depth=depth)
    if second is not None and part == "specular-reflection":
        return replace(params, second=second)
    return params


def _dim_the_air(chain: list[Step]) -> list[Step]:
    # Haze, water, drops and flakes in a dark scene are lit by the same weak light as the scene,
    # and lamps glint less. The air counts as a surface of illumination 0.8.
    dark = next(step.params for step in chain if step.name == "low-light")
    light = dark.exposure * 0.8 ** (dark.gamma - 1)
    dimmed = []
    for step in chain:
        params = step.params
        if step.name in ("haze", "non-homogeneous-haze"):
            params = replace(params, airlight=tuple(light * value for value in params.airlight))
        elif step.name in ("rain-streak", "snow"):
            params = replace(params, light=light)
        elif step.name == "underwater":  # in linear light
            params = replace(params, backscatter=params.backscatter * light**GAMMA)
        elif step.name == "specular-reflection":
            params = replace(params, gain=params.gain * light**GAMMA)
        dimmed.append(replace(step, params=params))
    return dimmed


def apply_chain(picture: np.ndarray, chain: Sequence[Step], rng: np.random.Generator) -> np.ndarray:
    """Applies a chain's steps in turn to uint8 `[height, width, 3]`; rounds once, at the end.

    Raises:
        ValueError: a depth that was given to `sample_chain` is not of the picture's size.
    """
    degraded = picture.astype(np.float32) / 255
    for step in chain:
        degraded = APPLY[step.name](degraded, step.params, rng)
    return np.rint(np.clip(degraded, 0, 1) * 255).astype(np.uint8)
