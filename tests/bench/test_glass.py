"""Raindrops, reflections and flares against closed forms, scipy's blur and plain geometry."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from cotir_jax.bench.degradations.flare import FlareParams, flare, flare_light
from cotir_jax.bench.degradations.glass import (
    RaindropParams,
    ReflectionParams,
    pane,
    raindrop,
    specular_reflection,
)


def _rng(seed=0):
    return np.random.default_rng(seed)


def _flat(level, height=96, width=96):
    return np.full((height, width, 3), level, np.float32)


def test_no_drops_change_nothing():
    picture = _rng().random((33, 47, 3), dtype=np.float32)
    params = RaindropParams(count=0, radius=10, zoom=3, softness=2)
    np.testing.assert_allclose(raindrop(picture, params, _rng()), picture, atol=1e-5)


def test_drops_cover_their_number_of_disks():
    # Far apart, so that few overlap; the shade makes every drop visible on a flat picture.
    params = RaindropParams(count=40, radius=8, zoom=3, softness=1)
    covered = []
    for seed in range(20):
        wet = raindrop(_flat(0.5, 600, 600), params, _rng(seed))
        covered.append((np.abs(wet - 0.5).max(axis=2) > 1e-3).mean() * 600**2)
    # Radius 8 exp(N(-0.25, 0.5)): mean square 64 exp(-0.5 + 0.5) = 64; stretched 1 to 1.35 times;
    # some is lost beyond the border and to overlaps.
    disks = 40 * math.pi * 64 * 1.175
    assert 0.75 * disks < np.mean(covered) < 1.1 * disks


def test_a_drop_shows_the_scene_upside_down():
    height = width = 240
    down = np.linspace(0.2, 0.8, height, dtype=np.float32)[:, None, None]
    picture = np.broadcast_to(down, (height, width, 3)).copy()
    params = RaindropParams(count=1, radius=25, zoom=3, softness=1)
    for seed in range(8):
        drops = np.abs(raindrop(picture, params, _rng(seed)) - picture).max(axis=2) > 0.01
        rows, columns = np.nonzero(drops)
        if not len(rows) or rows.min() == 0 or rows.max() == height - 1:
            continue
        middle = np.abs(columns - columns.mean()) < 0.3 * np.ptp(columns)
        centre = np.abs(rows - rows.mean()) < 0.3 * np.ptp(rows)
        inside = rows[middle & centre], columns[middle & centre]
        wet = raindrop(picture, params, _rng(seed))[..., 2]
        # The wide lens turns a rise of brightness downwards into a steeper fall.
        slope = np.polyfit(inside[0], wet[inside], 1)[0]
        assert slope < -0.5 / height
        return
    pytest.fail("no drop lay wholly inside")


def test_pane_mixes_light():
    params = ReflectionParams("window", share=0.3, blur=2.0, ghost=5.0)
    mixed = pane(_flat(0.5), _flat(0.9), params, 1.0)
    expected = (0.7 * 0.5**2.2 + 0.3 * 0.9**2.2) ** (1 / 2.2)
    np.testing.assert_allclose(mixed, expected, rtol=1e-5)


def test_pane_reflects_twice_and_blurred():
    spot = _flat(0.0)
    spot[48, 40] = 1
    params = ReflectionParams("window", share=0.5, blur=2.0, ghost=6.0)
    light = pane(_flat(0.0), spot, params, 0.0)[..., 1] ** 2.2
    twice = np.zeros((96, 96))
    twice[48, 40], twice[48, 34] = 0.65, 0.35
    expected = 0.5 * ndimage.gaussian_filter(twice, 2.0)
    np.testing.assert_allclose(light, expected, atol=1e-5)


def test_window_shows_the_second_photo_or_the_picture_mirrored():
    params = ReflectionParams("window", share=0.4, blur=0.5, ghost=0.0)
    second = np.zeros((50, 70, 3), np.uint8)
    second[..., 0] = 255
    red = specular_reflection(_flat(0.2), replace(params, second=second), _rng())
    assert red[..., 0].min() > 0.6 and np.ptp(red[..., 1]) < 1e-3
    halves = _flat(0.0)
    halves[:, :48] = 1
    own = specular_reflection(halves, params, _rng())[:, 60:, 0]
    assert own.max() > 0.5  # the bright left half shows on the right


def test_highlights_only_add_nearly_white_light_where_the_picture_is_bright():
    params = ReflectionParams("highlights", count=20, radius=4, gain=0.8)
    picture = _flat(0.2, 128, 128)
    picture[:, 64:] = 0.5
    added = specular_reflection(picture, params, _rng(1)) ** 2.2 - picture**2.2
    assert added.min() > -1e-5 and added.max() > 0.5
    assert added[:, 70:].sum() > 5 * added[:, :58].sum()
    colour = added[added[..., 1] > 0.1]
    unclipped = colour[colour.max(axis=1) < 0.7]
    assert np.abs(unclipped / unclipped[:, 1:2] - 1).max() < 0.1
    none = specular_reflection(picture, replace(params, gain=0.0), _rng(1))
    np.testing.assert_allclose(none, picture, atol=1e-6)


_FLARE = FlareParams(
    x=0.25, y=0.4, gain=0.5, glow=12.0, streaks=0, streak=60.0, degrees=20.0, ghosts=0, ghost=0.2,
    ring=0.0, colour=(1.0, 0.9, 0.7),
)  # fmt: skip


def test_flare_adds_in_linear_light():
    stray = flare_light(120, 160, _FLARE, _rng(3))
    assert stray.shape == (120, 160, 3) and stray.min() >= 0
    lit = flare(_flat(0.4, 120, 160), _FLARE, _rng(3))
    expected = np.minimum(0.4**2.2 + stray, 1) ** (1 / 2.2)
    np.testing.assert_allclose(lit, expected, rtol=1e-4)
    dimmer = flare_light(120, 160, replace(_FLARE, gain=0.25), _rng(3))
    np.testing.assert_allclose(2 * dimmer, stray, rtol=1e-5)
    np.testing.assert_allclose(stray[..., 2] / stray[..., 0], 0.7, rtol=1e-5)


def test_flare_is_brightest_at_its_source_and_falls_off():
    stray = flare_light(120, 160, _FLARE, _rng())[..., 0]
    row, column = np.unravel_index(stray.argmax(), stray.shape)
    assert abs(row - 0.4 * 119) < 1 and abs(column - 0.25 * 159) < 1
    y, x = np.mgrid[0:120, 0:160]
    distance = np.hypot(y - 0.4 * 119, x - 0.25 * 159)
    rings = [stray[(distance >= r) & (distance < r + 5)].mean() for r in range(0, 80, 5)]
    assert all(a > b for a, b in zip(rings, rings[1:], strict=False))


def test_streaks_lie_along_their_angle():
    params = replace(_FLARE, x=0.5, y=0.5, streaks=2)
    light = (
        flare_light(161, 161, params, _rng())
        - flare_light(161, 161, replace(params, streaks=0), _rng())
    )[..., 0]
    y, x = np.mgrid[-80:81, -80:81]
    moments = [float((light * v).sum()) for v in (x * x, y * y, x * y)]
    axis = math.degrees(0.5 * math.atan2(2 * moments[2], moments[0] - moments[1]))
    assert axis == pytest.approx(20, abs=1.5)


def test_ghosts_lie_on_the_line_through_the_centre():
    with_ghosts = flare_light(200, 200, replace(_FLARE, ghosts=6), _rng(4))
    ghosts = (with_ghosts - flare_light(200, 200, _FLARE, _rng(4))).sum(axis=2)
    rows, columns = np.nonzero(ghosts > 1e-3)
    assert len(rows) > 200
    source, centre = np.array([0.4 * 199, 0.25 * 199]), np.array([100.0, 100.0])
    along = (centre - source) / np.linalg.norm(centre - source)
    offset = np.stack([rows, columns], axis=1) - centre
    across = np.abs(offset[:, 0] * along[1] - offset[:, 1] * along[0])
    assert across.max() < 0.1 * 200


def test_ring_is_a_rainbow_red_outside():
    params = replace(_FLARE, x=0.5, y=0.5, ring=50.0)
    ring = flare_light(201, 201, params, _rng()) - flare_light(
        201, 201, replace(params, ring=0.0), _rng()
    )
    profile = ring[100, 100:]
    peaks = profile.argmax(axis=0)
    np.testing.assert_allclose(peaks, [50, 48, 46], atol=1)
