"""Fields and filters that several degradations share: noise fields, kernels, convolution."""

import numpy as np
from numpy.random import Generator
from PIL import Image
from scipy import fft, ndimage

# ITU-R BT.601 luma weights.
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)

# sRGB's curve to within a few percent.
GAMMA = 2.2


def to_light(picture: np.ndarray) -> np.ndarray:
    """Returns gamma-coded values in [0, 1] as linear light."""
    return picture**GAMMA


def to_picture(light: np.ndarray) -> np.ndarray:
    """Returns linear light, clipped to [0, 1] as a sensor does, as gamma-coded values."""
    return np.clip(light, 0, 1) ** (1 / GAMMA)


def luma(picture: np.ndarray) -> np.ndarray:
    """Returns brightness `[height, width]` of a float picture `[height, width, 3]`."""
    return picture @ _LUMA


def resize(
    field: np.ndarray,
    height: int,
    width: int,
    method: int,
    box: tuple[float, float, float, float] | None = None,
) -> np.ndarray:
    """Resizes `[height, width]` or `[height, width, channels]`, as float32, by a filter of Pillow.

    `box` is the part to be resized: left, top, right, bottom.
    """
    if field.ndim == 3:
        channels = np.moveaxis(field, 2, 0)
        return np.stack([resize(c, height, width, method, box) for c in channels], axis=2)
    image = Image.fromarray(np.ascontiguousarray(field, np.float32))
    return np.asarray(image.resize((width, height), method, box=box))


def smooth_noise(height: int, width: int, cell: float, octaves: int, rng: Generator) -> np.ndarray:
    """Draws cloud-like noise in [0, 1], float32 `[height, width]`.

    Octaves of random grids are enlarged bicubically; each next one has half the cell (in
    pixels) and half the weight.
    """
    total = np.zeros((height, width), np.float32)
    for octave in range(octaves):
        step = max(cell / 2**octave, 1.0)
        rows, columns = int(np.ceil(height / step)) + 1, int(np.ceil(width / step)) + 1
        grid = rng.random((rows, columns), dtype=np.float32)
        total += resize(grid, height, width, Image.Resampling.BICUBIC) * 0.5**octave
    low, high = float(total.min()), float(total.max())
    return (total - low) / max(high - low, 1e-6)


def guided_filter(guide: np.ndarray, field: np.ndarray, radius: int, epsilon: float) -> np.ndarray:
    """Smooths `field` so that its edges follow those of `guide`, both `[height, width]`.

    References:
        He, Sun and Tang, Guided Image Filtering, ECCV 2010, equations 5, 6 and 8.
    """
    size = 2 * radius + 1

    def mean(values: np.ndarray) -> np.ndarray:
        return ndimage.uniform_filter(values, size, mode="reflect")

    guide_mean, field_mean = mean(guide), mean(field)
    covariance = mean(guide * field) - guide_mean * field_mean
    variance = np.maximum(mean(guide * guide) - guide_mean**2, 0)
    slope = covariance / (variance + epsilon)
    return mean(slope) * guide + mean(field_mean - slope * guide_mean)


def capsule_kernel(length: float, degrees: float, radius: float, softness: float) -> np.ndarray:
    """Returns a soft-edged stroke: pixels within `radius` of a centred segment, peak at most 1.

    Args:
        length: of the segment in pixels; 0 gives a disk.
        degrees: lean of the segment from the vertical.
        radius: half thickness in pixels; below half a pixel the stroke turns fainter.
        softness: width in pixels of the edge ramp; 1 is plain antialiasing.

    Returns:
        float32 `[odd, odd]`.
    """
    half = int(np.ceil(length / 2 + radius + softness))
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float32)
    angle = np.deg2rad(degrees)
    along = x * np.sin(angle) + y * np.cos(angle)
    across = x * np.cos(angle) - y * np.sin(angle)
    beyond = np.maximum(np.abs(along) - length / 2, 0)
    distance = np.hypot(beyond, across)
    return np.clip((radius - distance) / softness + 0.5, 0, 1).astype(np.float32)


def scatter(
    height: int, width: int, count: int, kernel: np.ndarray, faintest: float, rng: Generator
) -> np.ndarray:
    """Stamps `kernel` at about `count` random places, opacities from `faintest` to 1.

    Places lie beyond the border too, so that the border is as covered as the middle.

    Returns:
        float32 `[height, width]`, not clipped.
    """
    pad = kernel.shape[0] // 2
    rows, columns = height + 2 * pad, width + 2 * pad
    number = int(rng.poisson(count * rows * columns / (height * width)))
    seeds = np.zeros((rows, columns), np.float32)
    opacity = rng.uniform(faintest, 1, number).astype(np.float32)
    seeds[rng.integers(0, rows, number), rng.integers(0, columns, number)] = opacity
    return _convolve_valid(seeds[..., None], kernel)[..., 0]


def place_mask(mask: np.ndarray, height: int, width: int, rng: Generator) -> np.ndarray:
    """Cuts a random window `[height, width]` from a mask, mirrored half of the time.

    The mask is scaled by at least what makes it cover the picture and at most 1.5 times that.
    """
    scale = max(height / mask.shape[0], width / mask.shape[1]) * rng.uniform(1, 1.5)
    rows, columns = min(height / scale, mask.shape[0]), min(width / scale, mask.shape[1])
    top, left = rng.uniform(0, mask.shape[0] - rows), rng.uniform(0, mask.shape[1] - columns)
    box = (left, top, left + columns, top + rows)
    placed = np.clip(resize(mask, height, width, Image.Resampling.BILINEAR, box), 0, 1)
    return placed[:, ::-1] if rng.random() < 0.5 else placed


def convolve(picture: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Convolves float32 `[height, width, channels]` with an odd kernel, mirrored borders."""
    pad_y, pad_x = kernel.shape[0] // 2, kernel.shape[1] // 2
    padded = np.pad(picture, ((pad_y, pad_y), (pad_x, pad_x), (0, 0)), mode="symmetric")
    return _convolve_valid(padded, kernel)


def _convolve_valid(padded: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    height = padded.shape[0] - kernel.shape[0] + 1
    width = padded.shape[1] - kernel.shape[1] + 1
    # Wrap-around spoils only the kernel-wide margin that is cut away, so no zeros are added
    # beyond the next size that transforms fast.
    shape = [fft.next_fast_len(side, real=True) for side in padded.shape[:2]]
    transform = fft.rfft2(kernel.astype(np.float32), shape)
    channels = np.moveaxis(padded.astype(np.float32, copy=False), -1, 0)
    full = fft.irfft2(fft.rfft2(channels, shape) * transform, shape)
    top, left = kernel.shape[0] - 1, kernel.shape[1] - 1
    return np.moveaxis(full[:, top : top + height, left : left + width], 0, -1)
