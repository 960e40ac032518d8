"""Pictures that are no ordinary photos: used where they can be, named where they cannot."""

import logging
import struct
import zlib
from collections import OrderedDict

import numpy as np
import pytest
from etils import epath
from PIL import Image
from scipy import stats
from skimage import color, data
from support.small_bench import SMALL, save_photos

from cotir_jax.bench.build import build_bench
from cotir_jax.bench.check import check_bench
from cotir_jax.bench.photos import choose_crop, cut, fingerprint, recolour, trimmed_photo
from cotir_jax.bench.plan import make_plan, make_sample
from cotir_jax.images.pictures import encode_png, load_picture, save_picture

HEIGHT, WIDTH = 40, 60
OPTIONS = {**SMALL, "degradations": "noise", "workers": 1}


def _ramp():
    """Float32 ``[height, width]`` in [0, 1], from black to white."""
    return np.tile(np.linspace(0, 1, WIDTH, dtype=np.float32), (HEIGHT, 1))


def _unusual(kind, path):
    """Save a picture of the ramp, of an unusual kind; returns the grey levels it should have."""
    ramp = _ramp()
    grey = np.rint(ramp * 255).astype(np.uint8)
    rgb = np.repeat(grey[..., None], 3, axis=2)
    if kind == "grey":
        Image.fromarray(grey).save(path)
    elif kind == "grey-16":
        Image.fromarray(np.rint(ramp * 65535).astype(np.uint16)).save(path)
    elif kind == "rgb-16":
        path.write_bytes(_png_48_bit(np.rint(ramp * 65535).astype(">u2")))
    elif kind == "alpha":
        Image.fromarray(np.dstack([rgb, np.full_like(grey, 255)])).save(path)
    elif kind == "transparent":
        Image.fromarray(np.dstack([rgb * 0, 255 - grey])).save(path)
    elif kind == "cmyk":
        Image.fromarray(rgb).convert("CMYK").save(path, quality=100, subsampling=0)
    elif kind == "palette":
        Image.fromarray(grey).convert("P").save(path)
    elif kind == "float":
        Image.fromarray(ramp).save(path)
    return grey


def _png_48_bit(values):
    """A PNG of 16 bits a channel, which Pillow reads but cannot write."""
    rows = np.repeat(values[..., None], 3, axis=2).reshape(HEIGHT, -1).view(np.uint8)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(raw)),
        (b"IEND", b""),
    ]
    out = b"\x89PNG\r\n\x1a\n"
    for name, content in chunks:
        out += struct.pack(">I", len(content)) + name + content
        out += struct.pack(">I", zlib.crc32(name + content))
    return out


KINDS = {
    "grey": "png", "grey-16": "png", "rgb-16": "png", "alpha": "png", "transparent": "webp",
    "cmyk": "jpg", "palette": "png", "float": "tiff",
}  # fmt: skip


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "transparent"])
def test_unusual_kinds_are_converted(kind, tmp_path):
    path = tmp_path / f"photo.{KINDS[kind]}"
    expected = _unusual(kind, path)
    photo = load_picture(path)
    assert photo.shape == (HEIGHT, WIDTH, 3) and photo.dtype == np.uint8
    # JPEG and CMYK round; nothing else may.
    largest = 3 if kind == "cmyk" else 1
    assert np.abs(photo.astype(int) - expected[..., None]).max() <= largest


def test_transparency_shows_white(tmp_path):
    Image.fromarray(np.zeros((HEIGHT, WIDTH, 4), np.uint8)).save(tmp_path / "a.png")
    assert (load_picture(tmp_path / "a.png") == 255).all()


def test_a_folder_of_unusual_kinds_builds(tmp_path):
    (tmp_path / "p").mkdir()
    for kind, suffix in KINDS.items():
        _unusual(kind, tmp_path / "p" / f"{kind}.{suffix}")
    options = {**OPTIONS, "samples_per_degradation": 16}
    build_bench(tmp_path / "b", tmp_path / "p", **options)
    report = check_bench(tmp_path / "b", workers=1)
    assert report.train == {"noise": 16}
    # All photos are one ramp here, so training and test pictures may look alike.
    assert all("near duplicate" in problem for problem in report.problems)


def _huge_png(path):
    """A header of 30000x30000 pixels; nobody should allocate what it promises."""
    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n"
    for name, body in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")):
        data += struct.pack(">I", len(body)) + name + body
        data += struct.pack(">I", zlib.crc32(name + body))
    path.write_bytes(data)


