"""Wavelet colour matching; oracle: the transform written out level by level in float64."""

import numpy as np
import pytest

from cotir_jax.restoring.colour import match_low_frequencies


def blur(picture: np.ndarray, distance: int) -> np.ndarray:
    """(1, 2, 1) / 4 along both sides with taps `distance` apart; edges repeat."""
    height, width = picture.shape[:2]
    padded = np.pad(picture, [(distance, distance)] * 2 + [(0, 0)], mode="edge")
    total = np.zeros_like(picture)
    for y, wy in ((0, 1), (1, 2), (2, 1)):
        for x, wx in ((0, 1), (1, 2), (2, 1)):
            top, left = y * distance, x * distance
            total += wy * wx * padded[top : top + height, left : left + width]
    return total / 16


def split(picture: np.ndarray, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """Sum of the detail levels, and the rest."""
    rest, detail = picture.astype(np.float64), np.zeros(picture.shape)
    for level in range(levels):
        smooth = blur(rest, 2**level)
        detail += rest - smooth
        rest = smooth
    return detail, rest


def noisy(seed: int, shape: tuple, dtype: type) -> np.ndarray:
    rng = np.random.default_rng(seed)
    top = np.iinfo(dtype).max
    y, x = np.mgrid[: shape[0], : shape[1]]
    slow = 0.5 + 0.3 * np.sin(x / 40 + seed) * np.cos(y / 30)
    values = slow[..., None] * top + rng.normal(0, top / 20, (*shape, 3))
    return np.clip(values, 0, top).astype(dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("levels", [1, 3, 5])
@pytest.mark.parametrize("shape", [(1, 1), (3, 70), (90, 61)])
def test_against_the_written_out_transform(shape, levels, dtype):
    restored, degraded = noisy(1, shape, dtype), noisy(2, shape, dtype)
    expected = split(restored, levels)[0] + split(degraded, levels)[1]
    found = match_low_frequencies(restored, degraded, levels)
    assert found.dtype == dtype
    expected = np.clip(expected, 0, np.iinfo(dtype).max)
    assert np.abs(found - expected).max() <= 0.5 + 1e-6 * np.iinfo(dtype).max


def test_bands_leave_no_trace(monkeypatch):
    restored, degraded = noisy(1, (300, 50), np.uint16), noisy(2, (300, 50), np.uint16)
    whole = match_low_frequencies(restored, degraded)
    for rows in (7, 64, 299):
        monkeypatch.setattr("cotir_jax.restoring.colour._ROWS", rows)
        np.testing.assert_array_equal(match_low_frequencies(restored, degraded), whole)


def test_cast_disappears_and_detail_stays():
    clean = noisy(3, (128, 160), np.uint8) // 2 + 60
    cast = (clean + np.array([25, -20, 10])).astype(np.uint8)
    np.testing.assert_array_equal(match_low_frequencies(cast, clean), clean)
    # A degraded picture without detail: the restored picture's detail is all there.
    smooth = split(clean, 3)[1].round().astype(np.uint8)
    matched = match_low_frequencies(cast, smooth).astype(float)
    assert np.abs(matched.mean(axis=(0, 1)) - clean.mean(axis=(0, 1))).max() < 0.5
    assert split(matched, 2)[0].std() == pytest.approx(split(clean, 2)[0].std(), rel=0.02)


def test_refused():
    picture = noisy(0, (8, 9), np.uint8)
    for other in (picture[:4], picture.astype(np.uint16)):
        with pytest.raises(ValueError, match="same shape and dtype"):
            match_low_frequencies(picture, other)
    with pytest.raises(ValueError, match="levels=0"):
        match_low_frequencies(picture, picture, levels=0)
