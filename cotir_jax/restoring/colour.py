"""Matching a restored picture's colours to those of the degraded one, by wavelets. No jax."""

import numpy as np
from scipy import ndimage

# Rows processed at once, so that no float copy of a huge picture is made.
_ROWS = 512


def match_low_frequencies(
    restored: np.ndarray, degraded: np.ndarray, levels: int = 5
) -> np.ndarray:
    """Keeps the restored picture's detail and takes the slow changes from the degraded picture.

    Both are split by the undecimated ("à trous") wavelet transform with the kernel (1, 2, 1) / 4,
    whose taps are 1, 2, 4, ... pixels apart, along both sides. The result is the sum of the
    restored picture's detail levels and the degraded picture's remaining low frequencies. Since
    the split is linear, this is the restored picture plus the low frequencies of the difference.

    This corrects colours that drift in restoration. Where the slow changes are what is wrong with
    the picture (low light, haze, lost colour, water's tint) it undoes the repair, so it is off
    unless the user asks for it.

    Args:
      restored: uint8 or uint16 `[height, width, 3]`.
      degraded: of the same shape and dtype.
      levels: 5 takes changes broader than about 32 pixels from the degraded picture.

    Returns:
      Array of the same shape and dtype.

    Raises:
      ValueError: for unequal shapes or dtypes, or no levels.

    References:
      Wang et al. 2023, Exploiting Diffusion Prior for Real-World Image Super-Resolution
      (StableSR), arXiv 2305.07015: the remedy. Holschneider et al. 1989: the transform.
    """
    if restored.shape != degraded.shape or restored.dtype != degraded.dtype:
        raise ValueError(
            f"restored {restored.dtype} {list(restored.shape)} and degraded {degraded.dtype} "
            f"{list(degraded.shape)}: expected the same shape and dtype"
        )
    if levels < 1:
        raise ValueError(f"levels={levels}: expected at least 1")
    reach = 2**levels - 1  # distance of the farthest row that a result depends on
    out = np.empty_like(restored)
    height, top = len(restored), np.iinfo(restored.dtype).max
    for start in range(0, height, _ROWS):
        end = min(start + _ROWS, height)
        first, last = max(0, start - reach), min(height, end + reach)
        difference = degraded[first:last].astype(np.float32)
        difference -= restored[first:last]
        low = _low_frequencies(difference, levels)[start - first : end - first]
        low += restored[start:end]
        out[start:end] = np.rint(np.clip(low, 0, top, out=low), out=low)
    return out


def _low_frequencies(values: np.ndarray, levels: int) -> np.ndarray:
    """float32 `[height, width, channels]` without its finest `levels` levels of detail."""
    for level in range(levels):
        kernel = np.zeros(2 ** (level + 1) + 1, np.float32)
        kernel[[0, -1]], kernel[2**level] = 0.25, 0.5
        for axis in (0, 1):
            values = ndimage.correlate1d(values, kernel, axis=axis, mode="nearest")
    return values
