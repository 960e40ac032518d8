"""Reading and writing photographs; oracle: Pillow, tifffile, files built chunk by chunk.

COTIR_FUZZ=10000 reads that many broken files.
"""

import dataclasses
import io
import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from cotir_jax.images.exif import set_upright
from cotir_jax.images.photo import SUFFIXES, Photo, photo_size, read_photo, write_photo

LOSSLESS = (".png", ".tif", ".tiff")


def scene(height: int = 60, width: int = 82) -> np.ndarray:
    """A smooth coloured picture that is unlike itself in all eight orientations."""
    y, x = np.mgrid[:height, :width]
    values = [40 + 200 * x / width, 30 + 180 * y / height, 128 + 90 * np.sin(x / 9 + y / 14)]
    return np.stack(values, axis=2).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def camera_exif(orientation: int = 6) -> Image.Exif:
    exif = Image.Exif()
    exif[271], exif[274], exif[306] = "Maker", orientation, "2020:01:02 03:04:05"
    exif.get_ifd(0x8769).update({0x829A: 0.01, 0x9003: "2020:01:02 03:04:05", 0xA434: "50mm"})
    exif.get_ifd(0x8825).update({1: "N", 2: (12.0, 30.0, 1.5)})
    return exif


def png16(values: np.ndarray) -> bytes:
    """16-bit PNG made by hand; `values` `[height, width, 1 to 4]`."""
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))
        for tag, data in chunks
    )


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_that_of_pillow(kind, orientation, tmp_path):
    if kind == "AVIF" and ".avif" not in Image.registered_extensions():
        pytest.skip("this Pillow does not write AVIF")
    data = encoded(Image.fromarray(scene()), kind, exif=camera_exif(orientation).tobytes())
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    photo = read_photo(data)
    # Two AVIF decoders spread the halved colours in different ways.
    close = 12 if kind == "AVIF" else 0
    np.testing.assert_allclose(photo.pixels.astype(int), expected, atol=close)
    assert photo_size(data) == expected.shape[:2]
    if photo.exif is not None:
        kept = Image.Exif()
        kept.load(photo.exif)
        assert kept.get(274, 1) == 1 and kept[271] == "Maker"
    for suffix in SUFFIXES:  # what is written is upright for everybody, and says so
        path = tmp_path / f"out{suffix}"
        write_photo(photo, path)
        with Image.open(path) as image:
            assert image.size == photo.pixels.shape[1::-1]
            assert image.getexif().get(274, 1) == 1
            written = np.asarray(ImageOps.exif_transpose(image).convert("RGB")).astype(int)
        assert np.abs(written - photo.pixels).mean() < 3


