"""Which degradations go together, in which order, and how strong each is drawn."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cotir_jax.bench.degradations import APPLY, SAMPLE
from cotir_jax.bench.degradations.sensor import NoiseParams

SINGLES: tuple[str, ...] = tuple(APPLY)

# Parts are named in the order in which they are applied (that of ``APPLY``).
COMPOSITES: tuple[str, ...] = (
    "low-light+haze",
    "low-light+rain-streak",
    "low-light+snow",
    "low-light+defocus-blur",
    "low-light+motion-blur",
    "low-light+noise",
    "haze+rain-streak",
    "haze+snow",
    "haze+noise",
    "rain-streak+jpeg-compression",
    "defocus-blur+noise",
    "motion-blur+noise",
    "low-resolution+noise",
    "low-resolution+jpeg-compression",
    "noise+jpeg-compression",
    "low-light+haze+rain-streak",
    "low-light+haze+snow",
    "low-light+motion-blur+noise",
    "haze+motion-blur+jpeg-compression",
    "low-resolution+noise+jpeg-compression",
    "low-light+haze+rain-streak+jpeg-compression",
    "defocus-blur+low-resolution+noise+jpeg-compression",
)


@dataclass(frozen=True)
class Step:
    """One degradation of a chain, with the parameters that are really used.

    ``severity`` in [0, 1] is what the parameters were drawn for; ``implied`` marks the sensor
    noise that comes with a dark exposure and is no part of the chain's name.
    """

    name: str
    params: Any
    severity: float
    implied: bool = False

    @property
    def strength(self) -> str:
        """The severity as a word: mild, moderate or severe."""
        return ("mild", "moderate", "severe")[min(int(self.severity * 3), 2)]


def parts_of(name: str) -> list[str]:
    """The degradations in ``name``, e.g. ``low-light+haze``, in the order of application.

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
    """A degradation's folder: lower case, anything outside ``[a-z0-9._-]`` turned to ``_``."""
    return re.sub(r"[^a-z0-9._-]", "_", name.lower())


def sample_chain(
    name: str, side: int, rng: np.random.Generator, severity: float | None = None
) -> list[Step]:
    """Draw parameters for every part of ``name``.

    Args:
        name: one degradation or several joined by ``+``.
        side: shorter side in pixels of the picture to degrade; blur, rain and snow grow with it.
        severity: of every part, in [0, 1]; by default each draws its own, uniformly, and the
            more parts the milder they stay, so that the scene survives them together.
    """
    parts = parts_of(name)
    top = len(parts) ** -0.4  # 1, 0.76, 0.64, 0.57
    chain = []
    for part in parts:
        strength = float(rng.uniform(0, top)) if severity is None else severity
        chain.append(Step(part, SAMPLE[part](strength, side, rng), strength))
    if "low-light" in parts:
        chain = _dim_the_air(chain)
    if "low-light" in parts and "noise" not in parts:
        # A dark exposure is amplified, so its read noise shows: 1 to 4 of 255.
        darkness = chain[0].severity
        sigma = float((1 + 2 * darkness + rng.uniform(0, 1)) / 255)
        chain.append(Step("noise", NoiseParams("gaussian", sigma=sigma), 0.0, implied=True))
        chain.sort(key=lambda step: SINGLES.index(step.name))
    return chain


def _dim_the_air(chain: list[Step]) -> list[Step]:
    # Haze, drops and flakes in a dark scene are lit by the same weak light as the scene. The
    # air counts as a surface of illumination 0.8.
    dark = chain[0].params
    light = dark.exposure * 0.8 ** (dark.gamma - 1)
    dimmed = []
    for step in chain:
        params = step.params
        if step.name == "haze":
            params = replace(params, airlight=tuple(light * value for value in params.airlight))
        elif step.name in ("rain-streak", "snow"):
            params = replace(params, light=light)
        dimmed.append(replace(step, params=params))
    return dimmed


def apply_chain(picture: np.ndarray, chain: Sequence[Step], rng: np.random.Generator) -> np.ndarray:
    """Apply a chain's steps in turn.

    Args:
        picture: uint8 ``[height, width, 3]``.

    Returns:
        uint8 ``[height, width, 3]``, rounded once, at the end.
    """
    degraded = picture.astype(np.float32) / 255
    for step in chain:
        degraded = APPLY[step.name](degraded, step.params, rng)
    return np.rint(np.clip(degraded, 0, 1) * 255).astype(np.uint8)
