"""Degradations of lens, sensor and file: blur, over-exposure, noise, low resolution, JPEG."""

import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.random import Generator
from PIL import Image

from cotir_jax.bench.degradations.filters import (
    capsule_kernel,
    convolve,
    resize,
    to_light,
    to_picture,
)
from cotir_jax.bench.degradations.ranges import draw


@dataclass(frozen=True)
class MotionBlurParams:
    """Length of the camera's path in pixels, its direction, how much it bends (0 is straight)."""

    length: float
    degrees: float
    bend: float


@dataclass(frozen=True)
class DefocusBlurParams:
    """Radius of the blur disk in pixels."""

    radius: float


@dataclass(frozen=True)
class ExposureParams:
    """How many stops too much."""

    stops: float


@dataclass(frozen=True)
class NoiseParams:
    """Gaussian noise of a standard deviation in [0, 1], or photon noise.

    `photons` counts them at white, so that the variance is J / photons. `grey` noise is the
    same in all channels (Gaussian only).
    """

    kind: Literal["gaussian", "poisson"]
    sigma: float = 0.0
    photons: float = 0.0
    grey: bool = False


@dataclass(frozen=True)
class LowResolutionParams:
    """How many times smaller, and Pillow's filters down and up by name."""

    factor: float
    down: str
    up: str


@dataclass(frozen=True)
class JpegParams:
    """Pillow's JPEG quality, and whether colour is stored at half resolution (4:2:0)."""

    quality: int
    half_colour: bool


def sample_motion_blur(severity: float, side: int, rng: Generator) -> MotionBlurParams:
    """Draws camera motion of `severity` in [0, 1]: 7 to 37 pixels at side 512."""
    length = draw("motion-blur", "length", severity, rng, side)
    bend = draw("motion-blur", "bend", severity, rng) if rng.random() < 0.5 else 0.0
    degrees = draw("motion-blur", "degrees", severity, rng)
    return MotionBlurParams(length, degrees, bend)


def motion_kernel(params: MotionBlurParams, rng: Generator) -> np.ndarray:
    """Draws the point spread of the camera's path, float32 `[odd, odd]`, sum 1, centred.

    The heading starts at `degrees` from the horizontal and wanders by a smoothed random walk
    times `bend`; positions are spread over four pixels each, as in Boracchi and Foi 2012.
    """
    steps = 512
    heading = np.full(steps, np.deg2rad(params.degrees))
    if params.bend:
        walk = np.cumsum(np.cumsum(rng.standard_normal(steps)))
        walk -= walk.mean()
        heading += params.bend * walk / max(float(np.abs(walk).max()), 1e-9)
    step = params.length / steps
    x, y = np.cumsum(np.cos(heading)) * step, -np.cumsum(np.sin(heading)) * step
    x, y = x - x.mean(), y - y.mean()
    half = int(np.ceil(max(np.abs(x).max(), np.abs(y).max()))) + 1
    kernel = np.zeros((2 * half + 1, 2 * half + 1))
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    for down in (0, 1):
        for right in (0, 1):
            weight = np.abs(1 - right - (x - left)) * np.abs(1 - down - (y - top))
            np.add.at(kernel, (top + down + half, left + right + half), weight)
    return (kernel / kernel.sum()).astype(np.float32)


def motion_blur(picture: np.ndarray, params: MotionBlurParams, rng: Generator) -> np.ndarray:
    """Smears float32 `[height, width, 3]` in [0, 1] along a path, in linear light."""
    return _blur_light(picture, motion_kernel(params, rng))


def disk_kernel(radius: float) -> np.ndarray:
    """Returns an antialiased disk, float32 `[odd, odd]`, sum 1."""
    disk = capsule_kernel(0.0, 0.0, radius, 1.0)
    return disk / disk.sum()


def defocus_blur(picture: np.ndarray, params: DefocusBlurParams, rng: Generator) -> np.ndarray:
    """Blurs float32 `[height, width, 3]` in [0, 1] by a disk, in linear light."""
    return _blur_light(picture, disk_kernel(params.radius))


def _blur_light(picture: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    # Blur happens to light, not to gamma-coded values.
    return to_picture(convolve(to_light(picture), kernel))


def over_exposure(picture: np.ndarray, params: ExposureParams, rng: Generator) -> np.ndarray:
    """Exposes too long: I = clip(J^2.2 2^EV)^(1/2.2); the sensor clips before its noise.

    References:
        Afifi et al., Learning Multi-Scale Photo Exposure Correction, CVPR 2021 (stops as the
        unit).
    """
    return to_picture(to_light(picture) * np.float32(2**params.stops))


def sample_noise(severity: float, side: int, rng: Generator) -> NoiseParams:
    """Draws noise of `severity` in [0, 1]: sigma 10 to 50 of 255, or photons of a like sigma."""
    sigma = draw("noise", "sigma", severity, rng) / 255
    if rng.random() < 0.6:
        return NoiseParams("gaussian", sigma=sigma, grey=bool(rng.random() < 0.25))
    # At middle grey, photon noise of this many photons has the same standard deviation.
    return NoiseParams("poisson", photons=0.5 / sigma**2)


def noise(picture: np.ndarray, params: NoiseParams, rng: Generator) -> np.ndarray:
    """Adds Gaussian or photon (Poisson) noise to float32 `[height, width, 3]` in [0, 1]."""
    if params.kind == "gaussian":
        shape = picture.shape[:2] + ((1,) if params.grey else (3,))
        grain = rng.standard_normal(shape, dtype=np.float32)
        return np.clip(picture + np.float32(params.sigma) * grain, 0, 1)
    photons = np.float32(params.photons)
    counts = rng.poisson(np.clip(picture, 0, 1) * photons)
    return np.clip(counts.astype(np.float32) / photons, 0, 1)


def sample_low_resolution(severity: float, side: int, rng: Generator) -> LowResolutionParams:
    """Draws low resolution of `severity` in [0, 1]: 1.8 to 4.5 times smaller."""
    factor = draw("low-resolution", "factor", severity, rng)
    down = str(rng.choice(["BOX", "BILINEAR", "BICUBIC"]))
    return LowResolutionParams(factor, down, str(rng.choice(["BILINEAR", "BICUBIC"])))


def low_resolution(picture: np.ndarray, params: LowResolutionParams, rng: Generator) -> np.ndarray:
    """Shrinks float32 `[height, width, 3]` in [0, 1] and enlarges it to its old size."""
    height, width = picture.shape[:2]
    small = [max(round(side / params.factor), 1) for side in (height, width)]
    shrunk = resize(picture, small[0], small[1], Image.Resampling[params.down])
    return np.clip(resize(shrunk, height, width, Image.Resampling[params.up]), 0, 1)


def sample_jpeg_compression(severity: float, side: int, rng: Generator) -> JpegParams:
    """Draws JPEG of `severity` in [0, 1]: quality about 40 down to 6."""
    quality = draw("jpeg-compression", "quality", severity, rng)
    return JpegParams(int(np.clip(round(quality), 5, 95)), bool(rng.random() < 0.7))


def jpeg_compression(picture: np.ndarray, params: JpegParams, rng: Generator) -> np.ndarray:
    """Passes float32 `[height, width, 3]` in [0, 1] through an 8-bit JPEG file in memory."""
    stream = io.BytesIO()
    Image.fromarray(np.rint(picture * 255).astype(np.uint8)).save(
        stream, "JPEG", quality=params.quality, subsampling=2 if params.half_colour else 0
    )
    with Image.open(stream) as image:
        return np.asarray(image, np.float32) / 255