@pytest.mark.parametrize("source", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_metadata_goes_into_every_format(source, suffix, tmp_path):
    if ".avif" not in Image.registered_extensions():
        pytest.skip("this Pillow does not read AVIF")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = encoded(
        Image.fromarray(scene()), source, exif=camera_exif().tobytes(), icc_profile=profile
    )
    path = tmp_path / f"out{suffix}"
    write_photo(read_photo(data), path)
    with Image.open(path) as image:
        assert image.info["icc_profile"] == profile
        exif = image.getexif()
        details, place = exif.get_ifd(0x8769), exif.get_ifd(0x8825)
    assert exif[271] == "Maker" and exif[306] == "2020:01:02 03:04:05"
    assert details[0x9003] == "2020:01:02 03:04:05" and details[0xA434] == "50mm"
    assert float(details[0x829A]) == pytest.approx(0.01, rel=1e-3)
    assert place[1] == "N" and [float(v) for v in place[2]] == [12.0, 30.0, 1.5]


def test_thumbnail_is_left_out(tmp_path):
    """It would show the degraded picture, on its side."""
    thumbnail = encoded(Image.fromarray(scene(12, 16)), "JPEG")
    first = struct.pack("<HHHI4sI", 1, 274, 3, 1, b"\6\0\0\0", 26)
    second = struct.pack("<HHHIIHHIII", 2, 0x201, 4, 1, 56, 0x202, 4, 1, len(thumbnail), 0)
    block = b"Exif\0\0II*\0\x08\0\0\0" + first + second + thumbnail
    data = encoded(Image.fromarray(scene()), "JPEG", exif=block)
    assert data.count(thumbnail) == 1
    for suffix in SUFFIXES:
        write_photo(read_photo(data), tmp_path / f"out{suffix}")
        assert thumbnail[-40:] not in (tmp_path / f"out{suffix}").read_bytes(), suffix


def test_xmp_and_resolution(tmp_path):
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF/></x:xmpmeta>'
    data = encoded(Image.fromarray(scene()), "JPEG", xmp=xmp, dpi=(300, 300))
    photo = read_photo(data)
    assert photo.xmp == xmp
    for suffix in SUFFIXES:
        write_photo(photo, tmp_path / f"out{suffix}")
        again = read_photo(tmp_path / f"out{suffix}")
        assert again.xmp is not None and again.xmp.strip(b"\0") == xmp, suffix
        if suffix in (".png", ".jpg", ".tif"):
            with Image.open(tmp_path / f"out{suffix}") as image:
                assert [round(value) for value in image.info["dpi"]] == [300, 300], suffix


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bits_exactly(channels, tmp_path):
    tifffile = pytest.importorskip("tifffile", reason="reads 16-bit TIFF")
    values = np.random.default_rng(channels).integers(0, 2**16, (19, 23, channels))
    values = values.astype(np.uint16)
    photo = read_photo(png16(values))
    grey, alpha = channels < 3, channels in (2, 4)
    colours = values[..., : channels - alpha]
    np.testing.assert_array_equal(photo.pixels, np.repeat(colours, 3, axis=2) if grey else colours)
    assert photo.pixels.dtype == np.uint16 and photo.grey == grey
    assert (photo.alpha is not None) == alpha
    write_photo(photo, tmp_path / "out.tif")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out.tif"), values.squeeze())
    write_photo(photo, tmp_path / "out.png")
    data = (tmp_path / "out.png").read_bytes()
    assert data[24] == 16 and data[25] == {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    np.testing.assert_array_equal(read_photo(data).pixels, photo.pixels)
    write_photo(photo, tmp_path / "out.webp", quality=100)
    with Image.open(tmp_path / "out.webp") as image:
        eight = np.asarray(image.convert("RGB"))
    opaque = photo.alpha > 256 if alpha else np.ones(eight.shape[:2], bool)
    np.testing.assert_array_equal(eight[opaque], np.rint(photo.pixels / 257)[opaque])


@pytest.mark.parametrize("depth", ["uint16", "float32", "uint8"])
def test_tiff_of_another_writer(depth, tmp_path):
    tifffile = pytest.importorskip("tifffile", reason="writes TIFF of any depth")
    values = scene() / np.float32(255)
    top = 65535 if depth == "uint16" else 255 if depth == "uint8" else 1
    stored = (values * top).astype(depth)
    tifffile.imwrite(tmp_path / "in.tif", stored, photometric="rgb")
    photo = read_photo(tmp_path / "in.tif")
    if depth == "float32":
        np.testing.assert_allclose(photo.pixels / 65535, stored, atol=1e-5)
    else:
        np.testing.assert_array_equal(photo.pixels, stored)


def test_values_beyond_one(tmp_path):
    tifffile = pytest.importorskip("tifffile", reason="writes TIFF of any depth")
    values = scene().astype(np.float32)
    for factor, top in ((1, 255), (200, 65535)):
        tifffile.imwrite(tmp_path / "in.tif", values * factor, photometric="rgb")
        expected = np.rint(values * factor * (65535 / top))
        np.testing.assert_array_equal(read_photo(tmp_path / "in.tif").pixels, expected)
    values[3, 4] = np.inf
    tifffile.imwrite(tmp_path / "in.tif", values, photometric="rgb")
    with pytest.raises(ValueError, match="not finite"):
        read_photo(tmp_path / "in.tif")


def test_avif_keeps_more_than_8_bits(tmp_path):
    values = np.linspace(0, 65535, 96 * 64).reshape(64, 96, 1).repeat(3, axis=2).astype(np.uint16)
    write_photo(Photo(values), tmp_path / "out.avif", quality=100)
    again = read_photo(tmp_path / "out.avif").pixels
    assert again.dtype == np.uint16 and len(np.unique(again)) > 600
    assert np.abs(again.astype(int) - values).mean() < 80  # 8 bits: steps of 257


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_grey_and_alpha(suffix, tmp_path):
    grey = scene()[..., 1]
    write_photo(read_photo(encoded(Image.fromarray(grey), "PNG")), tmp_path / f"grey{suffix}")
    with Image.open(tmp_path / f"grey{suffix}") as image:
        if suffix not in (".webp", ".avif"):  # these hold colours always
            assert image.mode == "L"
        shown = np.asarray(image.convert("L")).astype(int)
    assert np.abs(shown - grey).max() <= (0 if suffix in LOSSLESS else 4)
    image = Image.fromarray(scene())
    image.putalpha(Image.fromarray(scene()[..., 0]))
    photo = read_photo(encoded(image, "PNG"))
    np.testing.assert_array_equal(photo.alpha, scene()[..., 0])
    write_photo(photo, tmp_path / f"alpha{suffix}")
    again = read_photo(tmp_path / f"alpha{suffix}")
    if suffix in (".jpg", ".jpeg"):
        white = Image.new("RGBA", image.size, "white")
        expected = np.asarray(Image.alpha_composite(white, image).convert("RGB")).astype(int)
        assert again.alpha is None and np.abs(again.pixels - expected).mean() < 2
    else:
        assert np.abs(again.alpha.astype(int) - photo.alpha).max() <= (
            0 if suffix != ".avif" else 4
        )


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_modes(mode, tmp_path):
    image = Image.fromarray(scene()).convert(mode)
    kind = "TIFF" if mode == "CMYK" else "PNG"
    photo = read_photo(encoded(image, kind))
    assert photo.grey == (mode in ("1", "L", "LA")) and (photo.alpha is not None) == ("A" in mode)
    expected = np.asarray(image.convert("RGB")).astype(int)
    if mode == "CMYK":  # by a press profile: other colours, the same picture
        for channel in range(3):
            one, other = photo.pixels[..., channel].ravel(), expected[..., channel].ravel()
            assert np.corrcoef(one, other)[0, 1] > 0.9
    else:
        np.testing.assert_array_equal(photo.pixels, expected)


def test_profile_of_another_space_is_left_out():
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    grey = Image.fromarray(scene()[..., 0])
    assert read_photo(encoded(grey, "JPEG", icc_profile=bytes(profile))).icc_profile is None
    profile[16:20] = b"GRAY"
    assert read_photo(encoded(grey, "PNG", icc_profile=bytes(profile))).icc_profile == profile


@pytest.mark.parametrize("kind", ["BMP", "PPM", "GIF", "WEBP"])
def test_other_formats_and_first_frames(kind):
    image = Image.fromarray(scene())
    more = {"save_all": True, "append_images": [image.rotate(180)]} if kind in "GIF WEBP" else {}
    data = encoded(image, kind, **more)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(read_photo(data).pixels, expected)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (17, 1)])
