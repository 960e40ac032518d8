"""Camera makers' own notes in EXIF; oracle: notes laid out byte by byte, read by a reader of ours.

In a TIFF, and of makers that libexif does not know, a note's bytes are kept, but it lies elsewhere:
readers must find offsets that count from the file's start by themselves, as ExifTool does.
"""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from cotir_jax.images.photo import SUFFIXES, read_photo, write_photo

# Tag, type (2 text, 3 short, 4 long), values; all but the last lie outside the directory.
VALUES = (
    (1, 3, struct.pack("<8H", *range(16, 24))),
    (6, 2, b"Canon EOS, a picture"),
    (9, 2, b"Owner\0"),
    (16, 4, struct.pack("<I", 0x80000213)),
)
SIZES = {2: 1, 3: 2, 4: 4}


def directory(start: int) -> bytes:
    """A directory that lies at `start`, from where its offsets count, and the values behind it."""
    table, values = struct.pack("<H", len(VALUES)), b""
    behind = start + 2 + 12 * len(VALUES) + 4
    for tag, kind, value in VALUES:
        place = struct.pack("<I", behind + len(values)) if len(value) > 4 else value
        table += struct.pack("<HHI", tag, kind, len(value) // SIZES[kind]) + place
        values += value if len(value) > 4 else b""
    return table + bytes(4) + values


def read_directory(block: bytes, start: int) -> tuple:
    found = []
    for entry in range(start + 2, start + 2 + 12 * block[start], 12):
        tag, kind, count, offset = struct.unpack_from("<HHII", block, entry)
        size = count * SIZES[kind]
        place = offset if size > 4 else entry + 8
        found.append((tag, kind, block[place : place + size]))
    return tuple(found)


def photograph(make: bytes, head: bytes) -> tuple[bytes, bytes]:
    """A JPEG of a camera, and its note: `head`, then a directory."""
    make += b"\0" * (2 - len(make) % 2)
    details = 8 + 2 + 24 + 4 + len(make)
    start = details + 2 + 12 + 4
    note = head + directory(start + len(head))
    block = b"II*\0" + struct.pack("<IH", 8, 2)
    block += (
        struct.pack("<HHIIHHII", 271, 2, len(make), 38, 0x8769, 4, 1, details) + bytes(4) + make
    )
    block += struct.pack("<HHHII", 1, 0x927C, 7, len(note), start) + bytes(4) + note
    stream = io.BytesIO()
    pixels = np.full((20, 30, 3), 90, np.uint8)
    Image.fromarray(pixels).save(stream, "JPEG", exif=b"Exif\0\0" + block)
    return stream.getvalue(), note


def written(photo: bytes, path) -> tuple[bytes, bytes]:
    """EXIF block of the file that a photograph is written to, and the maker's note in it."""
    write_photo(read_photo(photo), path)
    with Image.open(path) as image:
        block = image.info.get("exif", b"").removeprefix(b"Exif\0\0")
        return block, image.getexif().get_ifd(0x8769)[0x927C]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_note_of_an_unknown_maker_is_kept_as_it_is(suffix, tmp_path):
    photo, note = photograph(b"SONY", b"SONY DSC \0\0\0")
    assert written(photo, tmp_path / f"out{suffix}")[1] == note


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".avif"])
def test_offsets_in_a_known_note_are_those_of_its_new_place(suffix, tmp_path):
    if suffix not in Image.registered_extensions():
        pytest.skip("this Pillow does not read AVIF")
    photo, note = photograph(b"Canon", b"")
    block, kept = written(photo, tmp_path / f"out{suffix}")
    assert len(kept) == len(note)
    assert read_directory(block, block.index(kept)) == VALUES


@pytest.mark.parametrize("suffix", [".tif", ".tiff"])
def test_known_note_goes_into_a_tiff_as_it_is(suffix, tmp_path):
    photo, note = photograph(b"Canon", b"")
    assert written(photo, tmp_path / f"out{suffix}")[1] == note
