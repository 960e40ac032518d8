"""Picture quality without a clean picture: PIQE, and NIQE with parameters of its own.

NIQE measures how far a picture's statistics are from those of clean photographs, so its numbers
depend on the photographs. The published parameters are a download; those that ship here were
fitted anew (`cotir fit-niqe`), and the metric is called NIQE-refit: compare its numbers among
themselves, not with published NIQE. numpy and scipy only.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import ndimage, special

DEFINITIONS = {
    "niqe_refit": "NIQE-refit: NIQE (Mittal et al. 2013), 96x96 patches, with parameters fitted to "
    "other photographs than the published ones; lower is better",
    "piqe": "PIQE: 16x16 blocks of normalised luma, artefacts and noise of the active ones "
    "(Venkatanath et al. 2015); lower is better",
}

PATCH = 96
PACKAGED_PARAMETERS = Path(__file__).parent / "weights" / "niqe_refit" / "parameters.npz"

_LUMA_WEIGHTS = (0.299, 0.587, 0.114)
_BLOCK = 16
# Shapes that are tried for the generalised Gaussians, and the moment ratio of each.
_SHAPES = np.arange(200, 10001) / 1000
_RATIOS = np.exp(
    2 * special.gammaln(2 / _SHAPES) - special.gammaln(1 / _SHAPES) - special.gammaln(3 / _SHAPES)
)


class NiqeParameters(NamedTuple):
    """Statistics of clean photographs.

    Attributes:
        mean: of the patches' features, float64 `[36]`.
        covariance: float64 `[36, 36]`.
        source: what they were fitted to, in words.
    """

    mean: np.ndarray
    covariance: np.ndarray
    source: str


def piqe(picture: np.ndarray) -> float:
    """Perception-based quality evaluator: the share of visible blocks that look impaired.

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
        ValueError: not uint8 `[height, width, 3]`.

    References:
        Venkatanath et al., Blind image quality evaluation using perception based features, 2015;
        column choice of the noise test as in MATLAB's `piqe` and pyiqa.
    """
    luma = _luma(picture)
    luma = np.rint(255 * (luma / max(float(luma.max()), 1e-9)))
    luma = np.pad(luma, [(0, -side % _BLOCK) for side in luma.shape], mode="symmetric")
    blocks = _patches(_normalised(luma), _BLOCK)
    variance = blocks.var(axis=(1, 2), ddof=1)
    active = variance > 0.1
    score = _has_even_side(blocks) * (1 - variance) + _is_noisy(blocks, variance) * variance
    return float(100 * (1 + score[active].sum()) / (1 + active.sum()))


def _has_even_side(blocks: np.ndarray) -> np.ndarray:
    sides = np.stack([blocks[:, 0], blocks[:, -1], blocks[:, :, 0], blocks[:, :, -1]], axis=1)
    stretches = np.lib.stride_tricks.sliding_window_view(sides, 6, axis=2)
    return (stretches.std(axis=-1, ddof=1) < 0.1).any(axis=(1, 2))


def _is_noisy(blocks: np.ndarray, variance: np.ndarray) -> np.ndarray:
    # The tenth column is left out of the surround in place of the ninth, as in the published code:
    # the numbers are to be comparable.
    surround = np.delete(blocks, [7, 9], axis=2)
    deviation = np.sqrt(variance)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = blocks[:, :, 7:9].std(axis=(1, 2), ddof=1) / surround.std(axis=(1, 2), ddof=1)
        ratio = np.nan_to_num(ratio, posinf=1e30)
        difference = np.abs(deviation - ratio) / np.maximum(deviation, ratio)
    return deviation > 2 * difference


def niqe(picture: np.ndarray, parameters: NiqeParameters) -> float | None:
    """Distance of a picture's patch statistics from those of clean photographs.

    With mean m and covariance C of 36 features over the patches:
    ``sqrt((m - m0)^T pinv((C + C0) / 2) (m - m0))``.

    Args:
        picture: uint8 `[height, width, 3]`, RGB.
        parameters: of clean photographs, from `fit_niqe` or `load_niqe_parameters`.

    Returns:
        0 or more, lower is better; None where a side is below 96 pixels, or every patch is flat.

    Raises:
        ValueError: not uint8 `[height, width, 3]`.

    References:
        Mittal, Soundararajan and Bovik, Making a completely blind image quality analyzer, 2013,
        equation 10.
    """
    features, _ = _patch_features(picture)
    complete = features[~np.isnan(features).any(axis=1)]
    if not len(complete):
        return None
    mean = np.nanmean(features, axis=0)
    covariance = np.cov(complete, rowvar=False) if len(complete) > 1 else np.zeros((36, 36))
    difference = mean - parameters.mean
    inverse = np.linalg.pinv((covariance + parameters.covariance) / 2)
    return float(np.sqrt(difference @ inverse @ difference))


def fit_niqe(photos: Iterable[np.ndarray], source: str) -> NiqeParameters:
    """Fits NIQE's parameters to clean photographs: the sharp patches of each.

    Patches count where their mean local deviation exceeds 0.75 of the photograph's sharpest.

    Args:
        photos: uint8 `[height, width, 3]` each, RGB; those below 96 pixels are passed over.
        source: what the photographs are, in words.

    Raises:
        ValueError: fewer than 100 sharp patches: the covariance of 36 features needs more.
    """
    kept = []
    for photo in photos:
        features, sharpness = _patch_features(photo)
        if len(features):
            chosen = features[sharpness > 0.75 * sharpness.max()]
            kept.append(chosen[~np.isnan(chosen).any(axis=1)])
    patches = np.concatenate(kept) if kept else np.zeros((0, 36))
    if len(patches) < 100:
        raise ValueError(
            f"{source}: {len(patches)} sharp patches of {PATCH}x{PATCH} pixels, at least 100 are "
            "needed; give more or larger photos"
        )
    return NiqeParameters(
        patches.mean(axis=0),
        np.cov(patches, rowvar=False),
        f"{source}: {len(kept)} photos, {len(patches)} patches",
    )


def save_niqe_parameters(parameters: NiqeParameters, path: Path) -> None:
    """Writes parameters as `.npz`, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part.npz")
    try:
        np.savez(temporary, **parameters._asdict())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load_niqe_parameters(path: Path | None = None) -> NiqeParameters:
    """Reads what `save_niqe_parameters` wrote; by default what ships with the package.

    Raises:
        ValueError: missing or damaged file; the message names it.
    """
    path = Path(path or PACKAGED_PARAMETERS)
    try:
        with np.load(path, allow_pickle=False) as file:
            mean, covariance, source = file["mean"], file["covariance"], str(file["source"])
    except Exception as error:  # numpy and zipfile raise many kinds for damaged files
        raise ValueError(
            f"{path}: no NIQE parameters can be read ({type(error).__name__}); make some with "
            "cotir fit-niqe"
        ) from None
    if mean.shape != (36,) or covariance.shape != (36, 36):
        raise ValueError(f"{path}: expected 36 features, got {mean.shape} and {covariance.shape}")
    return NiqeParameters(mean, covariance, source)