def test_smallest_pictures(suffix, shape, tmp_path):
    pixels = np.full((*shape, 3), 200, np.uint8)
    write_photo(Photo(pixels), tmp_path / f"out{suffix}")
    assert photo_size(tmp_path / f"out{suffix}") == shape
    assert np.abs(read_photo(tmp_path / f"out{suffix}").pixels.astype(int) - 200).max() <= 3


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".avif"])
def test_quality(suffix, tmp_path):
    noisy = scene().astype(int) + np.random.default_rng(0).integers(-20, 20, scene().shape)
    photo = Photo(np.clip(noisy, 0, 255).astype(np.uint8))
    sizes, errors = [], []
    for quality in (10, 50, 95):
        write_photo(photo, tmp_path / f"out{suffix}", quality)
        sizes.append((tmp_path / f"out{suffix}").stat().st_size)
        again = read_photo(tmp_path / f"out{suffix}").pixels
        errors.append(np.abs(again.astype(int) - photo.pixels).mean())
    assert sizes == sorted(sizes) and sizes[2] > 2 * sizes[0]
    assert errors == sorted(errors, reverse=True)


def test_refused(tmp_path):
    good = encoded(Image.fromarray(scene()), "PNG")
    huge = bytearray(good)
    huge[16:24] = struct.pack(">II", 40_000, 40_000)
    huge[29:33] = struct.pack(">I", zlib.crc32(huge[12:29]))
    drawing = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
    for data, reason in (
        (b"", "empty"),
        (b"nothing of that kind", "format"),
        (drawing, "format"),
        (good[: len(good) // 2], "read"),
        (encoded(Image.fromarray(scene()), "JPEG")[:600], "read"),
        (bytes(huge), "limit"),
    ):
        with pytest.raises(ValueError, match=reason) as error:
            read_photo(data, "beach.png")
        assert str(error.value).startswith("beach.png: ") and "\n" not in str(error.value)
        (tmp_path / "broken.jpg").write_bytes(data)
        with pytest.raises(ValueError, match="broken.jpg: "):
            read_photo(tmp_path / "broken.jpg")
    with pytest.raises(ValueError, match="limit"):
        read_photo(good, max_pixels=60 * 82 - 1)
    assert read_photo(good, max_pixels=60 * 82).pixels.shape == (60, 82, 3)
    os.mkfifo(tmp_path / "pipe.png")
    for name, reason in (("none.png", "no such file"), (".", "regular"), ("pipe.png", "regular")):
        with pytest.raises(ValueError, match=reason):
            photo_size(tmp_path / name)
    if os.geteuid() != 0:  # root may read everything
        (tmp_path / "broken.jpg").chmod(0)
        with pytest.raises(ValueError, match="ermission"):
            read_photo(tmp_path / "broken.jpg")


def test_names_of_any_kind(tmp_path):
    pixels = scene()
    for name in ("a b[page=2].png", "größe 写真.png", "-o%s.png"):
        write_photo(Photo(pixels), tmp_path / "new" / name)
        np.testing.assert_array_equal(read_photo(tmp_path / "new" / name).pixels, pixels)


def test_not_written(tmp_path):
    photo = Photo(scene())
    with pytest.raises(ValueError, match=r"\.png, \.jpg, \.jpeg, \.webp"):
        write_photo(photo, tmp_path / "out.bmp")
    with pytest.raises(ValueError, match="quality"):
        write_photo(photo, tmp_path / "out.png", quality=0)
    (tmp_path / "out.webp").write_bytes(b"old")
    with pytest.raises(ValueError, match="out.webp") as error:  # above the format's 16,383 pixels
        write_photo(Photo(np.zeros((2, 17_000, 3), np.uint8)), tmp_path / "out.webp")
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["out.webp"]
    assert (tmp_path / "out.webp").read_bytes() == b"old"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_full_disk_leaves_the_old_file(suffix, tmp_path):
    code = f"""
import resource, signal
import numpy as np
from cotir_jax.images.photo import Photo, write_photo
pixels = np.random.default_rng(0).integers(0, 256, (200, 300, 3)).astype(np.uint8)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    write_photo(Photo(pixels), "out{suffix}")
except OSError as error:
    assert "\\n" not in str(error), error
    assert error.errno == 27, error
else:
    raise SystemExit("written")
"""
    (tmp_path / f"out{suffix}").write_bytes(b"old")
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [f"out{suffix}"]
    assert (tmp_path / f"out{suffix}").read_bytes() == b"old"


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_exif_harms_nothing(tmp_path):
    rng = np.random.default_rng(0)
    block = camera_exif().tobytes()
    for _ in range(60):
        damaged = bytearray(block)
        for place in rng.integers(6, len(block), 6):
            damaged[place] = rng.integers(256)
        set_upright(bytes(damaged))
        photo = dataclasses.replace(Photo(scene(8, 9)), exif=bytes(damaged))
        for suffix in SUFFIXES:
            write_photo(photo, tmp_path / f"out{suffix}")
            assert photo_size(tmp_path / f"out{suffix}") == (8, 9), suffix


def test_broken_files_do_no_harm():
    """No crash, no hang, no leak, nothing but one-line errors."""
    files = int(os.environ.get("COTIR_FUZZ", "1000"))
    script = Path(__file__).parents[1] / "support" / "photo_fuzz.py"
    done = subprocess.run(
        [sys.executable, str(script), f"--files={files}"],
        env=os.environ | {"PYTHONPATH": str(script.parents[2])},
        capture_output=True,
        text=True,
    )
    last = done.stdout.splitlines()[-1:]
    assert done.returncode == 0 and not done.stderr, (done.returncode, last, done.stderr[-2000:])
    found = json.loads(last[0])
    assert not found["wrong"]
    assert min(found["outcomes"][kind] for kind in ("read", "refused")) > files / 10
    assert found["handles"][-1] == found["handles"][0]
    warm = min(4, len(found["mib"]) - 2)
    assert found["mib"][-1] - found["mib"][warm] < 60


def test_nothing_reaches_standard_error_when_errors_live_to_the_end():
    """Their pictures are freed when pyvips no longer catches what libvips warns of."""
    tests = Path(__file__).parents[1]
    code = f"""
import logging, sys
sys.path[:0] = [{str(tests.parent)!r}, {str(tests / "support")!r}]
logging.basicConfig()
import numpy as np
from photo_fuzz import broken_file, whole_files
from cotir_jax.images.photo import read_photo

kept, whole = [], whole_files()
for index in range(200):
    try:
        read_photo(broken_file(np.random.default_rng([0, index]), whole))
    except ValueError as error:
        kept.append(error)
print(len(kept))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr[-2000:]
    assert int(done.stdout) > 50
