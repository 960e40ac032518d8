"""Reads thousands of broken picture files: each must give a `Photo` or a ValueError of one line.

    python tests/support/photo_fuzz.py [--files=10000] [--seed=0] [--only=INDEX]

Prints the number of each file before it is read, and at last a JSON object of what was found. A
crash ends the process by a signal; a file that takes longer than `SECONDS_PER_FILE` ends it with a
traceback.
"""

from __future__ import annotations

import argparse
import collections
import faulthandler
import io
import json
import tempfile
from pathlib import Path

import numpy as np
import psutil
from PIL import Image, ImageCms

from cotir_jax.images.photo import Photo, photo_size, read_photo, write_photo

SECONDS_PER_FILE = 20
MAGICS = (b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"II*\0\x08\0\0\0", b"MM\0*", b"BM")
MAGICS += (b"RIFF\x40\0\0\0WEBPVP8 ", b"\0\0\0\x20ftypavif\0\0\0\0", b"P6\n32 32\n255\n", b"II+\0")
EXTREMES = (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x01\0")


def whole_files() -> list[bytes]:
    """Sound small pictures of all formats, with and without metadata."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:40, :56]
    colours = np.stack([x * 4, y * 6, x + y], axis=2) + rng.integers(0, 24, (40, 56, 3))
    rgb = Image.fromarray(np.clip(colours, 0, 255).astype(np.uint8))
    rgba = rgb.copy()
    rgba.putalpha(Image.fromarray((x * 4).astype(np.uint8)))
    exif = Image.Exif()
    exif[271], exif[274] = "Maker", 6
    exif.get_ifd(0x8769)[33434] = 0.01
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    more = {"exif": exif.tobytes(), "icc_profile": profile}
    frames = {"save_all": True, "append_images": [rgb.rotate(90), rgb.rotate(180)]}
    made = [
        _encode(rgb, "JPEG", **more),
        _encode(rgb, "JPEG", progressive=True, quality=30),
        _encode(rgb.convert("L"), "JPEG"),
        _encode(rgb.convert("CMYK"), "JPEG"),
        _encode(rgb, "PNG", **more),
        _encode(rgba, "PNG"),
        _encode(rgb.convert("P"), "PNG"),
        _encode(rgb.convert("1"), "PNG"),
        _encode(rgb, "WEBP", **more),
        _encode(rgba, "WEBP", lossless=True),
        _encode(rgb, "WEBP", **frames),
        _encode(rgb, "TIFF", **more),
        _encode(rgb, "TIFF", compression="jpeg"),
        _encode(rgb, "TIFF", compression="tiff_lzw", **frames),
        _encode(rgb.convert("1"), "TIFF", compression="group4"),
        _encode(rgb.convert("F"), "TIFF"),
        _encode(rgb, "GIF", **frames),
        _encode(rgb, "BMP"),
        _encode(rgb.convert("P"), "BMP"),
        _encode(rgb, "PPM"),
    ]
    if Image.registered_extensions().get(".avif"):
        made += [_encode(rgb, "AVIF", **more), _encode(rgba, "AVIF")]
    wide = Photo(np.asarray(rgb).astype(np.uint16) * 257, np.asarray(rgba)[..., 3] * np.uint16(257))
    with tempfile.TemporaryDirectory() as folder:
        for suffix in (".png", ".tif", ".avif"):
            path = Path(folder) / f"wide{suffix}"
            write_photo(wide, path)
            made.append(path.read_bytes())
    return made


def broken_file(rng: np.random.Generator, files: list[bytes]) -> bytes:
    """A file that is damaged in one of eight ways."""
    data = bytearray(files[rng.integers(len(files))])
    way = rng.integers(8)
    if way == 0:
        return bytes(data[: rng.integers(len(data))])
    if way == 1:  # bits anywhere
        for place in rng.integers(len(data), size=rng.integers(1, 30)):
            data[place] ^= 1 << int(rng.integers(8))
    elif way == 2:  # bytes of the header
        for place in rng.integers(min(len(data), 200), size=rng.integers(1, 8)):
            data[place] = int(rng.integers(256))
    elif way == 3:  # numbers that are much too large or small
        for place in rng.integers(min(len(data), 1000), size=rng.integers(1, 4)):
            value = EXTREMES[rng.integers(len(EXTREMES))]
            data[place : place + len(value)] = value
    elif way == 4:  # a piece left out
        start, end = sorted(rng.integers(len(data), size=2))
        del data[start:end]
    elif way == 5:  # a piece twice
        start, end = sorted(rng.integers(len(data), size=2))
        data[end:end] = data[start:end]
    elif way == 6:  # two files in one
        other = files[rng.integers(len(files))]
        data[rng.integers(len(data)) :] = other[rng.integers(len(other)) :]
    else:
        magic = MAGICS[rng.integers(len(MAGICS))] if rng.random() < 0.8 else b""
        return magic + rng.bytes(rng.integers(0, 400))
    return bytes(data)


def check(data: bytes, path: Path | None) -> str:
    """Reads one file, from disk where there is a path; what came of it."""
    source: Path | bytes = data
    if path is not None:
        path.write_bytes(data)
        source = path
    results = []
    for read in (photo_size, read_photo):
        try:
            results.append(read(source))
        except ValueError as error:
            if "\n" in str(error) or not str(error).startswith(str(path or "picture in memory: ")):
                return f"error that is not one line with the name: {error!r}"
            results.append(None)
    size, photo = results
    if photo is None:
        return "refused"
    good = photo.pixels.ndim == 3 and photo.pixels.shape[2] == 3 and photo.pixels.size
    if not good or photo.pixels.dtype not in (np.uint8, np.uint16):
        return f"not a photo: {photo.pixels.shape} {photo.pixels.dtype}"
    if size != photo.pixels.shape[:2]:
        return f"size {size} of a picture {photo.pixels.shape}"
    return "read"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="one file, to look into a failure")
    flags = parser.parse_args()
    files, process = whole_files(), psutil.Process()
    outcomes: collections.Counter[str] = collections.Counter()
    unlike = {}
    memory, handles = [], []
    with tempfile.TemporaryDirectory() as folder:
        for index in range(flags.files) if flags.only is None else [flags.only]:
            data = broken_file(np.random.default_rng([flags.seed, index]), files)
            path = Path(folder) / "broken.jpg" if index % 2 else None
            print(index, flush=True)
            faulthandler.dump_traceback_later(SECONDS_PER_FILE, exit=True)
            outcome = check(data, path)
            faulthandler.cancel_dump_traceback_later()
            if outcome not in ("read", "refused"):
                unlike[index] = outcome
                outcome = "wrong"
            outcomes[outcome] += 1
            if index % 500 == 499:
                memory.append(process.memory_info().rss >> 20)
                handles.append(process.num_fds())
    print(json.dumps({"outcomes": outcomes, "wrong": unlike, "mib": memory, "handles": handles}))


def _encode(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


if __name__ == "__main__":
    main()
