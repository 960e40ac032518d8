"""PIQE and NIQE against pyiqa's figures, and NIQE's parts against scipy and Pillow."""

import io

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage, stats
from skimage import data

from cotir_jax.scoring import no_reference

# pyiqa 0.1.15.post2 on the pictures of `_picture`: piqe as it is; niqe with the parameters below,
# its window in float64 and on rounded luma (as published it rounds both in float32, which moves
# its figures by up to a thousandth).
PYIQA = {
    "astronaut": (33.75864791870117, None),
    "posterised": (65.04241943359375, None),
    "noisy": (50.350791931152344, 34.46509380528528),
    "chelsea": (33.44591522216797, 29.00999573731801),
    "jpeg": (61.8344841003418, None),
    "small": (28.475120544433594, 45.52393090868027),
}
PARAMETERS = no_reference.NiqeParameters(
    np.linspace(0.2, 1.5, 36), 0.02 * np.eye(36) + 0.005, "none"
)


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
    piqe, niqe = PYIQA[name]
    # pyiqa decides in float32 whether a block is above a threshold.
    assert no_reference.piqe(_picture(name)) == pytest.approx(piqe, abs=5e-3)
    if niqe is not None:
        assert no_reference.niqe(_picture(name), PARAMETERS) == pytest.approx(niqe, 1e-6)


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


@pytest.mark.parametrize(("shape", "left", "right"), [(0.8, 1.0, 1.0), (2.0, 0.7, 1.4)])
def test_generalised_gaussian_is_recovered(shape, left, right):
    """Samples drawn by scipy, each side stretched, in the proportion of its scale."""
    rng = np.random.default_rng(0)
    sizes = np.abs(stats.gennorm.rvs(shape, size=(1, 400, 400), random_state=rng))
    negative = rng.random(sizes.shape) < left / (left + right)
    found = no_reference._asymmetric_gaussian(np.where(negative, -left, right) * sizes)
    np.testing.assert_allclose(np.concatenate(found), [shape, left, right], rtol=0.02)


def test_halving_is_pillows_bicubic_away_from_the_border():
    photo = data.camera()[:96, :192].astype(np.float32)
    pillow = Image.fromarray(photo).resize((96, 48), Image.Resampling.BICUBIC)
    halved = no_reference._halve(photo.astype(np.float64))
    np.testing.assert_allclose(halved[3:-3, 3:-3], np.asarray(pillow)[3:-3, 3:-3], atol=1e-3)


@pytest.fixture(scope="module")
def packaged():
    return no_reference.load_niqe_parameters()


def test_packaged_parameters_rank_damage(packaged):
    photo = data.coffee()
    blurred = ndimage.gaussian_filter(photo, (3, 3, 0))
    scores = [
        no_reference.niqe(picture, packaged)
        for picture in (photo, _noisy(photo, 25), blurred, _jpeg(photo, 5))
    ]
    assert scores[0] < 5 < min(scores[1:])
    assert "photos" in packaged.source


def test_fitting_and_its_file(tmp_path):
    photos = [data.astronaut(), data.coffee(), data.chelsea()]
    parts = [np.rot90(photo, turn) for photo in photos for turn in range(4)]
    shifted = [photo[by:, by + 2 :] for photo in parts for by in (5, 40)]
    small = np.zeros((95, 400, 3), np.uint8)
    fitted = no_reference.fit_niqe([*parts, *shifted, small], "three photos")
    assert fitted.covariance.shape == (36, 36) and "three photos: 36 photos" in fitted.source
    np.testing.assert_allclose(fitted.covariance, fitted.covariance.T)
    no_reference.save_niqe_parameters(fitted, tmp_path / "new" / "fitted.npz")
    again = no_reference.load_niqe_parameters(tmp_path / "new" / "fitted.npz")
    np.testing.assert_array_equal(again.mean, fitted.mean)
    np.testing.assert_array_equal(again.covariance, fitted.covariance)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["fitted.npz"]


def test_the_mean_of_what_was_fitted_scores_zero():
    """Parameters made of one picture's own patches: no distance is left."""
    photo = data.astronaut()
    features, _ = no_reference._patch_features(photo)
    own = no_reference.NiqeParameters(features.mean(0), np.cov(features.T), "itself")
    assert no_reference.niqe(photo, own) == pytest.approx(0, abs=1e-6)


def test_too_small_flat_and_few():
    niqe = no_reference.niqe
    assert niqe(data.astronaut()[:95, :400], PARAMETERS) is None
    assert niqe(np.full((200, 200, 3), 90, np.uint8), PARAMETERS) is None
    with pytest.raises(ValueError, match="few: .* at least 100"):
        no_reference.fit_niqe([data.astronaut()], "few")
    with pytest.raises(ValueError, match="few: 0 sharp patches"):
        no_reference.fit_niqe([], "few")


@pytest.mark.parametrize("contents", [None, b"", b"PK\x03\x04 damaged"])
def test_unreadable_parameters_are_named(tmp_path, contents):
    path = tmp_path / "other.npz"
    if contents is not None:
        path.write_bytes(contents)
    with pytest.raises(ValueError, match="other.npz.*fit-niqe"):
        no_reference.load_niqe_parameters(path)


@pytest.mark.parametrize("function", [
    no_reference.piqe,
    lambda picture: no_reference.niqe(picture, PARAMETERS),
])  # fmt: skip
@pytest.mark.parametrize("picture", [np.zeros((20, 20), np.uint8), np.zeros((20, 20, 3))])
def test_bad_pictures_are_named(function, picture):
    with pytest.raises(ValueError, match="expected uint8"):
        function(picture)
