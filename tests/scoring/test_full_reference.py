"""Image metrics against pyiqa's own figures, scikit-image and pytorch-msssim."""

import math

import numpy as np
import pytest
from scipy.signal import convolve2d
from skimage import data
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from cotir_jax.scoring import full_reference

SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)

# pyiqa 0.1.15.post2 on the pictures of `_pyiqa_pair`: psnr, ssim, ms_ssim.
PYIQA = {
    "posterised": (23.734033584594727, 0.8659032886892801, 0.9734173463216581),
    "shifted, odd sides": (24.572616577148438, 0.6404755786059146, 0.8755974944963566),
    "negative": (3.8640103340148926, 0.12168416653191348, 0.0),
}


def _pyiqa_pair(name):
    if name == "posterised":
        clean = data.astronaut()
        return clean // 32 * 32, clean
    if name == "shifted, odd sides":
        clean = data.chelsea()[:299, :401]
        return np.roll(clean, 2, axis=1), clean
    clean = data.coffee()[:200, :201]
    return 255 - clean, clean


@pytest.fixture
def noisy_pair():
    """Mild noise: the contrast-structure term stays positive, so clamping does nothing."""
    clean = data.astronaut()[40:380, 60:460]
    noise = np.random.default_rng(0).normal(0, 6, clean.shape)
    noisy = np.clip(clean + noise, 0, 255).astype(np.uint8)
    return _without_ties(noisy), _without_ties(clean)


def _thousandfold_luma(picture):
    return picture.astype(np.int64) @ [299, 587, 114]


def _without_ties(picture):
    """Moves the colours whose luma is an exact half: float error decides their rounding."""
    ties = _thousandfold_luma(picture) % 1000 == 500
    picture = picture.copy()
    picture[ties, 2] ^= 1
    return picture


def _luma(picture):
    """Rounded luma, exact for pictures without ties."""
    return np.rint(_thousandfold_luma(picture) / 1000)


def _skimage_maps(first, second):
    """Full SSIM map and contrast-structure map inside the border that a window needs.

    Contrast-structure follows from two SSIM calls: a vast constant K1 makes the luminance
    factor 1.
    """
    options = dict(
        gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255, full=True
    )
    inside = (slice(5, -5), slice(5, -5))
    ssim_map = structural_similarity(first, second, **options)[1][inside]
    contrast_map = structural_similarity(first, second, K1=1e7, **options)[1][inside]
    return ssim_map, contrast_map


@pytest.mark.parametrize("name", PYIQA)
def test_figures_of_pyiqa(name):
    restored, clean = _pyiqa_pair(name)
    psnr, ssim, ms_ssim = PYIQA[name]
    assert full_reference.psnr(restored, clean) == pytest.approx(psnr, abs=5e-6)  # theirs: float32
    assert full_reference.ssim(restored, clean) == pytest.approx(ssim, abs=1e-6)
    assert full_reference.ms_ssim(restored, clean) == pytest.approx(ms_ssim, abs=1e-6)


def test_psnr_is_scikit_images_apart_from_the_epsilon(noisy_pair):
    restored, clean = noisy_pair
    expected = peak_signal_noise_ratio(clean, restored, data_range=255)
    expected = -10 * math.log10(10 ** (-expected / 10) + 1e-8)
    assert full_reference.psnr(restored, clean) == pytest.approx(expected, abs=1e-9)


def test_psnr_by_hand():
    black = np.zeros((4, 5, 3), np.uint8)
    assert full_reference.psnr(black, black) == pytest.approx(80.0)
    one_channel = black.copy()
    one_channel[..., 1] = 255
    assert full_reference.psnr(one_channel, black) == pytest.approx(10 * math.log10(3), abs=1e-6)


def test_ssim_is_scikit_images_on_luma(noisy_pair):
    restored, clean = noisy_pair
    ssim_map, contrast_map = _skimage_maps(_luma(restored), _luma(clean))
    assert contrast_map.min() > 0
    assert full_reference.ssim(restored, clean) == pytest.approx(ssim_map.mean(), abs=1e-6)