def _spoil(kind, path):
    if kind == "one pixel":
        Image.new("RGB", (1, 1)).save(path)
    elif kind == "narrow":
        Image.new("RGB", (15, 400)).save(path)
    elif kind == "huge":
        _huge_png(path)
    elif kind == "text":
        path.write_text("not a picture")
    elif kind == "empty":
        path.touch()
    elif kind == "cut":
        whole = encode_png(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
        path.write_bytes(whole[:5000])


BAD = {
    "one pixel": "1x1 is too small",
    "narrow": "15x400 is too small",
    "huge": "exceeds limit",
    "text": "not a picture",
    "empty": "not a picture",
    "cut": "truncated",
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_photos_are_refused_by_name_or_skipped(kind, tmp_path, caplog):
    photos = save_photos(tmp_path / "photos", 6)
    bad = photos / "55.png"
    _spoil(kind, bad)
    with pytest.raises(ValueError, match=rf"55\.png.*{BAD[kind]}") as caught:
        build_bench(tmp_path / "b", photos, **OPTIONS)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
    # Skipped on demand, with a warning, wherever the split put it.
    with caplog.at_level(logging.WARNING):
        build_bench(tmp_path / "b", photos, skip_bad=True, **OPTIONS)
    assert [str(bad) in record.getMessage() for record in caplog.records] == [True]
    assert check_bench(tmp_path / "b", workers=1).num_problems == 0


def test_nothing_but_bad_photos(tmp_path):
    (tmp_path / "p").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "p" / name).write_text("no picture")
    with pytest.raises(ValueError, match="none of the 1 train photos can be used"):
        build_bench(tmp_path / "b", tmp_path / "p", skip_bad=True, **OPTIONS)
    assert not (tmp_path / "b.part").exists()


def test_photos_behind_an_address_read_as_local_ones_do(tmp_path):
    photos = save_photos(tmp_path / "p", 3)
    here, there = photos / "1.png", epath.Path(photos) / "1.png"
    assert fingerprint([here]) == fingerprint([there])
    np.testing.assert_array_equal(trimmed_photo(here), trimmed_photo(there))


def test_depth_is_cut_like_its_photo(tmp_path):
    # The photo is its own depth map, so its crop must be the map's crop.
    field = np.random.default_rng(0).uniform(0, 255, (20, 30))
    image = Image.fromarray(field.astype(np.uint8)).resize((180, 120), Image.Resampling.BICUBIC)
    photo = np.repeat(np.asarray(image)[..., None], 3, axis=2)
    for number in range(40):
        rng = np.random.default_rng(number)
        crop = choose_crop(photo, 64, rng)
        clean = cut(photo, crop, 64)[..., 0] / 255
        depth = cut(photo[..., 0].astype(np.float32) / 255, crop, 64)
        assert depth.dtype == np.float32 and np.abs(clean - depth).max() < 0.1
    for name in ("1", "2"):
        save_picture(photo, tmp_path / "photos" / f"{name}.png")
        save_picture(photo, tmp_path / "depth" / f"{name}.png")
    options = {"degradations": "haze", "size": 64, "samples_per_degradation": 3}
    plain, mapped = (
        make_plan(tmp_path / "photos", depth=depth, **options)
        for depth in (None, tmp_path / "depth")
    )
    for number in range(3):
        jobs = [next(plan.jobs("train", 3)) for plan in (plain, mapped)]
        assert [len(job.maps.depth) for job in jobs] == [0, 1]
        without, with_map = (make_sample(job, number) for job in jobs)
        assert without.hq == with_map.hq and without.lq != with_map.lq


def test_recolouring_keeps_shapes():
    photo = data.astronaut()[100:228, 100:228]
    before = photo.copy()
    results = [recolour(photo, np.random.default_rng(seed)) for seed in range(200)]
    np.testing.assert_array_equal(photo, before)
    assert {(x.dtype, x.shape) for x in results} == {(photo.dtype, photo.shape)}
    luma = color.rgb2gray(photo).ravel()
    likeness = [stats.spearmanr(luma, color.rgb2gray(x).ravel()).statistic for x in results]
    assert min(likeness) > 0.75
    saturation = np.array([color.rgb2hsv(x)[..., 1].mean() for x in results])
    own = color.rgb2hsv(photo)[..., 1].mean()
    assert 5 <= np.sum(saturation == 0) <= 40  # 20 expected
    assert np.mean(saturation > own) > 0.2
    # The commonest hue goes all around the circle.
    coloured = [x for x, s in zip(results, saturation, strict=True) if s > 0.2]
    hues = [np.histogram(color.rgb2hsv(x)[..., 0], 6, (0, 1))[0].argmax() for x in coloured]
    assert len(set(hues)) == 6


def test_photos_are_kept_up_to_a_size(tmp_path, monkeypatch):
    photos = save_photos(tmp_path / "p", 5)
    kept: OrderedDict = OrderedDict()
    monkeypatch.setattr("cotir_jax.bench.photos._recent", kept)
    monkeypatch.setattr("cotir_jax.bench.photos._CACHE_BYTES", 2 * 66 * 86 * 3)
    for number in (0, 1, 0, 2):
        trimmed_photo(photos / f"{number}.png")
    assert [path.stem for path in kept] == ["0", "2"]
