"""Degradations of the air between scene and camera: haze, rain streaks, snow."""

from dataclasses import dataclass

import numpy as np

from cotir_jax.bench.degradations.filters import (
    capsule_kernel,
    guided_filter,
    luma,
    scatter,
    smooth_noise,
)


@dataclass(frozen=True)
class HazeParams:
    """Density beta, airlight per channel in [0, 1], and what the depth is made from."""

    density: float
    airlight: tuple[float, float, float]
    ramp_power: float
    noise_share: float


@dataclass(frozen=True)
class RainParams:
    """Streaks per picture, length and half width in pixels, lean from the vertical in degrees.

    ``opacity`` is the brightness that the strongest streak adds, ``veil`` the share of grey
    mist of heavy rain, ``light`` the brightness of the air around the drops.
    """

    count: int
    length: float
    half_width: float
    degrees: float
    opacity: float
    veil: float
    light: float = 1.0


@dataclass(frozen=True)
class SnowParams:
    """Flakes per picture, radius of middling ones in pixels, lean of their fall in degrees.

    ``smear`` is the length of the fall during exposure as a multiple of a flake's radius,
    ``whitening`` the share by which snow-lit air pales the picture, ``light`` the brightness of
    the flakes.
    """

    count: int
    radius: float
    degrees: float
    smear: float
    opacity: float
    whitening: float
    light: float = 1.0


def sample_haze(severity: float, side: int, rng: np.random.Generator) -> HazeParams:
    """Haze of ``severity`` in [0, 1]; ranges around OneRestore's and RESIDE's."""
    density = (0.45 + 1.65 * severity) * rng.uniform(0.92, 1.08)
    grey = rng.uniform(0.72, 0.96)
    tint = rng.uniform(-0.02, 0.02)  # cold or warm light
    airlight = tuple(float(np.clip(grey + offset, 0, 1)) for offset in (-tint, 0.0, tint))
    return HazeParams(density, airlight, rng.uniform(0.7, 1.6), rng.uniform(0.05, 0.28))


def haze(picture: np.ndarray, params: HazeParams, rng: np.random.Generator) -> np.ndarray:
    """Veil float32 ``[height, width, 3]`` in [0, 1] by haze over a depth made from it."""
    depth = depth_from_picture(picture, params.ramp_power, params.noise_share, rng)
    return haze_over_depth(picture, depth, params.density, params.airlight)


def haze_over_depth(
    picture: np.ndarray,
    depth: np.ndarray,
    density: float,
    airlight: tuple[float, float, float],
) -> np.ndarray:
    """I = J t + A (1 - t) with transmission t = exp(-density depth).

    Args:
        picture: J, float32 ``[height, width, 3]`` in [0, 1].
        depth: float32 ``[height, width]``, 0 at the camera.
        density: scattering per unit of depth.
        airlight: A, colour of fully opaque haze.

    References:
        Narasimhan and Nayar, Vision and the Atmosphere, IJCV 2002.
    """
    transmission = np.exp(-density * depth)[..., None].astype(np.float32)
    light = np.asarray(airlight, np.float32)
    return light + (picture - light) * transmission


def depth_from_picture(
    picture: np.ndarray, ramp_power: float, noise_share: float, rng: np.random.Generator
) -> np.ndarray:
    """A plausible depth in [0.1, 1] without a depth network, float32 ``[height, width]``.

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
    brightest, darkest = picture.max(axis=2), picture.min(axis=2)
    saturation = (brightest - darkest) / np.maximum(brightest, 0.05)
    cue = np.clip(0.5 + 0.5 * (brightest - saturation), 0, 1)
    rough = (0.6 - noise_share / 2) * ramp + noise_share * noise + (0.4 - noise_share / 2) * cue
    depth = guided_filter(luma(picture), rough, max(side // 14, 2), 2e-3)
    low, high = np.percentile(depth[::4, ::4], [1, 99])
    return 0.1 + 0.9 * np.clip((depth - low) / max(float(high - low), 1e-3), 0, 1)


def sample_rain_streak(severity: float, side: int, rng: np.random.Generator) -> RainParams:
    """Rain of ``severity`` in [0, 1]; sizes in pixels grow with the picture's ``side``."""
    scale = side / 512
    return RainParams(
        count=int((180 + 560 * severity) * rng.uniform(0.85, 1.15)),
        length=(rng.uniform(24, 40) + 30 * severity) * scale,
        half_width=max(rng.uniform(0.6, 1.1) * scale, 0.3),
        degrees=float(rng.uniform(-30, 30)),
        opacity=(0.28 + 0.32 * severity) * rng.uniform(0.9, 1.1),
        veil=0.18 * max(severity - 0.4, 0) * rng.uniform(0.5, 1.5),
    )


