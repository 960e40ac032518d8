"""Degradations against their closed formulas, scipy's direct convolution, and Pillow."""

import inspect
import io
import math

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from cotir_jax.bench.composites import (
    COMPOSITES,
    SINGLES,
    Step,
    apply_chain,
    folder_name,
    parts_of,
    sample_chain,
)
from cotir_jax.bench.degradations import APPLY, SAMPLE
from cotir_jax.bench.degradations.filters import capsule_kernel, convolve, scatter
from cotir_jax.bench.degradations.light import LowLightParams, low_light
from cotir_jax.bench.degradations.ranges import RANGES
from cotir_jax.bench.degradations.sensor import (
    DefocusBlurParams,
    JpegParams,
    LowResolutionParams,
    MotionBlurParams,
    NoiseParams,
    defocus_blur,
    disk_kernel,
    jpeg_compression,
    low_resolution,
    motion_blur,
    motion_kernel,
    noise,
)
from cotir_jax.bench.degradations.weather import (
    RainParams,
    SnowParams,
    depth_from_picture,
    haze_over_depth,
    rain_streak,
    snow,
)
from cotir_jax.bench.words.table import WORDS, plain_name


def _rng(seed=0):
    return np.random.default_rng(seed)


def _picture(height=64, width=80, seed=0):
    """Smooth shapes with edges: noise blurred, then one hard step."""
    rough = _rng(seed).random((height, width, 3))
    smooth = ndimage.gaussian_filter(rough, (3, 3, 0))
    smooth = (smooth - smooth.min()) / (smooth.max() - smooth.min())
    smooth[:, width // 2 :] *= 0.5
    return smooth.astype(np.float32)


@pytest.mark.parametrize("name", SINGLES)
def test_every_degradation_is_pure_bounded_and_seeded(name):
    picture = _picture(37, 53)
    before = picture.copy()
    for severity in (0.0, 0.5, 1.0):
        params = SAMPLE[name](severity, 37, _rng(1))
        first = APPLY[name](picture, params, _rng(2))
        again = APPLY[name](picture, params, _rng(2))
        assert first.shape == picture.shape and first.dtype == np.float32
        assert np.isfinite(first).all() and first.min() >= 0 and first.max() <= 1
        np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(picture, before)


@pytest.mark.parametrize("name", SINGLES)
def test_severity_makes_it_worse(name):
    picture = _picture(96, 96)
    errors = []
    for severity in (0.05, 0.5, 0.95):
        total = 0.0
        for seed in range(12):
            rng = _rng(seed)
            degraded = APPLY[name](picture, SAMPLE[name](severity, 96, rng), rng)
            total += float(((degraded - picture) ** 2).mean())
        errors.append(total)
    assert errors[0] < errors[1] < errors[2]


@pytest.mark.parametrize("name", ["defocus-blur", "motion-blur", "rain-streak", "snow"])
def test_sizes_grow_with_the_picture(name):
    small, large = (SAMPLE[name](0.8, side, _rng()) for side in (512, 1024))
    field = "length" if hasattr(small, "length") else "radius"
    assert getattr(large, field) == pytest.approx(2 * getattr(small, field))


def test_haze_over_constant_depth():
    depth = np.full((64, 80), 0.7, np.float32)
    hazy = haze_over_depth(_picture(), depth, 1.3, (0.9, 0.8, 0.7))
    transmission = math.exp(-1.3 * 0.7)
    for channel, airlight in enumerate((0.9, 0.8, 0.7)):
        expected = _picture()[..., channel] * transmission + airlight * (1 - transmission)
        np.testing.assert_allclose(hazy[..., channel], expected, atol=1e-6)


def test_depth_rises_upwards_and_jumps_at_an_edge():
    picture = np.full((96, 96, 3), 0.2, np.float32)
    picture[:, 48:] = 0.9
    depth = depth_from_picture(picture, 1.0, 0.0, _rng())
    assert depth.min() >= 0.1 and depth.max() <= 1
    assert depth[:24].mean() > depth[-24:].mean() + 0.3
    slope = np.abs(np.diff(depth, axis=1)).mean(axis=0)
    assert slope.argmax() == 47 and slope[47] > 20 * np.median(slope)


def test_low_light_of_a_flat_picture_is_a_power():
    flat = np.full((40, 40, 3), 0.6, np.float32)
    dark = low_light(flat, LowLightParams(gamma=2.2, exposure=0.8), _rng())
    np.testing.assert_allclose(dark, 0.8 * 0.6**2.2, rtol=1e-4)


def test_low_light_is_monotone_in_gamma_and_exposure():
    last = _picture() + 1e-6
    for gamma, exposure in ((1.0, 1.0), (1.5, 1.0), (2.5, 1.0), (2.5, 0.6)):
        dark = low_light(_picture(), LowLightParams(gamma, exposure), _rng())
        assert (dark <= last).all()
        last = dark
    assert last.mean() < 0.5 * _picture().mean()


@pytest.mark.parametrize("size", [3, 9, 31])
def test_convolution_is_scipys_direct_one(size):
    kernel = _rng(1).random((size, size)).astype(np.float32)
    kernel /= kernel.sum()
    expected = ndimage.convolve(_picture()[..., 0], kernel, mode="reflect")
    np.testing.assert_allclose(convolve(_picture(), kernel)[..., 0], expected, atol=2e-6)


@pytest.mark.parametrize("bend", [0.0, 1.0])
def test_blurred_impulse_is_the_kernel_in_linear_light(bend):
    impulse = np.zeros((65, 65, 3), np.float32)
    impulse[32, 32] = 1
    params = MotionBlurParams(length=14, degrees=25, bend=bend)
    kernel = motion_kernel(params, _rng(3))
    spread = motion_blur(impulse, params, _rng(3))[..., 1] ** 2.2
    half = kernel.shape[0] // 2
    window = spread[32 - half : 33 + half, 32 - half : 33 + half]
    np.testing.assert_allclose(window, kernel, atol=2e-4)
    assert spread.sum() == pytest.approx(1, abs=0.02) and kernel.sum() == pytest.approx(1)
    disk = defocus_blur(impulse, DefocusBlurParams(radius=3.5), _rng())[..., 0] ** 2.2
    np.testing.assert_allclose(disk[28:37, 28:37], _centre(disk_kernel(3.5), 9), atol=2e-4)


def _centre(kernel, size):
    cut = (kernel.shape[0] - size) // 2
    return kernel[cut : cut + size, cut : cut + size]


def test_motion_kernel_has_the_length_and_direction_asked_for():
    for degrees in (0, 35, 90):
        kernel = motion_kernel(MotionBlurParams(20, degrees, 0.0), _rng())
        half = kernel.shape[0] // 2
        y, x = np.mgrid[-half : half + 1, -half : half + 1]
        centre = float((kernel * x).sum()), float((kernel * y).sum())
        assert centre == pytest.approx((0, 0), abs=1e-3)
        xx, yy, xy = (float((kernel * v).sum()) for v in (x * x, y * y, x * y))
        # A uniform segment of length L has variance L^2 / 12; bilinear spread adds under 1/4.
        assert math.sqrt(12 * (xx + yy)) == pytest.approx(20, abs=0.8)
        axis = math.degrees(0.5 * math.atan2(-2 * xy, xx - yy)) % 180
        assert min(abs(axis - degrees), 180 - abs(axis - degrees)) < 1


@pytest.mark.parametrize("radius", [2.0, 5.5])
def test_disk_has_the_area_of_a_circle(radius):
    area = capsule_kernel(0.0, 0.0, radius, 1.0).sum()
    assert area == pytest.approx(math.pi * radius**2, rel=0.05)
    assert disk_kernel(radius).sum() == pytest.approx(1)


def test_gaussian_noise_has_its_sigma():
    flat = np.full((300, 300, 3), 0.5, np.float32)
    grain = noise(flat, NoiseParams("gaussian", sigma=0.1), _rng()) - flat
    assert grain.mean() == pytest.approx(0, abs=1e-3)
    assert grain.std() == pytest.approx(0.1, rel=0.01)
    grey = noise(flat, NoiseParams("gaussian", sigma=0.1, grey=True), _rng())
    np.testing.assert_array_equal(grey[..., 0], grey[..., 2])
    assert not np.array_equal(grain[..., 0], grain[..., 2])


@pytest.mark.parametrize("level", [0.1, 0.4])
def test_photon_noise_variance_is_brightness_over_photons(level):
    flat = np.full((300, 300, 3), level, np.float32)
    grain = noise(flat, NoiseParams("poisson", photons=80), _rng())
    assert grain.mean() == pytest.approx(level, rel=0.01)
    assert grain.var() == pytest.approx(level / 80, rel=0.02)


def test_low_resolution_keeps_slow_waves_and_loses_fast_ones():
    x = np.arange(256)
    params = LowResolutionParams(factor=4.0, down="BICUBIC", up="BICUBIC")
    for period, low, high in ((64, 0.95, 1.02), (3, 0.0, 0.1)):
        wave = np.tile(0.5 + 0.4 * np.sin(2 * np.pi * x / period), (256, 1))
        picture = np.repeat(wave[..., None], 3, axis=2).astype(np.float32)
        kept = low_resolution(picture, params, _rng())[20:-20, 20:-20].std()
        assert low <= kept / picture[20:-20, 20:-20].std() <= high


@pytest.mark.parametrize("half_colour", [True, False])
def test_jpeg_is_pillows(half_colour):
    picture = np.rint(_picture() * 255).astype(np.uint8)
    stream = io.BytesIO()
    subsampling = "4:2:0" if half_colour else "4:4:4"
    Image.fromarray(picture).save(stream, "JPEG", quality=17, subsampling=subsampling)
    chain = [Step("jpeg-compression", JpegParams(17, half_colour), 0.5)]
    np.testing.assert_array_equal(
        apply_chain(picture, chain, _rng()), np.asarray(Image.open(stream))
    )
    degraded = jpeg_compression(picture.astype(np.float32) / 255, JpegParams(95, False), _rng())
    assert np.abs(degraded * 255 - picture).mean() < 2


def test_rain_only_adds_light_and_lies_along_its_angle():
    dark = np.full((160, 160, 3), 0.1, np.float32)
    for degrees in (0, 30):
        params = RainParams(150, 24, 0.5, degrees, opacity=0.5, veil=0.0)
        streaks = (rain_streak(dark, params, _rng()) - dark)[..., 0]
        assert streaks.min() > -1e-5 and 0.3 < streaks.max() <= 0.5 + 1e-5
        # The spectrum of lines is widest across them.
        power = np.abs(np.fft.fftshift(np.fft.fft2(streaks - streaks.mean()))) ** 2
        y, x = np.mgrid[-80:80, -80:80]
        moments = [float((power * v).sum()) for v in (x * x, y * y, x * y)]
        across = math.degrees(0.5 * math.atan2(2 * moments[2], moments[0] - moments[1]))
        assert across == pytest.approx(-degrees, abs=4)


def test_snow_covers_towards_its_light():
    params = SnowParams(300, 2.0, 10, 1.0, opacity=0.9, whitening=0.0)
    snowy = snow(_picture(), params, _rng())
    assert (snowy >= _picture() - 1e-5).all()
    white = np.ones((64, 80, 3), np.float32)
    np.testing.assert_allclose(snow(white, params, _rng()), 1, atol=1e-6)


def test_scatter_covers_borders_like_the_middle():
    kernel = capsule_kernel(16.0, 0.0, 1.0, 1.0)
    cover = sum(scatter(96, 96, 60, kernel, 0.5, _rng(seed)) for seed in range(150))
    expected = 150 * 60 / 96**2 * 0.75 * kernel.sum()
    assert cover[:8].mean() == pytest.approx(expected, rel=0.08)
    assert cover[44:52].mean() == pytest.approx(expected, rel=0.08)


def test_composites_follow_the_light():
    assert len(set(COMPOSITES)) == len(COMPOSITES)
    for name in COMPOSITES:
        assert "+".join(parts_of(name)) == name and 2 <= len(parts_of(name)) <= 4
        chain = sample_chain(name, 64, _rng())
        names = [step.name for step in chain]
        assert names == sorted(names, key=SINGLES.index)
        assert [step.name for step in chain if not step.implied] == parts_of(name)
        assert "noise" in names or "low-light" not in names
    assert parts_of("jpeg-compression+haze+low-light") == ["low-light", "haze", "jpeg-compression"]
    for wrong in ("fog", "haze+haze", ""):
        with pytest.raises(ValueError, match="join any of"):
            parts_of(wrong)


def test_folder_names():
    assert folder_name("low-light+haze") == "low-light_haze"
    assert folder_name("Rain Streak/2.b") == "rain_streak_2.b"


def test_haze_in_the_dark_is_dark():
    night = sample_chain("low-light+haze", 64, _rng(5), severity=0.9)[1].params
    day = sample_chain("haze", 64, _rng(5), severity=0.9)[0].params
    assert max(night.airlight) < 0.6 * min(day.airlight)


@pytest.mark.parametrize(
    ("name", "field"),
    [("non-homogeneous-haze", "airlight"), ("underwater", "backscatter"), ("snow", "light")],
)
def test_whatever_hangs_in_the_air_is_dark_at_night(name, field):
    night = sample_chain(f"low-light+{name}", 64, _rng(5), severity=0.9)[1].params
    day = sample_chain(name, 64, _rng(5), severity=0.9)[0].params
    assert np.max(getattr(night, field)) < 0.6 * np.min(getattr(day, field))


def test_every_degradation_has_words():
    assert tuple(WORDS) == tuple(APPLY) == tuple(SAMPLE) == tuple(RANGES)
    for name in APPLY:
        assert APPLY[name].__name__ == name.replace("-", "_")
        drawn = SAMPLE[name](0.5, 64, _rng())
        assert type(drawn) is inspect.get_annotations(APPLY[name])["params"]
    assert len({words.plain for words in WORDS.values()}) == len(WORDS)
    assert plain_name("low-light+lost_color") == "low light + lost colour"
    assert plain_name("Low Light+x") == "Low Light + x"  # foreign names stay as they are
