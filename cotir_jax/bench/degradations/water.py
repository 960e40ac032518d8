"""Degradation of the medium under water, by Jerlov's classes of water."""

from dataclasses import dataclass, field

import numpy as np
from numpy.random import Generator

from cotir_jax.bench.degradations.filters import to_light, to_picture
from cotir_jax.bench.degradations.ranges import draw
from cotir_jax.bench.degradations.weather import depth_of

# Attenuation K per metre of red, green and blue light (600, 525 and 450 nm), after Jerlov, Marine
# Optics, 1976: oceanic waters from the clearest, then coastal ones.
JERLOV: dict[str, tuple[float, float, float]] = {
    "I": (0.235, 0.043, 0.019),
    "IA": (0.24, 0.048, 0.026),
    "II": (0.26, 0.076, 0.068),
    "III": (0.295, 0.116, 0.135),
    "1C": (0.30, 0.13, 0.25),
    "3C": (0.33, 0.20, 0.39),
    "5C": (0.40, 0.31, 0.56),
    "7C": (0.48, 0.49, 0.89),
    "9C": (0.60, 0.78, 1.6),
}


@dataclass(frozen=True)
class UnderwaterParams:
    """Jerlov's class of the water, metres of it, and the brightness of its own light.

    `distance` is that of the farthest thing from the camera, `below` the scene's depth below the
    surface. `backscatter` is the brightness of endless water in its strongest channel. `depth` is
    a nearness map of the picture, `[height, width]`, 1 nearest.
    """

    water: str
    distance: float
    below: float
    backscatter: float
    depth: np.ndarray | None = field(default=None, repr=False, compare=False)


def sample_underwater(severity: float, side: int, rng: Generator) -> UnderwaterParams:
    """Draws water of `severity` in [0, 1]: any class, as many metres as make it that thick."""
    water = tuple(JERLOV)[rng.integers(len(JERLOV))]
    thickness = draw("underwater", "thickness", severity, rng)
    distance = thickness / float(np.mean(JERLOV[water]))
    below = distance * draw("underwater", "depth", severity, rng)
    backscatter = draw("underwater", "backscatter", severity, rng)
    return UnderwaterParams(water, distance, below, backscatter)


def underwater(picture: np.ndarray, params: UnderwaterParams, rng: Generator) -> np.ndarray:
    """Sinks float32 `[height, width, 3]` in [0, 1] in water, over a depth made up or given."""
    depth = depth_of(picture, params.depth, 1.2, 0.1, rng)
    return water_over_distance(picture, depth * params.distance, params)


def water_over_distance(
    picture: np.ndarray, metres: np.ndarray, params: UnderwaterParams
) -> np.ndarray:
    """Computes I_c = g W_c (J_c t_c + B_c (1 - t_c)) in linear light, with t_c = exp(-K_c z).

    W_c = exp(-K_c h) is the daylight left at `below` h metres; the camera's exposure g makes
    its strongest channel 1, so that colours shift without the picture going black. Endless water
    has the colour B_c = B K_min / K_c: what scatters about evenly is brightest where it is
    absorbed least.

    Args:
        picture: J, float32 `[height, width, 3]` in [0, 1].
        metres: z, float32 `[height, width]`.
        params: water and light.

    References:
        Li, Anwar and Porikli, UWCNN, Pattern Recognition 2020 (the model with Jerlov's classes);
        Akkaynak and Treibitz, CVPR 2018, show that direct and scattered light attenuate
        unequally, which is not modelled here. The water's colour as scattering over attenuation:
        Zhao, Jin and Yan, Signal Processing: Image Communication, 2015.
    """
    attenuation = np.asarray(JERLOV[params.water], np.float32)
    transmission = np.exp(-metres.astype(np.float32)[..., None] * attenuation)
    daylight = np.exp(-attenuation * params.below)
    scattered = np.float32(params.backscatter) * attenuation.min() / attenuation
    light = scattered + (to_light(picture) - scattered) * transmission
    return to_picture(light * (daylight / daylight.max()))