def rain_streak(picture: np.ndarray, params: RainParams, rng: np.random.Generator) -> np.ndarray:
    """Add rain streaks: I = (1 - veil) (J + light * layers) + veil A.

    Far streaks are many, short and faint, near ones few, long and strong; all lean alike.

    Args:
        picture: J, float32 ``[height, width, 3]`` in [0, 1].

    References:
        The heavy-rain model of Yang et al., CVPR 2017.
    """
    height, width = picture.shape[:2]
    streaks = np.zeros((height, width), np.float32)
    for share, size, strength in ((0.6, 0.6, 0.6), (0.3, 1.0, 0.85), (0.1, 1.6, 1.0)):
        kernel = capsule_kernel(
            params.length * size, params.degrees, max(params.half_width * size, 0.3), 1.0
        )
        count = int(params.count * share)
        streaks += scatter(height, width, count, kernel * strength, 0.35, rng)
    rain = picture + params.light * params.opacity * np.minimum(streaks, 1)[..., None]
    return np.clip((1 - params.veil) * rain + params.veil * 0.75 * params.light, 0, 1)


def sample_snow(severity: float, side: int, rng: np.random.Generator) -> SnowParams:
    """Snow of ``severity`` in [0, 1]; sizes in pixels grow with the picture's ``side``."""
    return SnowParams(
        count=int((350 + 1150 * severity) * rng.uniform(0.85, 1.15)),
        radius=max(rng.uniform(1.6, 2.6) * side / 512, 0.5),
        degrees=float(rng.uniform(-40, 40)),
        smear=float(rng.uniform(0.5, 3)),
        opacity=float(rng.uniform(0.75, 0.95)),
        whitening=0.3 * severity * rng.uniform(0.6, 1.0),
    )


def snow(picture: np.ndarray, params: SnowParams, rng: np.random.Generator) -> np.ndarray:
    """Let snow fall: I = J' (1 - S) + light S, with J' the picture paled by snow-lit air.

    J' = (1 - w) J + w max(J, 0.8 grey + 0.35 light); S is made of far, middle and near flakes.

    Args:
        picture: J, float32 ``[height, width, 3]`` in [0, 1].
    """
    height, width = picture.shape[:2]
    cover = np.zeros((height, width), np.float32)
    # Share of the flakes, size, opacity, edge ramp in radii: near flakes are out of focus.
    layers = ((0.72, 0.5, 0.75, 0.9), (0.23, 1.0, 1.0, 0.8), (0.05, 2.4, 0.8, 1.3))
    for share, size, strength, ramp in layers:
        radius = max(params.radius * size, 0.45)
        lean = params.degrees + float(rng.uniform(-8, 8))
        kernel = capsule_kernel(radius * params.smear, lean, radius, max(radius * ramp, 0.9))
        flakes = scatter(height, width, int(params.count * share), kernel * strength, 0.4, rng)
        cover = 1 - (1 - cover) * (1 - np.clip(flakes, 0, 1))
    cover = params.opacity * cover[..., None]
    lit = np.minimum(0.8 * luma(picture) + 0.35 * params.light, 1)[..., None]
    pale = (1 - params.whitening) * picture + params.whitening * np.maximum(picture, lit)
    return np.clip(pale * (1 - cover) + params.light * cover, 0, 1)
