"""Photographs as people have them: any depth, alpha, profile, EXIF; reading and writing by libvips.

Colour values are restored in the file's own RGB or grey space, and its ICC profile is copied to the
result. CMYK, Lab and other spaces are converted to sRGB by their profile.
`pictures.py` reads the pictures of benchmark and training, as 8-bit RGB, with Pillow.
"""

import dataclasses
import logging
import math
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyvips

from cotir_jax import files
from cotir_jax.images import loaders
from cotir_jax.images.exif import add_to_image, add_to_tiff, from_tiff, set_upright

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".avif")

# Larger pictures are refused before anything is decoded: 12,000 x 9,000 are 108 million.
MAX_PIXELS = 200_000_000

_INTERPRETATIONS = {  # dtype and number of colours: how libvips calls it
    (np.dtype(np.uint8), 1): "b-w",
    (np.dtype(np.uint8), 3): "srgb",
    (np.dtype(np.uint16), 1): "grey16",
    (np.dtype(np.uint16), 3): "rgb16",
}
# How libvips error lines begin that carry no information.
_UNTOLD = ("source: bad seek", "unable to ", "vips__")
_Result = TypeVar("_Result")

# Warnings that matter are raised as errors; these copies in the log would reach stderr wherever a
# program logs there.
logging.getLogger("pyvips").propagate = False
# Its cache of results would keep entire pictures in memory.
pyvips.cache_set_max(0)


@dataclasses.dataclass(frozen=True)
class Photo:
    """A picture, and what its file holds besides the colour values.

    Attributes:
      pixels: uint8 or uint16 `[height, width, 3]`, upright, RGB.
      alpha: opacity, `[height, width]` of the same dtype, or None.
      grey: the file has one colour channel, and so will the file that is written.
      exif: EXIF block of the file, with orientation 1 (the pixels are upright) and no thumbnail.
      icc_profile: of `pixels`; None stands for sRGB.
      xmp: XMP packet.
      iptc: IPTC block.
      resolution: pixels per millimetre, horizontally and vertically.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    grey: bool = False
    exif: bytes | None = None
    icc_profile: bytes | None = None
    xmp: bytes | None = None
    iptc: bytes | None = None
    resolution: tuple[float, float] | None = None


def read_photo(source: Path | str | bytes, name: str = "", max_pixels: int = MAX_PIXELS) -> Photo:
    """Reads a photograph: JPEG, PNG, WebP, TIFF, AVIF, GIF, BMP or PPM, by its content.

    8 and 16 bits are kept as they are. Deeper and floating-point values become 16 bits: their range
    is taken to end at 1 (floating-point), 255 or 65,535, the first that holds them all, or else at
    the largest value. Of an animation or of several pages the first is read.

    Args:
      source: a file, or the encoded bytes themselves.
      name: what to call the picture in errors; by default its path.
      max_pixels: refuse larger pictures by what their header says.

    Returns:
      The upright picture with its metadata.

    Raises:
      ValueError: one line naming the picture when it is missing, no regular file, unreadable,
        damaged, cut off, too large, or in no format of these.
    """
    return _load(source, name, max_pixels, lambda image: _decode(image, source))


def photo_size(source: Path | str | bytes) -> tuple[int, int]:
    """Returns height and width of an upright photograph, from its header only.

    Raises:
      ValueError: as for `read_photo`; damage after the header is not found.
    """
    height, width, orientation = _load(
        source, "", MAX_PIXELS, lambda i: (i.height, i.width, _field(i, "orientation", 1))
    )
    return (width, height) if orientation > 4 else (height, width)


def write_photo(photo: Photo, path: Path | str, quality: int = 95) -> None:
    """Writes a photograph with its metadata; the suffix picks the format.

    The file appears completely or not at all.

    | suffix | bits | alpha | quality |
    |---|---|---|---|
    | .png | 8, 16 | kept | no effect: lossless |
    | .tif, .tiff | 8, 16 | kept | no effect: lossless |
    | .jpg, .jpeg | 8 | laid over white | 1 to 100; from 90 on without colour subsampling |
    | .webp | 8 | kept | 1 to 99, 100: lossless |
    | .avif | 8, 12 | kept | 1 to 100; from 90 on without colour subsampling |

    Args:
      photo: 16 bits are rounded to what the format holds.
      path: folders on the way are made.
      quality: 1 to 100.

    Raises:
      ValueError: for another suffix or quality, or a picture that the format cannot hold.
      OSError: when the disk is full or the folder cannot be written; an old file stays.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{path}: suffix {suffix!r} is not one of {', '.join(SUFFIXES)}")
    if not 1 <= quality <= 100:
        raise ValueError(f"quality={quality}: expected 1 to 100")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with files.atomic_path(path) as temporary, temporary.open("w+b") as file:
            target = pyvips.Target.new_to_descriptor(file.fileno())
            saver, options = _saver(suffix, quality, photo.pixels.dtype)
            getattr(_encodable(photo, suffix), saver)(target, **options)
            if suffix in (".tif", ".tiff") and photo.exif:
                add_to_tiff(file, photo.exif)
    except pyvips.Error as error:
        reason = _reason(error)
        for code in files.NO_SPACE:
            if os.strerror(code) in str(error):
                raise OSError(code, os.strerror(code), str(path)) from None
        raise ValueError(f"{path}: cannot be written ({reason}); try another format") from error


