"""Degradations of the illumination: low light."""

from dataclasses import dataclass

import numpy as np

from cotir_jax.bench.degradations.filters import guided_filter, luma


@dataclass(frozen=True)
class LowLightParams:
    """Exponent of the illumination (1 leaves it) and factor of the exposure, at most 1."""

    gamma: float
    exposure: float


def sample_low_light(severity: float, side: int, rng: np.random.Generator) -> LowLightParams:
    """Low light of ``severity`` in [0, 1]; gamma 1.3 to 2.8 (OneRestore: 2 to 3)."""
    gamma = 1.4 + 1.3 * severity + rng.uniform(-0.1, 0.1)
    exposure = 0.85 - 0.25 * severity + rng.uniform(-0.05, 0.05)
    return LowLightParams(float(gamma), float(exposure))


def low_light(picture: np.ndarray, params: LowLightParams, rng: np.random.Generator) -> np.ndarray:
    """Darken by illumination: I = e R L^gamma with J = R L, so dark parts lose most.

    L is the brightest channel, smoothed along the picture's edges. Noise of the dark exposure
    is the sensor's and comes with the chain (``composites.sample_chain``).

    Args:
        picture: J, float32 ``[height, width, 3]`` in [0, 1].

    References:
        Guo et al., LIME, TIP 2017 (initial illumination); OneRestore's low-light synthesis.
    """
    radius = max(min(picture.shape[:2]) // 40, 1)
    light = guided_filter(luma(picture), picture.max(axis=2), radius, 1e-2)
    light = np.clip(light, 1e-3, 1)[..., None]
    return np.clip(params.exposure * picture * light ** (params.gamma - 1), 0, 1)
