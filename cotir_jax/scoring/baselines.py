"""Classical restorers that need no weights: what a learned one has to beat.

Each takes uint8 `[height, width, 3]` and returns the same, with fixed parameters, and knows nothing
of what is wrong with the picture. Most come from scikit-image.
"""

import warnings
from collections.abc import Callable

import numpy as np
from scipy import ndimage
from skimage import color, exposure, filters, restoration, util

from cotir_jax.bench.degradations.filters import guided_filter


def non_local_means(picture: np.ndarray) -> np.ndarray:
    """Denoises by averaging similar 5x5 patches within 13x13 pixels; strength by estimated noise.

    References:
        Buades, Coll and Morel, A non-local algorithm for image denoising, 2005.
    """
    image = util.img_as_float32(picture)
    sigma = _noise(image)
    restored = restoration.denoise_nl_means(
        image, patch_size=5, patch_distance=6, h=0.8 * sigma, sigma=sigma, channel_axis=-1
    )
    return _to_bytes(restored) if sigma > 0 else picture.copy()


def wavelet(picture: np.ndarray) -> np.ndarray:
    """Denoises by soft thresholds on wavelet coefficients in YCbCr (BayesShrink).

    Raises:
        ValueError: PyWavelets, which scikit-image needs for it, is not installed.

    References:
        Chang, Yu and Vetterli, Adaptive wavelet thresholding for image denoising, 2000.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tiny pictures: fewer levels than usual
            restored = restoration.denoise_wavelet(
                util.img_as_float32(picture), convert2ycbcr=True, channel_axis=-1
            )
    except ImportError:
        raise ValueError("wavelet needs PyWavelets; pip install PyWavelets") from None
    # A flat picture has no noise level to divide by.
    return _to_bytes(restored) if np.isfinite(restored).all() else picture.copy()


def unsharp(picture: np.ndarray) -> np.ndarray:
    """Sharpens: adds once the difference from a Gaussian blur of 2 pixels."""
    # Not channel_axis=-1: with it, scikit-image 0.26 fills only the first three rows.
    sharp = filters.unsharp_mask(util.img_as_float32(picture), radius=2, amount=1, channel_axis=2)
    return _to_bytes(sharp)


def histogram_equalisation(picture: np.ndarray) -> np.ndarray:
    """Spreads the brightness (HSV value) evenly over its range; hue and saturation stay."""
    return _on_value(picture, exposure.equalize_hist)


def clahe(picture: np.ndarray) -> np.ndarray:
    """Equalises brightness (HSV value) within tiles of an eighth of the sides, contrast limited.

    References:
        Zuiderveld, Contrast limited adaptive histogram equalization, 1994.
    """
    return _on_value(picture, lambda value: exposure.equalize_adapthist(value, clip_limit=0.01))


def dark_channel(picture: np.ndarray) -> np.ndarray:
    """Removes haze: least channel over 15x15 pixels as haze density, refined along edges.

    ``t = 1 - 0.95 min_patch min_c(I / A)``, guided filter, ``J = (I - A) / max(t, 0.1) + A``; the
    air light A is the mean of the 0.1 % of pixels with the highest dark channel.

    References:
        He, Sun and Tang, Single image haze removal using dark channel prior, 2009.
    """
    image = util.img_as_float32(picture)
    dark = ndimage.minimum_filter(image.min(axis=2), 15)
    count = max(dark.size // 1000, 1)
    haziest = np.argpartition(dark.ravel(), -count)[-count:]
    airlight = np.maximum(image.reshape(-1, 3)[haziest].mean(axis=0), 1e-3)
    transmission = 1 - 0.95 * ndimage.minimum_filter((image / airlight).min(axis=2), 15)
    radius = max(min(dark.shape) // 16, 2)
    transmission = guided_filter(color.rgb2gray(image), transmission, radius, 1e-3)
    return _to_bytes((image - airlight) / np.maximum(transmission, 0.1)[..., None] + airlight)


BASELINES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "input": np.copy,
    "non-local-means": non_local_means,
    "wavelet": wavelet,
    "unsharp": unsharp,
    "histogram-equalisation": histogram_equalisation,
    "clahe": clahe,
    "dark-channel": dark_channel,
}


def baseline(name: str) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a baseline by name; raises ValueError for an unknown one."""
    if name not in BASELINES:
        raise ValueError(f"no baseline {name!r}; there are {', '.join(BASELINES)}")
    return BASELINES[name]


def _noise(image: np.ndarray) -> float:
    """Estimates the noise's standard deviation from the Laplacian, which ignores linear brightness.

    References:
        Immerkaer, Fast noise variance estimation, 1996.
    """
    kernel = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
    response = ndimage.convolve(image, kernel[..., None])
    return float(np.sqrt(np.pi / 2) / 6 * np.abs(response).mean())


def _on_value(picture: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    hsv = color.rgb2hsv(picture)
    if np.ptp(hsv[..., 2]) == 0:  # nothing to spread
        return picture.copy()
    hsv[..., 2] = change(hsv[..., 2])
    return _to_bytes(color.hsv2rgb(hsv))


def _to_bytes(image: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
