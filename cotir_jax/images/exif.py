"""EXIF of photographs: added to libvips' pictures, and to and from TIFF, where libvips has none."""

import io
import struct
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import pyvips
from PIL import Image, TiffImagePlugin

_ORIENTATION = 0x0112
_BYTE_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
# Description, make, model, software, date, artist, copyright; directories: EXIF, GPS.
_CAMERA_TAGS = (270, 271, 272, 305, 306, 315, 33432)
_DIRECTORIES = (0x8769, 0x8825)
# What Pillow raises on damaged EXIF.
_DAMAGED = (OSError, ValueError, SyntaxError, LookupError, TypeError, OverflowError, struct.error)

# Pillow warns about damaged tags, which are left out here.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")


def set_upright(exif: bytes) -> bytes:
    """Sets an EXIF block's orientation, if any, to 1, and removes its thumbnail.

    The thumbnail would show the degraded picture, turned by the orientation.

    Args:
      exif: with or without the "Exif" marker before it; a damaged one is returned unchanged.
    """
    block, base = bytearray(exif), 6 if exif.startswith(b"Exif\0\0") else 0
    order = _BYTE_ORDERS.get(exif[base : base + 4])
    if order is None:
        return exif
    try:
        (start,) = struct.unpack_from(f"{order}I", block, base + 4)
        (count,) = struct.unpack_from(f"{order}H", block, base + start)
        for entry in range(base + start + 2, base + start + 2 + 12 * count, 12):
            if struct.unpack_from(f"{order}H", block, entry) == (_ORIENTATION,):
                struct.pack_into(f"{order}HIHH", block, entry + 2, 3, 1, 1, 0)
        struct.pack_into(f"{order}I", block, base + start + 2 + 12 * count, 0)  # next directory
    except struct.error:
        return exif
    return bytes(block)


def add_to_image(image: pyvips.Image, exif: bytes) -> None:
    """Sets the metadata that libvips' savers make an EXIF block of.

    They write only tags that exist as single fields too, and only loaders make those, so the block
    is loaded as that of a picture of one pixel.
    """
    stream = io.BytesIO()
    Image.new("L", (1, 1)).save(stream, "PNG", exif=exif)
    header = pyvips.Image.pngload_buffer(stream.getvalue())
    for name in header.get_fields():
        if name.startswith("exif-") and not name.endswith("Orientation"):
            image.set_type(header.get_typeof(name), name, header.get(name))
    image.set_type(pyvips.GValue.gint_type, "orientation", 1)


def from_tiff(source: Path | str | bytes) -> bytes | None:
    """Makes an EXIF block of a TIFF's tags; None if it has none, or they are damaged."""
    try:
        # Opened again: libvips would lose its place in the file that it reads from.
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
            found = Image.Exif()
            found.load_from_fp(file)
            tags = _camera_tags(found)
        block = Image.Exif()
        block.update(tags)
        return block.tobytes() if tags else None
    except _DAMAGED:
        return None


def add_to_tiff(file: BinaryIO, exif: bytes) -> None:
    """Adds EXIF tags to a TIFF that was just written, by a new directory at its end.

    Does nothing for damaged EXIF blocks, and for files above 4 GB, which have another layout.
    """
    file.seek(0)
    header = file.read(8)
    order = _BYTE_ORDERS.get(header[:4])
    if order is None:
        return
    file.seek(*struct.unpack(f"{order}I", header[4:]))
    (count,) = struct.unpack(f"{order}H", file.read(2))
    own, following = file.read(12 * count), file.read(4)
    end = file.seek(0, io.SEEK_END)
    offset = end + end % 2
    try:
        block = Image.Exif()
        block.load(exif)
        directory = TiffImagePlugin.ImageFileDirectory_v2(header)
        for tag, value in _camera_tags(block).items():
            directory[tag] = value
        added = directory.tobytes(offset)
    except _DAMAGED:
        return
    added += bytes(len(added) % 2)
    entries = {}  # the file's own entries come last and win
    for table in (added[2 : 2 + 12 * len(directory)], own):
        for entry in range(0, len(table), 12):
            entries[struct.unpack_from(f"{order}H", table, entry)] = table[entry : entry + 12]
    merged = b"".join(entries[tag] for tag in sorted(entries))
    file.write(bytes(offset - end) + added)
    file.write(struct.pack(f"{order}H", len(entries)) + merged + following)
    file.seek(4)
    file.write(struct.pack(f"{order}I", offset + len(added)))


def _camera_tags(exif: Image.Exif) -> dict[int, Any]:
    """Returns the tags about the photograph, without those about the layout of its file."""
    tags = {tag: exif[tag] for tag in _CAMERA_TAGS if tag in exif}
    return tags | {tag: ifd for tag in _DIRECTORIES if (ifd := dict(exif.get_ifd(tag)))}