def check_pixels(pixels: np.ndarray) -> None:
    """Raises ValueError unless `pixels` are uint8 or uint16 `[height, width, 3]`, and not empty."""
    good = pixels.ndim == 3 and pixels.shape[-1] == 3 and pixels.dtype in (np.uint8, np.uint16)
    if not good or not pixels.size:
        raise ValueError(
            f"picture {pixels.shape} {pixels.dtype}: expected uint8 or uint16 [height, width, 3]"
        )


def unit_range(pixels: np.ndarray) -> np.ndarray:
    """Scales integers to float32 in [-1, 1]; float32 stays as it is."""
    if pixels.dtype == np.float32:
        return pixels
    return pixels.astype(np.float32) / np.float32(np.iinfo(pixels.dtype).max / 2) - np.float32(1)


def eight_bits(pixels: np.ndarray) -> np.ndarray:
    """uint16 to uint8, rounded; uint8 stays as it is."""
    return pixels if pixels.dtype == np.uint8 else np.rint(pixels / 257).astype(np.uint8)


def _load(
    source: Path | str | bytes, name: str, max_pixels: int, use: Callable[[pyvips.Image], _Result]
) -> _Result:
    """Gives `use` a picture whose header is read; turns all errors into one line.

    A context manager would keep pictures and open files after an error: its generator's frame and
    the error refer to each other.
    """
    name = name or ("picture in memory" if isinstance(source, bytes) else str(source))
    try:
        if isinstance(source, bytes):
            return use(loaders.load(source[:32], source, max_pixels))
        # Opening a pipe would wait for whoever writes into it.
        if not stat.S_ISREG(os.stat(source).st_mode):
            raise ValueError("it is no regular file")
        with open(source, "rb") as file:
            head = file.read(32)
            file.seek(0)
            return use(loaders.load(head, file, max_pixels))
    except FileNotFoundError:
        raise ValueError(f"{name}: no such file; check the path") from None
    except (OSError, ValueError, MemoryError, pyvips.Error) as error:
        raise ValueError(
            f"{name}: cannot be read as a picture ({_reason(error)}); replace or remove it"
        ) from error


def _decode(image: pyvips.Image, source: Path | str | bytes) -> Photo:
    icc_profile = _field(image, "icc-profile-data")
    exif = _field(image, "exif-data")
    if _field(image, "vips-loader", "").startswith("tiff"):
        exif = from_tiff(source)
    exif = None if exif is None else set_upright(exif)
    resolution = (image.xres, image.yres) if image.xres != 1.0 else None
    xmp, iptc = _field(image, "xmp-data"), _field(image, "iptc-data")
    image, colours, converted = _to_rgb_or_grey(image)
    # A profile has to be for this kind of picture, by the colour space in its header.
    if converted or (icc_profile or b"")[16:20] != (b"GRAY" if colours == 1 else b"RGB "):
        icc_profile = None
    if _field(image, "orientation", 1) > 1:
        image = image.copy_memory().autorot()
    dtype = np.uint8 if image.format == "uchar" else np.uint16
    values = np.frombuffer(image.write_to_memory(), dtype)  # shares libvips's memory
    values = values.reshape(image.height, image.width, image.bands)
    pixels = values[..., :colours]
    pixels = np.repeat(pixels, 3, axis=2) if colours == 1 else np.ascontiguousarray(pixels)
    alpha = np.ascontiguousarray(values[..., colours]) if image.bands > colours else None
    return Photo(pixels, alpha, colours == 1, exif, icc_profile, xmp, iptc, resolution)


