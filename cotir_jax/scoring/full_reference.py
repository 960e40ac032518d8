"""PSNR, SSIM and MS-SSIM of 8-bit RGB pictures, as pyiqa 0.1.15 defines them, and CIEDE2000.

The release is scored with that package, and its defaults differ from other libraries': PSNR
stops at 80 dB, and SSIM looks at the full-range luma only. Everything runs on the host in numpy
and scipy. Each metric takes a restored picture and the clean one, uint8 `[height, width, 3]` of
one size, RGB (sRGB), and raises ValueError for anything else.
"""

import math

import einops
import numpy as np
from scipy import ndimage

_WINDOW_RADIUS, _WINDOW_SIGMA = 5, 1.5
_LUMINANCE_CONSTANT = (0.01 * 255) ** 2
_CONTRAST_CONSTANT = (0.03 * 255) ** 2
_SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_LUMA_WEIGHTS = np.array([0.299, 0.587, 0.114], np.float32)

SSIM_MIN_SIDE = 2 * _WINDOW_RADIUS + 1
# Each scale halves a side and rounds up; the last one still has to hold a window.
MS_SSIM_MIN_SIDE = 2 ** (len(_SCALE_WEIGHTS) - 1) * (SSIM_MIN_SIDE - 1) + 1


def psnr(restored: np.ndarray, reference: np.ndarray) -> float:
    """Computes the peak signal-to-noise ratio over all RGB values, `10 log10(1 / (MSE + 1e-8))`.

    Returns:
        Decibels; 80 for equal pictures.
    """
    check(restored, reference)
    difference = restored.astype(np.float64) - reference
    mean_square = np.mean(np.square(difference)) / 255**2
    return 10 * math.log10(1 / (mean_square + 1e-8))


def ssim(restored: np.ndarray, reference: np.ndarray) -> float:
    """Computes the structural similarity of luma, averaged over all positions of the window.

    With local means m, variances v and covariance c under an 11x11 Gaussian window:
    `(2 m1 m2 + C1) / (m1^2 + m2^2 + C1) * max(0, (2 c + C2) / (v1 + v2 + C2))`.

    Returns:
        A value in [0, 1]; 1 for equal pictures.

    Raises:
        ValueError: a side is below `SSIM_MIN_SIDE` (11), too.

    References:
        Wang et al., Image quality assessment: from error visibility to structural similarity, 2004.
    """
    check(restored, reference, min_side=SSIM_MIN_SIDE)
    return _similarity(_luma(restored), _luma(reference))[0]


def ms_ssim(restored: np.ndarray, reference: np.ndarray) -> float | None:
    """Computes SSIM over five scales: `prod_i contrast_structure_i^w_i * ssim_5^w_5`, i = 1..4.

    Returns:
        A value in [0, 1], or None where a side is below `MS_SSIM_MIN_SIDE` (161), because the
        window does not fit the fifth scale.

    References:
        Wang, Simoncelli and Bovik, Multiscale structural similarity, 2003.
    """
    check(restored, reference)
    if min(reference.shape[:2]) < MS_SSIM_MIN_SIDE:
        return None
    first, second = _luma(restored), _luma(reference)
    product = 1.0
    for weight in _SCALE_WEIGHTS[:-1]:
        product *= _similarity(first, second)[1] ** weight
        first, second = _halve(first), _halve(second)
    return product * _similarity(first, second)[0] ** _SCALE_WEIGHTS[-1]


def ciede2000(restored: np.ndarray, reference: np.ndarray) -> float:
    """Computes the colour difference CIEDE2000 (k_L = k_C = k_H = 1), averaged over the pixels.

    Returns:
        0 for equal pictures, about 1 for a just visible difference, 100 for black against white.

    References:
        Luo, Cui and Rigg, The development of the CIE 2000 colour-difference formula, 2001.
    """
    check(restored, reference)
    from skimage import color  # half a second that the quick job does not need

    return float(color.deltaE_ciede2000(color.rgb2lab(reference), color.rgb2lab(restored)).mean())


def check(restored: np.ndarray, reference: np.ndarray, min_side: int = 1) -> None:
    """Raises ValueError unless both are uint8 `[height, width, 3]`, equally large, large enough."""
    for name, picture in (("restored", restored), ("reference", reference)):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise ValueError(
                f"{name}: got {picture.dtype} {list(picture.shape)}, expected uint8 "
                "[height, width, 3]; convert to 8-bit RGB first"
            )
    if restored.shape != reference.shape:
        raise ValueError(
            f"restored is {_size(restored)}, reference {_size(reference)}; "
            "restore at the clean picture's size"
        )
    if min(reference.shape[:2]) < min_side:
        raise ValueError(
            f"pictures are {_size(reference)}, expected sides of at least {min_side} pixels; "
            "leave them out"
        )


def _size(picture: np.ndarray) -> str:
    return f"{picture.shape[1]}x{picture.shape[0]}"


def _luma(picture: np.ndarray) -> np.ndarray:
    """Returns rounded luma, float64 `[height, width]`."""
    # In float32 and in this order, as pyiqa computes it: one colour in a thousand is on a
    # half, and its rounding follows the float error.
    values = picture.astype(np.float32) / np.float32(255) * _LUMA_WEIGHTS
    luma = values[..., 0] + values[..., 1] + values[..., 2]
    return np.rint(luma * np.float32(255)).astype(np.float64)


def _similarity(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Returns mean SSIM and mean contrast-structure of two float64 planes `[height, width]`."""
    mean1, mean2 = _window_mean(first), _window_mean(second)
    variances = _window_mean(first**2) - mean1**2 + _window_mean(second**2) - mean2**2
    covariance = _window_mean(first * second) - mean1 * mean2
    contrast_structure = (2 * covariance + _CONTRAST_CONSTANT) / (variances + _CONTRAST_CONSTANT)
    contrast_structure = np.maximum(contrast_structure, 0)
    luminance = (2 * mean1 * mean2 + _LUMINANCE_CONSTANT) / (
        mean1**2 + mean2**2 + _LUMINANCE_CONSTANT
    )
    return float(np.mean(luminance * contrast_structure)), float(np.mean(contrast_structure))


def _window_mean(plane: np.ndarray) -> np.ndarray:
    """Returns the Gaussian-weighted mean at every position where the full window fits."""
    inside = slice(_WINDOW_RADIUS, -_WINDOW_RADIUS)
    return ndimage.gaussian_filter(plane, _WINDOW_SIGMA, radius=_WINDOW_RADIUS)[inside, inside]


def _halve(plane: np.ndarray) -> np.ndarray:
    """Averages 2x2 blocks; an odd side gets a leading row or column of zeros, as in pyiqa."""
    plane = np.pad(plane, [(side % 2, 0) for side in plane.shape])
    return einops.reduce(plane, "(rows 2) (columns 2) -> rows columns", "mean")
