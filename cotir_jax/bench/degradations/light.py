"""Degradations of the illumination: low light, shadow."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.random import Generator
from PIL import Image
from scipy import ndimage

from cotir_jax.bench.degradations.filters import GAMMA, guided_filter, luma, resize, smooth_noise
from cotir_jax.bench.degradations.ranges import draw_fields


@dataclass(frozen=True)
class LowLightParams:
    """Exponent of the illumination (1 leaves it) and factor of the exposure, at most 1."""

    gamma: float
    exposure: float


@dataclass(frozen=True)
class ShadowParams:
    """The caster, its share of the picture, and the light that is left in it.

    `ambient` is the share of red light left, `blue` how much more, relatively, is left of
    blue, because the sky still lights the shadow; `softness` is the penumbra in pixels.
    """

    kind: Literal["building", "object", "foliage", "bars"]
    cover: float
    ambient: float
    blue: float
    softness: float


def low_light(picture: np.ndarray, params: LowLightParams, rng: Generator) -> np.ndarray:
    """Darkens by illumination: I = e R L^gamma with J = R L, so dark parts lose most.

    L is the brightest channel, smoothed along the picture's edges. Noise of the dark exposure
    is the sensor's and comes with the chain (`composites.sample_chain`).

    References:
        Guo et al., LIME, TIP 2017 (initial illumination); OneRestore's low-light synthesis.
    """
    radius = max(min(picture.shape[:2]) // 40, 1)
    light = guided_filter(luma(picture), picture.max(axis=2), radius, 1e-2)
    light = np.clip(light, 1e-3, 1)[..., None]
    return np.clip(params.exposure * picture * light ** (params.gamma - 1), 0, 1)


def sample_shadow(severity: float, side: int, rng: Generator) -> ShadowParams:
    """Draws a shadow of `severity` in [0, 1]; its penumbra grows with the picture's `side`."""
    kind = ("building", "object", "foliage", "bars")[rng.integers(4)]
    return draw_fields(ShadowParams, "shadow", severity, side, rng, kind=kind)


def shadow(picture: np.ndarray, params: ShadowParams, rng: Generator) -> np.ndarray:
    """Casts a shadow: I_c = (J_c^2.2 (1 - m (1 - k_c)))^(1/2.2), k the light left in each channel.

    The mask m is 1 in the umbra and falls off smoothly.

    References:
        Le and Samaras, Shadow Removal via Shadow Image Decomposition, ICCV 2019 (a shadow is a
        linear change of light per channel); Inoue and Yamasaki, SynShadow, TCSVT 2021 (random
        mattes, lifted blue).
    """
    mask = shadow_mask(picture.shape[0], picture.shape[1], params, rng)[..., None]
    left = params.ambient * np.array([1, 1 + params.blue / 2, 1 + params.blue], np.float32)
    return picture * (1 - mask * (1 - np.minimum(left, 1))) ** (1 / GAMMA)


def shadow_mask(height: int, width: int, params: ShadowParams, rng: Generator) -> np.ndarray:
    """Draws the matte m in [0, 1], float32 `[height, width]`; about `cover` of it is in shadow.

    A field is cut at the level that leaves `cover` of it, then blurred. Drawn at half size:
    nothing in it is sharp.
    """
    rows, columns = max(height // 2, 2), max(width // 2, 2)
    outline = _shadow_field(rows, columns, params.kind, rng)
    level = np.quantile(outline, 1 - params.cover)
    mask = ndimage.gaussian_filter((outline > level).astype(np.float32), params.softness / 2)
    return np.clip(resize(mask, height, width, Image.Resampling.BICUBIC), 0, 1)


def _shadow_field(rows: int, columns: int, kind: str, rng: Generator) -> np.ndarray:
    side = min(rows, columns)
    y, x = np.mgrid[0:rows, 0:columns].astype(np.float32) / side
    if kind == "object":
        return smooth_noise(rows, columns, side / 2, 2, rng)
    if kind == "foliage":
        leaves = smooth_noise(rows, columns, side / 14, 3, rng)
        return leaves + 0.8 * smooth_noise(rows, columns, side / 2, 1, rng)
    turn = rng.uniform(0, 2 * np.pi)
    if kind == "bars":
        wobble = 0.05 * smooth_noise(rows, columns, side / 2, 1, rng)
        across = x * np.cos(turn) + y * np.sin(turn) + wobble
        return np.sin(2 * np.pi * rng.uniform(2, 6) * across)
    # A building's corner: inside both of two edges.
    angles = (turn, turn + rng.uniform(0.5, 1.6))
    return np.minimum(*((x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle) for angle in angles))