def _to_rgb_or_grey(image: pyvips.Image) -> tuple[pyvips.Image, int, bool]:
    """Converts to integers with 1 or 3 colour bands, followed by alpha if any.

    Returns:
      The picture, its number of colour bands, and whether it was converted to sRGB.
    """
    space, converted = image.interpretation, False
    if space == "cmyk" and image.bands >= 4:
        embedded = bool(_field(image, "icc-profile-data"))
        depth = 8 if image.format == "uchar" else 16
        image = image.icc_transform("srgb", embedded=embedded, depth=depth, input_profile="cmyk")
        converted = True
    elif space in ("lab", "labs", "labq", "lch", "xyz", "yxy", "cmc", "hsv"):
        image, converted = image.colourspace("srgb"), True
    if image.format not in ("uchar", "ushort"):
        image = _to_integers(image)
    colours = 1 if image.bands < 3 else 3
    if image.bands > colours + 1:  # channels of unknown meaning
        image = image.extract_band(0, n=colours + 1)
    return image, colours, converted


def _to_integers(image: pyvips.Image) -> pyvips.Image:
    image = image.copy_memory()
    fractions = image.format in ("float", "double")
    largest = image.max()
    tops = (1.0, 255.0, 65535.0) if fractions else (255.0, 65535.0)
    top = next((top for top in tops if largest <= top), largest)
    if not math.isfinite(top):
        raise ValueError("it holds values that are not finite")
    kind, limit = ("uchar", 255.0) if top == 255 and not fractions else ("ushort", 65535.0)
    return (image * (limit / top)).rint().cast(kind)


def _field(image: pyvips.Image, name: str, default: Any = None) -> Any:
    return image.get(name) if image.get_typeof(name) else default


def _saver(suffix: str, quality: int, dtype: np.dtype) -> tuple[str, dict[str, Any]]:
    if suffix == ".png":
        return "pngsave_target", {"compression": 6}
    if suffix in (".jpg", ".jpeg"):
        return "jpegsave_target", {"Q": quality}
    if suffix == ".webp":
        return "webpsave_target", {"Q": quality, "lossless": quality == 100}
    if suffix == ".avif":
        depth = 8 if dtype == np.uint8 else 12
        options = {"Q": quality, "compression": "av1", "bitdepth": depth, "effort": 2}
        return "heifsave_target", options
    return "tiffsave_target", {"compression": "deflate", "predictor": "horizontal"}


def _encodable(photo: Photo, suffix: str) -> pyvips.Image:
    """Returns a picture that the format can hold, with its metadata, computed while written."""
    dtype = photo.pixels.dtype
    image = _image(photo.pixels, _INTERPRETATIONS[dtype, 3])
    if photo.grey:
        # Luma of ITU-R BT.601; equal channels stay as they are.
        image = image.recomb([[0.299, 0.587, 0.114]]).rint().cast(image.format)
    if photo.alpha is not None:
        image = image.bandjoin(_image(photo.alpha, "multiband"))
    image = image.copy(interpretation=_INTERPRETATIONS[dtype, 1 if photo.grey else 3])
    if photo.alpha is not None and suffix in (".jpg", ".jpeg"):
        image = image.flatten(background=np.iinfo(dtype).max)
    if dtype == np.uint16 and suffix in (".jpg", ".jpeg", ".webp"):
        image = (image / 257).rint().cast("uchar")
        image = image.copy(interpretation="b-w" if photo.grey else "srgb")
    # Without a resolution libvips would write one pixel per millimetre.
    xres, yres = photo.resolution or (72 / 25.4, 72 / 25.4)
    image = image.copy(xres=xres, yres=yres)
    for name, value in (
        ("icc-profile-data", photo.icc_profile),
        ("xmp-data", photo.xmp),
        ("iptc-data", photo.iptc),
    ):
        if value is not None:
            image.set_type(pyvips.GValue.blob_type, name, value)
    if photo.exif is not None:
        add_to_image(image, photo.exif)
    return image


def _image(values: np.ndarray, interpretation: str) -> pyvips.Image:
    """Shares the memory of `values` where they are contiguous."""
    return pyvips.Image.new_from_array(np.ascontiguousarray(values), interpretation=interpretation)


def _reason(error: BaseException) -> str:
    """Returns the reason on one line, without libvips lines that say only which function failed."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error.detail or error.message if isinstance(error, pyvips.Error) else error)
    lines = dict.fromkeys(" ".join(line.split()) for line in text.splitlines())
    telling = [line for line in lines if line and not line.startswith(_UNTOLD)]
    return "; ".join(telling[:2])[:200] or "its data are damaged"
