"""PIQE: picture quality without a clean picture, in numpy and scipy."""

import einops
import numpy as np
from scipy import ndimage

from cotir_jax.images.pictures import check_picture

_LUMA_WEIGHTS = (0.299, 0.587, 0.114)
_BLOCK = 16


def piqe(picture: np.ndarray) -> float:
    """Computes the perception-based quality evaluator: how impaired the visible blocks look.

    Luma is divided by its maximum and normalised by local mean and deviation. A block counts when
    its variance is above 0.1; it is impaired where one of its sides has an even stretch
    of 6 pixels (deviation below 0.1), which adds ``1 - variance``, and noisy where its deviation
    exceeds twice its difference from that of the middle columns, which adds ``variance``:
    ``100 (1 + sum) / (1 + blocks that count)``.

    Args:
        picture: uint8 `[height, width, 3]`, RGB.

    Returns:
        0 (best) to 100 and, for pictures of strong noise, beyond.

    Raises:
        ValueError: not uint8 `[height, width, 3]`, or empty.

    References:
        Venkatanath et al., Blind image quality evaluation using perception based features, 2015;
        column choice of the noise test as in MATLAB's `piqe` and pyiqa.
    """
    check_picture(picture)
    luma = picture.astype(np.float64) @ np.array(_LUMA_WEIGHTS)
    luma = np.rint(255 * (luma / max(float(luma.max()), 1e-9)))
    luma = np.pad(luma, [(0, -side % _BLOCK) for side in luma.shape], mode="symmetric")
    pattern = "(rows height) (columns width) -> (rows columns) height width"
    blocks = einops.rearrange(_normalised(luma), pattern, height=_BLOCK, width=_BLOCK)
    variance = blocks.var(axis=(1, 2), ddof=1)
    active = variance > 0.1
    score = _has_even_side(blocks) * (1 - variance) + _is_noisy(blocks, variance) * variance
    return float(100 * (1 + score[active].sum()) / (1 + active.sum()))


def _has_even_side(blocks: np.ndarray) -> np.ndarray:
    sides = np.stack([blocks[:, 0], blocks[:, -1], blocks[:, :, 0], blocks[:, :, -1]], axis=1)
    stretches = np.lib.stride_tricks.sliding_window_view(sides, 6, axis=2)
    return (stretches.std(axis=-1, ddof=1) < 0.1).any(axis=(1, 2))


def _is_noisy(blocks: np.ndarray, variance: np.ndarray) -> np.ndarray:
    # The published code leaves out the tenth column where the ninth is meant.
    surround = np.delete(blocks, [7, 9], axis=2)
    deviation = np.sqrt(variance)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = blocks[:, :, 7:9].std(axis=(1, 2), ddof=1) / surround.std(axis=(1, 2), ddof=1)
        ratio = np.nan_to_num(ratio, posinf=1e30)
        difference = np.abs(deviation - ratio) / np.maximum(deviation, ratio)
    return deviation > 2 * difference


def _normalised(luma: np.ndarray) -> np.ndarray:
    """Subtracts the mean, divides by deviation + 1, under a 7x7 Gaussian window of sigma 7/6."""
    mean, square = (
        ndimage.gaussian_filter(plane, 7 / 6, radius=3, mode="nearest") for plane in (luma, luma**2)
    )
    return (luma - mean) / (np.sqrt(np.abs(square - mean**2)) + 1)
