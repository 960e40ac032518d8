"""Shadow, water, patchy haze and over-exposure against values worked out by hand."""

import math

import numpy as np
import pytest

from cotir_jax.bench.degradations.light import ShadowParams, shadow, shadow_mask
from cotir_jax.bench.degradations.sensor import ExposureParams, over_exposure
from cotir_jax.bench.degradations.water import (
    JERLOV,
    UnderwaterParams,
    underwater,
    water_over_distance,
)
from cotir_jax.bench.degradations.weather import (
    HazeParams,
    NonHomogeneousHazeParams,
    depth_from_nearness,
    haze,
    non_homogeneous_haze,
)


def _rng(seed=0):
    return np.random.default_rng(seed)


def _flat(level, height=64, width=80):
    return np.full((height, width, 3), level, np.float32)


@pytest.mark.parametrize(("level", "stops"), [(0.25, 1.0), (0.5, 0.5), (0.3, 2.0)])
def test_over_exposure_multiplies_light(level, stops):
    bright = over_exposure(_flat(level), ExposureParams(stops), _rng())
    expected = min(level * 2 ** (stops / 2.2), 1)
    np.testing.assert_allclose(bright, expected, rtol=1e-5)
    assert (over_exposure(_flat(0.9), ExposureParams(1.0), _rng()) == 1).all()


@pytest.mark.parametrize("kind", ["building", "object", "foliage", "bars"])
def test_shadow_mask_covers_its_share(kind):
    params = ShadowParams(kind, cover=0.3, ambient=0.3, blue=0.0, softness=2.0)
    mask = shadow_mask(257, 301, params, _rng(2))
    assert mask.shape == (257, 301) and mask.min() >= 0 and mask.max() > 0.95
    assert mask.mean() == pytest.approx(0.3, abs=0.04)


def test_shadow_scales_light_per_channel():
    params = ShadowParams("building", cover=0.4, ambient=0.2, blue=0.5, softness=1.0)
    dark = shadow(_flat(0.6), params, _rng(1))
    mask = shadow_mask(64, 80, params, _rng(1))
    umbra, lit = mask == mask.max(), mask == mask.min()
    # 20 % of the red light is left, 25 % of the green, 30 % of the blue.
    for channel, left in enumerate((0.2, 0.25, 0.3)):
        expected = 0.6 * (1 - mask.max() * (1 - left)) ** (1 / 2.2)
        np.testing.assert_allclose(dark[..., channel][umbra], expected, rtol=1e-4)
        np.testing.assert_allclose(dark[..., channel][lit], 0.6, atol=1e-3)
    assert mask.max() > 0.98


def test_shadow_is_soft_over_its_penumbra():
    widths = []
    for softness in (4.0, 16.0):
        params = ShadowParams("building", cover=0.5, ambient=0.2, blue=0.0, softness=softness)
        mask = shadow_mask(400, 400, params, _rng(3))
        # A blurred edge of height 1 has slope 1 / (sigma sqrt(2 pi)) at most.
        widths.append(1 / (np.hypot(*np.gradient(mask)).max() * math.sqrt(2 * math.pi)))
    np.testing.assert_allclose(widths, [4, 16], rtol=0.15)


def test_jerlov_table_is_that_of_1976():
    # Percent of daylight left after 10 m of type I: red 9.5, green 65, blue 83 (K of the table).
    left = [math.exp(-10 * k) for k in JERLOV["I"]]
    np.testing.assert_allclose(left, [0.095, 0.65, 0.83], atol=0.005)
    assert JERLOV["III"] == (0.295, 0.116, 0.135) and JERLOV["9C"] == (0.60, 0.78, 1.6)
    # The clearest oceans pass blue best, coasts green, the murkiest red.
    best = {name: int(np.argmin(values)) for name, values in JERLOV.items()}
    assert best["I"] == best["II"] == 2 and best["3C"] == 1 and best["9C"] == 0
    means = [np.mean(values) for values in JERLOV.values()]
    assert means == sorted(means)


