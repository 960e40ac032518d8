"""Degradations of the air between scene and camera: haze, even or in patches, rain, snow."""

from dataclasses import dataclass, field

import numpy as np
from numpy.random import Generator

from cotir_jax.bench.degradations.filters import (
    capsule_kernel,
    guided_filter,
    luma,
    place_mask,
    scatter,
    smooth_noise,
)
from cotir_jax.bench.degradations.ranges import draw, draw_fields


@dataclass(frozen=True)
class HazeParams:
    """Density beta, airlight per channel in [0, 1], and what the depth is made from.

    `depth` in its stead is a nearness map of the picture, `[height, width]`, 1 nearest.
    """

    density: float
    airlight: tuple[float, float, float]
    ramp_power: float
    noise_share: float
    depth: np.ndarray | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class NonHomogeneousHazeParams:
    """Mean density, airlight per channel in [0, 1], and the patches that the haze gathers in.

    `patchiness` in [0, 1] is how far the density swings about its mean, `patch` the size in
    pixels of the largest patches. `depth` is a nearness map as in `HazeParams`.
    """

    density: float
    airlight: tuple[float, float, float]
    patchiness: float
    patch: float
    depth: np.ndarray | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class RainParams:
    """Streaks per picture, length and half width in pixels, lean from the vertical in degrees.

    `opacity` is the brightness that the strongest streak adds, `veil` the share of grey
    mist of heavy rain, `light` the brightness of the air around the drops. A `mask`
    `[any, any]` in [0, 1] replaces drawn streaks.
    """

    count: int
    length: float
    half_width: float
    degrees: float
    opacity: float
    veil: float
    light: float = 1.0
    mask: np.ndarray | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class SnowParams:
    """Flakes per picture, radius of middling ones in pixels, lean of their fall in degrees.

    `smear` is the length of the fall during exposure as a multiple of a flake's radius,
    `whitening` the share by which snow-lit air pales the picture, `light` the brightness of
    the flakes. A `mask` `[any, any]` in [0, 1] replaces drawn flakes.
    """

    count: int
    radius: float
    degrees: float
    smear: float
    opacity: float
    whitening: float
    light: float = 1.0
    mask: np.ndarray | None = field(default=None, repr=False, compare=False)


def sample_haze(severity: float, side: int, rng: Generator) -> HazeParams:
    """Draws haze of `severity` in [0, 1]; ranges around OneRestore's and RESIDE's."""
    density = draw("haze", "density", severity, rng)
    airlight = _airlight("haze", severity, rng)
    return draw_fields(HazeParams, "haze", severity, side, rng, density=density, airlight=airlight)


def _airlight(name: str, severity: float, rng: Generator) -> tuple[float, float, float]:
    grey = draw(name, "airlight", severity, rng)
    tint = draw(name, "tint", severity, rng)  # cold or warm light
    red, green, blue = (float(np.clip(grey + offset, 0, 1)) for offset in (-tint, 0.0, tint))
    return red, green, blue


def haze(picture: np.ndarray, params: HazeParams, rng: Generator) -> np.ndarray:
    """Veils float32 `[height, width, 3]` in [0, 1] by haze over its depth, made up or given."""
    depth = depth_of(picture, params.depth, params.ramp_power, params.noise_share, rng)
    return haze_over_depth(picture, depth, params.density, params.airlight)


def haze_over_depth(
    picture: np.ndarray,
    depth: np.ndarray,
    density: float | np.ndarray,
    airlight: tuple[float, float, float],
) -> np.ndarray:
    """Computes I = J t + A (1 - t) with transmission t = exp(-density depth).

    Args:
        picture: J, float32 `[height, width, 3]` in [0, 1].
        depth: float32 `[height, width]`, 0 at the camera.
        density: scattering per unit of depth, one number or float32 `[height, width]`.
        airlight: A, colour of fully opaque haze.

    References:
        Narasimhan and Nayar, Vision and the Atmosphere, IJCV 2002.
    """
    transmission = np.exp(-density * depth)[..., None].astype(np.float32)
    light = np.asarray(airlight, np.float32)
    return light + (picture - light) * transmission


def sample_non_homogeneous_haze(
    severity: float, side: int, rng: Generator
) -> NonHomogeneousHazeParams:
    """Draws patchy haze of `severity` in [0, 1]; patches grow with the picture's `side`."""
    name = "non-homogeneous-haze"
    density, airlight = draw(name, "density", severity, rng), _airlight(name, severity, rng)
    given = {"density": density, "airlight": airlight}
    return draw_fields(NonHomogeneousHazeParams, name, severity, side, rng, **given)


def non_homogeneous_haze(
    picture: np.ndarray, params: NonHomogeneousHazeParams, rng: Generator
) -> np.ndarray:
    """Veils a picture by smoke-like haze: I = J t + A (1 - t), t = exp(-beta(x) d).

    beta(x) = density ((1 - p) + 2 p n(x)) with patchiness p and n fractal noise of five octaves,
    its contrast raised, mean about 1/2. The near air is hazy too: d = 0.4 + 0.6 depth.

    References:
        Zhang et al., FoHIS, ICIP 2017 (extinction times Perlin noise); the look is that of
        Ancuti et al., NH-HAZE, CVPRW 2020.
    """
    height, width = picture.shape[:2]
    depth = depth_of(picture, params.depth, 1.0, 0.1, rng)
    noise = smooth_noise(height, width, params.patch, 5, rng)
    swing = np.clip(0.5 + 1.7 * (noise - noise.mean()), 0, 1)
    density = params.density * ((1 - params.patchiness) + 2 * params.patchiness * swing)
    return haze_over_depth(picture, 0.4 + 0.6 * depth, density, params.airlight)


