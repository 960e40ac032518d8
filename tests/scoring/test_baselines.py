"""Classical restorers: each undoes what it is for, and none changes shape or depends on luck."""

import numpy as np
import pytest
from scipy import ndimage
from skimage import color, data
from skimage.metrics import peak_signal_noise_ratio as psnr

from cotir_jax.scoring import baselines

NEED_WAVELETS = {"wavelet"}


def _function(name):
    if name in NEED_WAVELETS:
        pytest.importorskip("pywt", reason="PyWavelets is not installed")
    return baselines.baseline(name)


@pytest.fixture
def photo():
    return data.chelsea()[40:200, 60:260]


@pytest.mark.parametrize("name", baselines.BASELINES)
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (40, 1), (33, 65)])
def test_any_picture_keeps_its_shape(name, shape):
    function = _function(name)
    random = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    for picture in (random, np.zeros_like(random), np.full_like(random, 255)):
        before = picture.copy()
        restored = function(picture)
        assert restored.shape == picture.shape and restored.dtype == np.uint8
        np.testing.assert_array_equal(picture, before)
        np.testing.assert_array_equal(function(picture), restored)


@pytest.mark.parametrize(("name", "gain"), [("non-local-means", 4.0), ("wavelet", 3.0)])
def test_denoisers_denoise(name, gain, photo):
    noise = np.random.default_rng(0).normal(0, 25, photo.shape)
    noisy = np.clip(photo + noise, 0, 255).astype(np.uint8)
    assert psnr(photo, _function(name)(noisy)) > psnr(photo, noisy) + gain
    # A clean photo is left nearly alone.
    assert psnr(photo, _function(name)(photo)) > 32


def test_noise_is_measured():
    grey = np.full((300, 300, 3), 0.5, np.float32)
    noise = np.random.default_rng(0).normal(0, 0.08, grey.shape).astype(np.float32)
    assert baselines._noise(grey + noise) == pytest.approx(0.08, rel=0.02)


def test_dark_channel_removes_haze_of_known_density():
    """I = J t + A (1 - t) with constant t: He's method finds t and A where shadows are dark."""
    photo = data.astronaut()[:, :400]
    image = photo / 255.0
    airlight, transmission = np.array([0.92, 0.93, 0.95]), 0.45
    image[:20, :60] = 1.0  # a place as bright as the air light
    hazy = image * transmission + airlight * (1 - transmission)
    hazy[:20, :60] = airlight
    restored = baselines.dark_channel(np.rint(hazy * 255).astype(np.uint8))
    inside = (slice(30, None), slice(None))
    before, after = np.rint(hazy * 255).astype(np.uint8)[inside], restored[inside]
    assert psnr(photo[inside], after) > psnr(photo[inside], before) + 4


def test_unsharp_by_its_formula(photo):
    image = photo / 255.0
    blurred = ndimage.gaussian_filter(image, (2, 2, 0), mode="reflect")
    expected = np.rint(np.clip(2 * image - blurred, 0, 1) * 255)
    assert np.abs(baselines.unsharp(photo) - expected).max() <= 1


def test_equalisers_spread_brightness_and_keep_hue(photo):
    dark = (photo * 0.25).astype(np.uint8)
    for function in (baselines.histogram_equalisation, baselines.clahe):
        spread = function(dark)
        value = color.rgb2hsv(spread)[..., 2]
        assert np.ptp(value) > 2.5 * np.ptp(color.rgb2hsv(dark)[..., 2])
        bright = spread.min(axis=2) > 60
        hue = [color.rgb2hsv(x)[..., 0][bright] * 2 * np.pi for x in (dark, spread)]
        assert np.median(np.abs(np.angle(np.exp(1j * (hue[0] - hue[1]))))) < 0.06
    values = np.sort(color.rgb2hsv(baselines.histogram_equalisation(dark))[..., 2].ravel())
    uniform = np.linspace(0, 1, len(values))
    assert np.abs(values - uniform).max() < 0.08


def test_input_is_unchanged_and_names_are_checked(photo):
    np.testing.assert_array_equal(baselines.baseline("input")(photo), photo)
    with pytest.raises(ValueError, match="'magic'; there are input, non-local-means"):
        baselines.baseline("magic")


def test_wavelet_without_pywavelets(monkeypatch, photo):
    def missing(*_args, **_options):
        raise ImportError("PyWavelets is not installed")

    monkeypatch.setattr(baselines.restoration, "denoise_wavelet", missing)
    with pytest.raises(ValueError, match="pip install PyWavelets"):
        baselines.wavelet(photo)