def test_negative_structure_counts_as_zero():
    clean = _without_ties(data.astronaut()[:128, :128])
    restored = _without_ties(255 - clean)
    ssim_map, contrast_map = _skimage_maps(_luma(restored), _luma(clean))
    assert (contrast_map < 0).mean() > 0.2
    expected = np.where(contrast_map > 0, ssim_map, 0).mean()
    assert full_reference.ssim(restored, clean) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("size", [(336, 400), (333, 399), (161, 170)])
def test_ms_ssim_composed_from_scikit_image(noisy_pair, size):
    """Scale by scale; halving is written as a strided convolution over a zero border."""
    restored, clean = (picture[: size[0], : size[1]] for picture in noisy_pair)
    first, second = _luma(restored), _luma(clean)
    expected = 1.0
    for scale, weight in enumerate(SCALE_WEIGHTS):
        ssim_map, contrast_map = _skimage_maps(first, second)
        last = scale == len(SCALE_WEIGHTS) - 1
        expected *= np.maximum(ssim_map if last else contrast_map, 0).mean() ** weight
        first, second = (
            convolve2d(plane, np.full((2, 2), 0.25))[
                1 - plane.shape[0] % 2 :: 2, 1 - plane.shape[1] % 2 :: 2
            ][: -(-plane.shape[0] // 2), : -(-plane.shape[1] // 2)]
            for plane in (first, second)
        )
    assert full_reference.ms_ssim(restored, clean) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("size", [(340, 400), (333, 399)])
def test_ms_ssim_of_another_implementation(noisy_pair, size):
    """pytorch-msssim differs only in clamping each scale's mean, not each position."""
    torch = pytest.importorskip("torch", reason="pytorch-msssim needs PyTorch")
    other = pytest.importorskip("pytorch_msssim", reason="pytorch-msssim is not installed")
    restored, clean = (picture[: size[0], : size[1]] for picture in noisy_pair)
    planes = [torch.from_numpy(_luma(picture))[None, None] for picture in (restored, clean)]
    expected = other.ms_ssim(*planes, data_range=255, win_size=11, win_sigma=1.5).item()
    assert full_reference.ms_ssim(restored, clean) == pytest.approx(expected, abs=2e-6)


def test_equal_pictures_score_one():
    clean = data.astronaut()[:176, :200]
    assert full_reference.ssim(clean, clean) == pytest.approx(1)
    assert full_reference.ms_ssim(clean, clean) == pytest.approx(1)


def test_ms_ssim_needs_a_window_at_the_last_scale(noisy_pair):
    restored, clean = noisy_pair
    assert full_reference.ms_ssim(restored[:161, :161], clean[:161, :161]) is not None
    assert full_reference.ms_ssim(restored[:160, :300], clean[:160, :300]) is None


# Pairs 1, 7, 19, 24 and 34 of Sharma, Wu and Dalal, The CIEDE2000 color-difference formula, 2005.
SHARMA = [
    ((50.0, 2.6772, -79.7751), (50.0, 0.0, -82.7485), 2.0425),
    ((50.0, 0.0, 0.0), (50.0, -1.0, 2.0), 2.3669),
    ((50.0, 2.5, 0.0), (56.0, -27.0, -3.0), 31.9030),
    ((50.0, 2.5, 0.0), (50.0, 3.2592, 0.3350), 1.0),
    ((2.0776, 0.0795, -1.1350), (0.9033, -0.0636, -0.5514), 0.9082),
]


def _ciede2000(first, second):
    """The formula as Sharma, Wu and Dalal write it, for one pair of CIELAB colours."""
    (l1, a1, b1), (l2, a2, b2) = first, second
    chroma = (math.hypot(a1, b1) + math.hypot(a2, b2)) / 2
    g = 0.5 * (1 - math.sqrt(chroma**7 / (chroma**7 + 25**7)))
    a1, a2 = (1 + g) * a1, (1 + g) * a2
    c1, c2 = math.hypot(a1, b1), math.hypot(a2, b2)
    h1, h2 = (math.degrees(math.atan2(b, a)) % 360 for a, b in ((a1, b1), (a2, b2)))
    turn = (h2 - h1 + 180) % 360 - 180 if c1 * c2 else 0.0
    if abs(h2 - h1) == 180:
        turn = h2 - h1
    hue = h1 + h2
    if c1 * c2:
        if abs(h1 - h2) > 180:
            hue += 360 if hue < 360 else -360
        hue /= 2
    lightness, chroma = (l1 + l2) / 2, (c1 + c2) / 2

    def cosine(degrees):
        return math.cos(math.radians(degrees))

    t = (1 - 0.17 * cosine(hue - 30) + 0.24 * cosine(2 * hue) + 0.32 * cosine(3 * hue + 6)
         - 0.20 * cosine(4 * hue - 63))  # fmt: skip
    s_l = 1 + 0.015 * (lightness - 50) ** 2 / math.sqrt(20 + (lightness - 50) ** 2)
    s_c, s_h = 1 + 0.045 * chroma, 1 + 0.015 * chroma * t
    rotation = 60 * math.exp(-(((hue - 275) / 25) ** 2))
    r_t = -2 * math.sqrt(chroma**7 / (chroma**7 + 25**7)) * math.sin(math.radians(rotation))
    d_l, d_c = (l2 - l1) / s_l, (c2 - c1) / s_c
    d_h = 2 * math.sqrt(c1 * c2) * math.sin(math.radians(turn / 2)) / s_h
    return math.sqrt(d_l**2 + d_c**2 + d_h**2 + r_t * d_c * d_h)


def _lab(colour):
    """CIELAB under D65 of an 8-bit sRGB colour, from IEC 61966-2-1 and CIE 15."""
    encoded = np.asarray(colour) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    matrix = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    ratios = np.array(matrix) @ linear / [0.95047, 1.0, 1.08883]
    x, y, z = np.where(ratios > (6 / 29) ** 3, np.cbrt(ratios), ratios * (29 / 6) ** 2 / 3 + 4 / 29)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


@pytest.mark.parametrize(("first", "second", "expected"), SHARMA)
def test_the_other_ciede2000_has_the_published_values(first, second, expected):
    assert _ciede2000(first, second) == pytest.approx(expected, abs=5e-5)


def test_ciede2000_pixel_by_pixel():
    rng = np.random.default_rng(0)
    clean = data.astronaut()[100:108, 200:210]
    restored = np.clip(clean + rng.integers(-60, 60, clean.shape), 0, 255).astype(np.uint8)
    pairs = zip(clean.reshape(-1, 3), restored.reshape(-1, 3), strict=True)
    expected = np.mean([_ciede2000(_lab(one), _lab(two)) for one, two in pairs])
    assert full_reference.ciede2000(restored, clean) == pytest.approx(expected, rel=1e-3)
    assert full_reference.ciede2000(clean, clean) == 0
    black, white = np.zeros((3, 4, 3), np.uint8), np.full((3, 4, 3), 255, np.uint8)
    assert full_reference.ciede2000(black, white) == pytest.approx(100, abs=1e-2)


@pytest.mark.parametrize("metric", ["psnr", "ssim", "ms_ssim", "ciede2000"])
@pytest.mark.parametrize(
    ("restored", "reference", "message"),
    [
        (np.zeros((20, 30, 3), np.uint8), np.zeros((30, 20, 3), np.uint8), "30x20.*20x30"),
        (np.zeros((20, 30, 3), np.float32), np.zeros((20, 30, 3), np.uint8), "float32"),
        (np.zeros((20, 30, 3), np.uint8), np.zeros((20, 30), np.uint8), r"\[20, 30\]"),
        (np.zeros((20, 30, 4), np.uint8), np.zeros((20, 30, 4), np.uint8), r"\[20, 30, 4\]"),
    ],
)
def test_bad_pictures_are_named(metric, restored, reference, message):
    with pytest.raises(ValueError, match=message):
        getattr(full_reference, metric)(restored, reference)


def test_ssim_needs_a_window():
    small = np.zeros((10, 64, 3), np.uint8)
    with pytest.raises(ValueError, match="64x10.*at least 11"):
        full_reference.ssim(small, small)