def _patch_features(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """NIQE's 36 features of every patch `[patches, 36]`, and the sharpness of each `[patches]`."""
    luma = np.rint(_luma(picture))
    rows, columns = (side // PATCH for side in luma.shape)
    if not rows * columns:
        return np.zeros((0, 36)), np.zeros(0)
    luma = luma[: rows * PATCH, : columns * PATCH]
    _, deviation = _local_statistics(luma)
    sharpness = _patches(deviation, PATCH).mean(axis=(1, 2))
    fine = _features(_patches(_normalised(luma), PATCH))
    coarse = _features(_patches(_normalised(_halve(luma)), PATCH // 2))
    return np.concatenate([fine, coarse], axis=1), sharpness


def _patches(plane: np.ndarray, size: int) -> np.ndarray:
    """Cuts `[rows * size, columns * size]` into `[rows * columns, size, size]`."""
    rows, columns = (side // size for side in plane.shape)
    blocks = plane.reshape(rows, size, columns, size).transpose(0, 2, 1, 3)
    return blocks.reshape(-1, size, size)


def _features(patches: np.ndarray) -> np.ndarray:
    """Shapes and scales of the values and of products with neighbours, `[patches, 18]`."""
    shape, left, right = _asymmetric_gaussian(patches)
    features = [shape, (left + right) / 2]
    # Neighbours wrap around within the patch, as in the published code.
    for shift in ((0, 1), (1, 0), (1, 1), (1, -1)):
        shape, left, right = _asymmetric_gaussian(patches * np.roll(patches, shift, axis=(1, 2)))
        mean = (right - left) * np.exp(special.gammaln(2 / shape) - special.gammaln(1 / shape))
        features += [shape, mean, left, right]
    return np.stack(features, axis=1)


def _asymmetric_gaussian(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Moment-matched shape, left and right scale of each patch; NaN for flat patches.

    References:
        Lasmar, Stitou and Berthoumieu, Multiscale skewed heavy tailed model, 2009.
    """
    squares = np.square(values)
    with np.errstate(divide="ignore", invalid="ignore"):
        left, right = (
            np.sqrt(np.sum(squares * side, axis=(1, 2)) / np.sum(side, axis=(1, 2)))
            for side in (values < 0, values > 0)
        )
        balance = left / right
        ratio = np.mean(np.abs(values), axis=(1, 2)) ** 2 / np.mean(squares, axis=(1, 2))
        ratio *= (balance**3 + 1) * (balance + 1) / (balance**2 + 1) ** 2
    usable = np.isfinite(ratio)
    # The ratios grow with the shape: the nearer of the two that enclose each.
    above = np.clip(np.searchsorted(_RATIOS, np.where(usable, ratio, 0)), 1, len(_RATIOS) - 1)
    nearer = np.abs(_RATIOS[above - 1] - ratio) <= np.abs(_RATIOS[above] - ratio)
    shape = np.where(usable, _SHAPES[above - nearer], np.nan)
    scale = np.exp((special.gammaln(1 / shape) - special.gammaln(3 / shape)) / 2)
    return shape, left * scale, right * scale


def _normalised(luma: np.ndarray) -> np.ndarray:
    mean, deviation = _local_statistics(luma)
    normalised = (luma - mean) / (deviation + 1)
    # In flat areas rounding errors are left, whose signs would decide NIQE's left and right scale.
    normalised[np.abs(normalised) < 1e-9] = 0
    return normalised


def _local_statistics(luma: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation under a 7x7 Gaussian window of sigma 7/6, edges repeated."""
    mean, mean_square = _window_mean(luma), _window_mean(luma**2)
    return mean, np.sqrt(np.abs(mean_square - mean**2))


def _window_mean(plane: np.ndarray) -> np.ndarray:
    window = _window()
    plane = ndimage.correlate1d(plane, window, axis=0, mode="nearest")
    return ndimage.correlate1d(plane, window, axis=1, mode="nearest")


@functools.cache
def _window() -> np.ndarray:
    offsets = np.arange(-3, 4)
    window = np.exp(-(offsets**2) / (2 * (7 / 6) ** 2))
    return window / window.sum()


def _halve(plane: np.ndarray) -> np.ndarray:
    """Half size under a cubic kernel (a = -0.5) stretched twofold, mirrored edges; even sides."""
    distance = np.abs(np.arange(8) - 3.5) / 2
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    kernel = np.where(distance <= 1, near, far)
    kernel /= kernel.sum()
    for _ in range(2):
        padded = np.pad(plane, ((3, 3), (0, 0)), mode="symmetric")
        count = plane.shape[0] // 2
        taps = [weight * padded[tap::2][:count] for tap, weight in enumerate(kernel)]
        plane = np.sum(taps, axis=0).T
    return plane


def _luma(picture: np.ndarray) -> np.ndarray:
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
        raise ValueError(
            f"picture: got {picture.dtype} {list(picture.shape)}, expected uint8 "
            "[height, width, 3]; convert to 8-bit RGB first"
        )
    return picture.astype(np.float64) @ np.array(_LUMA_WEIGHTS)