def test_water_over_a_constant_distance():
    params = UnderwaterParams("3C", distance=2.0, below=1.5, backscatter=0.5)
    metres = np.full((64, 80), 2.0, np.float32)
    wet = water_over_distance(_flat(0.7), metres, params)
    red, green, blue = 0.33, 0.20, 0.39
    for channel, k in enumerate((red, green, blue)):
        transmission = math.exp(-2 * k)
        veil = 0.5 * green / k
        light = 0.7**2.2 * transmission + veil * (1 - transmission)
        exposed = light * math.exp(-1.5 * k) / math.exp(-1.5 * green)
        np.testing.assert_allclose(wet[..., channel], exposed ** (1 / 2.2), rtol=1e-5)


def test_no_water_changes_nothing_and_endless_water_has_its_own_colour():
    params = UnderwaterParams("II", distance=1.0, below=0.0, backscatter=0.4)
    near = water_over_distance(_flat(0.7), np.zeros((64, 80), np.float32), params)
    np.testing.assert_allclose(near, 0.7, rtol=1e-5)
    far = water_over_distance(_flat(0.7), np.full((64, 80), 1e3, np.float32), params)
    expected = (0.4 * np.array([0.068 / 0.26, 0.068 / 0.076, 1])) ** (1 / 2.2)
    np.testing.assert_allclose(far[0, 0], expected, rtol=1e-5)


def test_a_depth_map_replaces_the_made_up_depth():
    nearness = np.zeros((64, 80), np.float32)
    nearness[:, 40:] = 1  # the right half is near
    depth = depth_from_nearness(_flat(0.5), nearness)
    np.testing.assert_allclose(depth[:, :40], 1.0)
    np.testing.assert_allclose(depth[:, 40:], 0.1, atol=1e-6)
    hazy = haze(_flat(0.2), HazeParams(1.5, (0.9,) * 3, 1.0, 0.0, depth=nearness), _rng())
    for half, distance in ((np.s_[:, :40], 1.0), (np.s_[:, 40:], 0.1)):
        expected = 0.9 - 0.7 * math.exp(-1.5 * distance)
        np.testing.assert_allclose(hazy[half], expected, rtol=1e-5)
    water = UnderwaterParams("I", 10.0, 0.0, 0.0, depth=nearness)
    wet = underwater(_flat(0.5), water, _rng())
    red = 0.5 * math.exp(-10 * 0.235 / 2.2)
    np.testing.assert_allclose(wet[:, :40, 0], red, rtol=1e-4)
    with pytest.raises(ValueError, match="cut and resize it like the picture"):
        haze(_flat(0.2), HazeParams(1, (0.9,) * 3, 1, 0, depth=nearness[:50]), _rng())


def test_patchy_haze_without_patches_is_even():
    level = np.full((64, 80), 0.5, np.float32)
    params = NonHomogeneousHazeParams(1.8, (0.9, 0.8, 0.7), patchiness=0.0, patch=30.0, depth=level)
    hazy = non_homogeneous_haze(_flat(0.3), params, _rng())
    # A level depth map counts as near: depth 0.1, of which the air adds 0.4 + 0.6 depth.
    transmission = math.exp(-1.8 * (0.4 + 0.6 * 0.1))
    for channel, airlight in enumerate((0.9, 0.8, 0.7)):
        expected = 0.3 * transmission + airlight * (1 - transmission)
        np.testing.assert_allclose(hazy[..., channel], expected, rtol=1e-5)


def test_patchy_haze_swings_about_its_density():
    level = np.full((256, 256), 0.5, np.float32)
    params = NonHomogeneousHazeParams(1.0, (1.0,) * 3, patchiness=0.9, patch=80.0, depth=level)
    hazy = non_homogeneous_haze(_flat(0.0, 256, 256), params, _rng(5))[..., 0]
    density = -np.log(1 - hazy) / 0.46
    assert density.mean() == pytest.approx(1.0, abs=0.1)
    assert density.min() < 0.4 and density.max() > 1.6
    # Patches, not grain: neighbours are alike.
    assert np.abs(np.diff(density, axis=0)).mean() < 0.1 * density.std()
