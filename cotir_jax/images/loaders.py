"""Opens still pictures of known formats by libvips, or by Pillow where libvips has no reader."""

import io
import struct
from typing import BinaryIO

import numpy as np
import pyvips
from PIL import BmpImagePlugin, ImageFile, PpmImagePlugin

# Loader, and how its files begin. libvips itself never chooses: it could take a format that reads
# other files or runs scripts (SVG, PDF, MATLAB, ImageMagick's).
_LOADERS = {
    "jpegload": (b"\xff\xd8\xff",),
    "pngload": (b"\x89PNG\r\n\x1a\n",),
    "gifload": (b"GIF87a", b"GIF89a"),
    "tiffload": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
}
# libvips from pip has no readers for these. Pillow's give 8 bits, except for grey PPM.
_PILLOW: dict[bytes, type[ImageFile.ImageFile]] = {
    b"BM": BmpImagePlugin.BmpImageFile,
    **{b"P%d" % kind: PpmImagePlugin.PpmImageFile for kind in range(1, 7)},
}
_HEIF_BRANDS = (b"avif", b"avis", b"mif1", b"msf1")
# HEIC: libvips from pip reads its header, but has no decoder for its pixels.
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")
_FORMATS = "JPEG, PNG, WebP, TIFF, AVIF, GIF, BMP, PPM"
_NO_HEIC = f"it is HEIC; accepted are {_FORMATS}"


def load(head: bytes, source: BinaryIO | bytes, max_pixels: int) -> pyvips.Image:
    """Reads a picture's header; its pixels are decoded when they are asked for.

    Args:
      head: the first bytes of the file.
      source: the open file, which must stay open, or all of its bytes.
      max_pixels: of width times height.

    Returns:
      The picture, to be read from top to bottom once.

    Raises:
      ValueError, OSError, pyvips.Error: for a broken or too large file, or another format.
    """
    # Messages about earlier files that libvips only warned about are still in its buffer.
    pyvips.vips_lib.vips_error_clear()
    if not head:
        raise ValueError("it is empty")
    loader = next((loader for loader, begins in _LOADERS.items() if head.startswith(begins)), "")
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        loader = "webpload"
    elif head[4:8] == b"ftyp" and head[8:12] in _HEIC_BRANDS:
        raise ValueError(_NO_HEIC)
    elif head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS:
        loader = "heifload"
    if head[:2] in _PILLOW:
        return _load_by_pillow(source, head[:2], max_pixels)
    if not loader:
        raise ValueError(f"its format is none of {_FORMATS}")
    if isinstance(source, bytes):
        stream = pyvips.Source.new_from_memory(source)
    else:
        stream = pyvips.Source.new_from_descriptor(source.fileno())
    load = getattr(pyvips.Image, f"{loader}_source")
    image = load(stream, access="sequential", fail_on="error")
    if loader == "heifload" and image.get("heif-compression") == "hevc":
        raise ValueError(_NO_HEIC)
    _check_pixels(image.width, image.height, max_pixels)
    return image


def _load_by_pillow(source: BinaryIO | bytes, kind: bytes, max_pixels: int) -> pyvips.Image:
    stream = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        # `Image.open` would warn from half our limit on.
        with _PILLOW[kind](stream) as image:
            _check_pixels(*image.size, max_pixels)
            if image.mode.startswith("I"):
                grey = np.asarray(image).astype(np.uint16)
                return pyvips.Image.new_from_array(grey, interpretation="grey16")
            mode = {"1": "L", "L": "L", "RGBA": "RGBA"}.get(image.mode, "RGB")
            return pyvips.Image.new_from_array(np.array(image.convert(mode)), interpretation="auto")
    except (SyntaxError, LookupError, EOFError, TypeError, struct.error) as error:
        raise ValueError(str(error)) from error


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ValueError(f"{width}x{height} pixels: more than the limit of {max_pixels:,}")