def depth_of(
    picture: np.ndarray,
    nearness: np.ndarray | None,
    ramp_power: float,
    noise_share: float,
    rng: Generator,
) -> np.ndarray:
    """Returns `depth_from_nearness` where there is such a map, else `depth_from_picture`."""
    if nearness is not None:
        return depth_from_nearness(picture, nearness)
    return depth_from_picture(picture, ramp_power, noise_share, rng)


def depth_from_picture(
    picture: np.ndarray, ramp_power: float, noise_share: float, rng: Generator
) -> np.ndarray:
    """Makes up a plausible depth in [0.1, 1] without a depth network, float32 `[height, width]`.

    Higher rows are farther, pale and unsaturated parts are farther, slow noise varies both;
    a guided filter then makes the sum follow the picture's edges.

    References:
        The colour cue: Zhu, Mai and Shao, colour attenuation prior, TIP 2015.
    """
    height, width = picture.shape[:2]
    side = min(height, width)
    rows = 1 - np.arange(height, dtype=np.float32) / max(height - 1, 1)
    ramp = np.broadcast_to((rows**ramp_power)[:, None], (height, width))
    noise = smooth_noise(height, width, side / 2.5, 2, rng)
    red, green, blue = np.moveaxis(picture, 2, 0)
    brightest = np.maximum(np.maximum(red, green), blue)
    darkest = np.minimum(np.minimum(red, green), blue)
    saturation = (brightest - darkest) / np.maximum(brightest, 0.05)
    cue = np.clip(0.5 + 0.5 * (brightest - saturation), 0, 1)
    rough = (0.6 - noise_share / 2) * ramp + noise_share * noise + (0.4 - noise_share / 2) * cue
    depth = guided_filter(luma(picture), rough, max(side // 14, 2), 2e-3)
    return _span(depth)


def depth_from_nearness(picture: np.ndarray, nearness: np.ndarray) -> np.ndarray:
    """Returns the depth in [0.1, 1] of a map in which bright is near, float32 `[height, width]`.

    Raises:
        ValueError: the map is not of the picture's height and width.
    """
    if nearness.shape != picture.shape[:2]:
        raise ValueError(
            f"a depth map of {list(nearness.shape)} came with a picture of "
            f"{list(picture.shape[:2])} pixels; cut and resize it like the picture"
        )
    return _span(1 - nearness.astype(np.float32, copy=False))


def _span(depth: np.ndarray) -> np.ndarray:
    low, high = np.percentile(depth[::4, ::4], [1, 99])
    return 0.1 + 0.9 * np.clip((depth - low) / max(float(high - low), 1e-3), 0, 1)


def rain_streak(picture: np.ndarray, params: RainParams, rng: Generator) -> np.ndarray:
    """Adds rain streaks: I = (1 - veil) (J + light * layers) + veil A.

    Far streaks are many, short and faint, near ones few, long and strong; all lean alike.

    References:
        The heavy-rain model of Yang et al., CVPR 2017.
    """
    height, width = picture.shape[:2]
    if params.mask is None:
        streaks = _drawn_streaks(height, width, params, rng)
    else:
        streaks = place_mask(params.mask, height, width, rng)
        # Collections render streaks at any brightness; the strongest one counts as 1.
        streaks = streaks / max(float(np.percentile(streaks, 99.9)), 0.05)
    rain = picture + params.light * params.opacity * np.minimum(streaks, 1)[..., None]
    return np.clip((1 - params.veil) * rain + params.veil * 0.75 * params.light, 0, 1)


def _drawn_streaks(height: int, width: int, params: RainParams, rng: Generator) -> np.ndarray:
    streaks = np.zeros((height, width), np.float32)
    for share, size, strength in ((0.6, 0.6, 0.6), (0.3, 1.0, 0.85), (0.1, 1.6, 1.0)):
        kernel = capsule_kernel(
            params.length * size, params.degrees, max(params.half_width * size, 0.3), 1.0
        )
        count = int(params.count * share)
        streaks += scatter(height, width, count, kernel * strength, 0.35, rng)
    return streaks


def snow(picture: np.ndarray, params: SnowParams, rng: Generator) -> np.ndarray:
    """Lets snow fall: I = J' (1 - S) + light S, with J' the picture paled by snow-lit air.

    J' = (1 - w) J + w max(J, 0.8 grey + 0.35 light); S is made of far, middle and near flakes.
    """
    height, width = picture.shape[:2]
    if params.mask is None:
        cover = _drawn_flakes(height, width, params, rng)
    else:
        cover = place_mask(params.mask, height, width, rng)
    cover = params.opacity * cover[..., None]
    lit = np.minimum(0.8 * luma(picture) + 0.35 * params.light, 1)[..., None]
    pale = (1 - params.whitening) * picture + params.whitening * np.maximum(picture, lit)
    return np.clip(pale * (1 - cover) + params.light * cover, 0, 1)


def _drawn_flakes(height: int, width: int, params: SnowParams, rng: Generator) -> np.ndarray:
    cover = np.zeros((height, width), np.float32)
    # Share of the flakes, size, opacity, edge ramp in radii: near flakes are out of focus.
    layers = ((0.72, 0.5, 0.75, 0.9), (0.23, 1.0, 1.0, 0.8), (0.05, 2.4, 0.8, 1.3))
    for share, size, strength, ramp in layers:
        radius = max(params.radius * size, 0.45)
        lean = params.degrees + float(rng.uniform(-8, 8))
        kernel = capsule_kernel(radius * params.smear, lean, radius, max(radius * ramp, 0.9))
        flakes = scatter(height, width, int(params.count * share), kernel * strength, 0.4, rng)
        cover = 1 - (1 - cover) * (1 - np.clip(flakes, 0, 1))
    return cover
