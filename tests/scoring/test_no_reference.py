"""PIQE against pyiqa's figures and values worked out by hand."""

import io

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from skimage import data

from cotir_jax.scoring import no_reference

# pyiqa 0.1.15.post2 on the pictures of `_picture`.
PYIQA = {
    "astronaut": 33.75864791870117,
    "posterised": 65.04241943359375,
    "noisy": 50.350791931152344,
    "chelsea": 33.44591522216797,
    "jpeg": 61.8344841003418,
    "small": 28.475120544433594,
}


def _picture(name):
    photo = data.astronaut()
    if name == "posterised":
        return photo // 32 * 32
    if name == "noisy":
        return _noisy(photo, 20)
    if name == "chelsea":
        return data.chelsea()[:288, :448]
    if name == "jpeg":
        return _jpeg(data.coffee(), 10)[:400, :592]
    return photo[:128, :128] if name == "small" else photo


def _noisy(photo, deviation):
    noise = np.random.default_rng(0).normal(0, deviation, photo.shape)
    return np.clip(photo + noise, 0, 255).astype(np.uint8)


def _jpeg(photo, quality):
    stream = io.BytesIO()
    Image.fromarray(photo).save(stream, "JPEG", quality=quality)
    return np.array(Image.open(stream).convert("RGB"))


@pytest.mark.parametrize("name", PYIQA)
def test_figures_of_pyiqa(name):
    # pyiqa decides in float32 whether a block is above a threshold.
    assert no_reference.piqe(_picture(name)) == pytest.approx(PYIQA[name], abs=5e-3)


def test_piqe_pads_to_whole_blocks():
    """Mirroring by hand to whole blocks changes nothing."""
    photo = data.chelsea()[:299, :401]
    padded = np.pad(photo, ((0, 5), (0, 15), (0, 0)), mode="symmetric")
    piqe = no_reference.piqe
    assert piqe(photo) == pytest.approx(piqe(padded), abs=2)  # the border's windows differ
    assert piqe(photo) != piqe(photo[:288, :400])


@pytest.mark.parametrize("shape", [(1, 1), (16, 16), (40, 33)])
@pytest.mark.parametrize("value", [0, 130, 255])
def test_piqe_of_a_flat_picture_is_the_worst(shape, value):
    flat = np.full((*shape, 3), value, np.uint8)
    assert no_reference.piqe(flat) == 100


def test_piqe_of_white_noise_by_hand():
    """Every block is active and noisy, none has an even side: 100 (1 + sum of variances) / (1 + n).

    The normalised variance of independent noise v is that of (x - weighted mean) / (sd + 1).
    """
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 1), np.uint8).repeat(3, 2)
    luma = noise[..., 0].astype(float) * 255 / noise.max()
    mean = ndimage.gaussian_filter(np.rint(luma), 7 / 6, radius=3, mode="nearest")
    square = ndimage.gaussian_filter(np.rint(luma) ** 2, 7 / 6, radius=3, mode="nearest")
    normalised = (np.rint(luma) - mean) / (np.sqrt(square - mean**2) + 1)
    variances = [
        normalised[row : row + 16, column : column + 16].var(ddof=1)
        for row in range(0, 64, 16)
        for column in range(0, 64, 16)
    ]
    expected = 100 * (1 + sum(variances)) / (1 + len(variances))
    assert no_reference.piqe(noise) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("picture", [np.zeros((20, 20), np.uint8), np.zeros((20, 20, 3))])
def test_bad_pictures_are_named(picture):
    with pytest.raises(ValueError, match="expected a uint8 picture"):
        no_reference.piqe(picture)
