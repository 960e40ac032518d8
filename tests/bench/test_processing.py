"""Lost colour, phones and watermarks against Pillow and closed forms; the table of ranges."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from cotir_jax.bench.composites import SINGLES
from cotir_jax.bench.degradations import SAMPLE
from cotir_jax.bench.degradations.processing import (
    LostColorParams,
    PhoneParams,
    WatermarkParams,
    lost_color,
    smartphone_to_dslr,
    watermark,
    watermark_mask,
)
from cotir_jax.bench.degradations.ranges import RANGES, Range


def _rng(seed=0):
    return np.random.default_rng(seed)


def _flat(colour, height=96, width=128):
    return np.broadcast_to(np.asarray(colour, np.float32), (height, width, 3)).copy()


def test_lost_colour_is_pillows_grey():
    picture = _rng().integers(0, 256, (40, 50, 3), dtype=np.uint8)
    grey = lost_color(picture.astype(np.float32) / 255, LostColorParams(0.0), _rng())
    expected = np.asarray(Image.fromarray(picture).convert("L"), np.float32) / 255
    np.testing.assert_allclose(grey, np.repeat(expected[..., None], 3, axis=2), atol=0.51 / 255)
    half = lost_color(picture.astype(np.float32) / 255, LostColorParams(0.5), _rng())
    np.testing.assert_allclose(half, (grey + picture / 255) / 2, atol=1e-6)


_PHONE = PhoneParams(
    saturation=1.0, contrast=0.0, smear=0.0, halo=0.0, chroma=0.0, quality=95, cast=(1, 1, 1)
)


def test_phone_without_faults_is_jpeg():
    flat = _flat((0.6, 0.4, 0.2))
    np.testing.assert_allclose(smartphone_to_dslr(flat, _PHONE, _rng()), flat, atol=2 / 255)


def test_phone_tone_curve_colour_and_cast():
    grey = smartphone_to_dslr(_flat((0.25,) * 3), replace(_PHONE, contrast=1.0), _rng())
    np.testing.assert_allclose(grey, 3 * 0.25**2 - 2 * 0.25**3, atol=2 / 255)
    dull = smartphone_to_dslr(_flat((0.6, 0.4, 0.2)), replace(_PHONE, saturation=0.5), _rng())
    luma = 0.299 * 0.6 + 0.587 * 0.4 + 0.114 * 0.2
    expected = [luma + 0.5 * (value - luma) for value in (0.6, 0.4, 0.2)]
    np.testing.assert_allclose(dull.mean(axis=(0, 1)), expected, atol=2 / 255)
    warm = smartphone_to_dslr(_flat((0.5,) * 3), replace(_PHONE, cast=(1.1, 1, 0.9)), _rng())
    np.testing.assert_allclose(warm.mean(axis=(0, 1)), [0.55, 0.5, 0.45], atol=2 / 255)


def test_phone_halo_smear_and_blotches():
    edge = _flat((0.3,) * 3)
    edge[:, 64:] = 0.7
    sharpened = smartphone_to_dslr(edge, replace(_PHONE, halo=1.0), _rng())[..., 1]
    assert sharpened.max() > 0.75 and sharpened.min() < 0.25
    grain = np.clip(0.5 + 0.02 * _rng().standard_normal((96, 128, 1)), 0, 1).astype(np.float32)
    texture = np.repeat(grain, 3, axis=2)
    smeared = smartphone_to_dslr(texture, replace(_PHONE, smear=1.0), _rng())
    assert smeared.std() < 0.5 * texture.std()
    blotchy = (
        smartphone_to_dslr(_flat((0.5,) * 3, 256, 256), replace(_PHONE, chroma=8.0), _rng()) * 255
    )
    luma = blotchy @ np.array([0.299, 0.587, 0.114])
    assert luma.std() < 1.5  # colour only
    assert 3 < (blotchy - luma[..., None]).std() < 9


_MARK = WatermarkParams(
    text="SAMPLE 42", layout="line", size=20.0, degrees=0.0, opacity=0.5, colour=(1.0, 0.5, 0.0),
    x=0.5, y=0.5,
)  # fmt: skip


def test_watermark_is_mixed_in_where_it_covers():
    mask = watermark_mask(96, 256, _MARK)
    marked = watermark(_flat((0.2, 0.2, 0.2), 96, 256), _MARK, _rng())
    for channel, colour in enumerate((1.0, 0.5, 0.0)):
        expected = (1 - 0.5 * mask) * 0.2 + 0.5 * mask * colour
        np.testing.assert_allclose(marked[..., channel], expected, atol=1e-6)
    assert mask.min() == 0 and mask.max() == 1


def test_watermark_letters_are_pillows():
    canvas = Image.new("L", (256, 96))
    ImageDraw.Draw(canvas).text((20, 20), "SAMPLE 42", 255, font=ImageFont.load_default(20))
    rows, columns = np.nonzero(np.asarray(canvas))
    expected = np.asarray(canvas)[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    mask = np.rint(watermark_mask(96, 256, _MARK) * 255)
    rows, columns = np.nonzero(mask)
    found = mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    np.testing.assert_array_equal(found, expected)
    assert (rows.min() + rows.max()) / 2 == pytest.approx(48, abs=4)


@pytest.mark.parametrize("layout", ["line", "tiles", "badge", "frame"])
@pytest.mark.parametrize("shape", [(32, 32), (37, 211), (300, 200)])
def test_watermarks_fit_any_picture(layout, shape):
    params = replace(_MARK, layout=layout, text="ALL RIGHTS RESERVED 2026", degrees=30.0, x=0.75)
    mask = watermark_mask(*shape, params)
    assert mask.shape == shape and mask.min() >= 0 and mask.max() <= 1
    assert 0.005 < mask.mean() < 0.5


def test_every_degradation_has_its_ranges():
    assert set(RANGES) == set(SINGLES)
    for severity in (0.0, 0.4, 1.0):
        for name, ranges in RANGES.items():
            for parameter, spread in ranges.items():
                low, high = spread.ends(severity)
                values = [spread.draw(severity, _rng(seed)) for seed in range(50)]
                assert low <= min(values) and max(values) <= high, (name, parameter)


def test_range_is_its_formula():
    assert Range(2.0, 3.0).draw(0.5, _rng()) == 3.5
    assert Range(40, ratio=0.25).draw(0.5, _rng()) == pytest.approx(20)
    assert Range(0.0, 2.0, onset=0.4).draw(0.3, _rng()) == 0
    assert Range(0.0, 2.0, onset=0.4).draw(0.9, _rng()) == pytest.approx(1)
    assert Range(1.0, 1.0, plus=(-1, 1), times=(0.5, 2)).ends(1.0) == (0.5, 6.0)
    draws = [Range(plus=(2, 6)).draw(0.0, _rng(seed)) for seed in range(2000)]
    assert np.mean(draws) == pytest.approx(4, abs=0.1) and min(draws) >= 2 and max(draws) <= 6


def test_samplers_read_the_table(monkeypatch):
    # A table entry that is moved moves what is drawn.
    monkeypatch.setitem(RANGES["over-exposure"], "stops", Range(7.0))
    assert SAMPLE["over-exposure"](0.3, 512, _rng()).stops == 7.0
    monkeypatch.setitem(RANGES["haze"], "density", Range(9.0))
    assert SAMPLE["haze"](0.3, 512, _rng()).density == 9.0


@pytest.mark.parametrize("name", SINGLES)
def test_drawn_numbers_are_within_the_table(name):
    for severity in (0.0, 0.6, 1.0):
        for seed in range(20):
            params = SAMPLE[name](severity, 512, _rng(seed))
            for parameter, spread in RANGES[name].items():
                value = getattr(params, parameter, None)
                # Some are turned into others, rounded, floored or absent in a variant.
                if not isinstance(value, float) or value == 0 or name in ("noise", "motion-blur"):
                    continue
                low, high = spread.ends(severity)
                if (name, parameter) == ("watermark", "size"):
                    low, high = low * 512, high * 512
                assert low - 1e-9 <= value <= high + 1e-9, (parameter, value, low, high)
