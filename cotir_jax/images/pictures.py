"""8-bit pictures of benchmark and training: read, write, list and arrange. numpy and Pillow only.

A picture is a uint8 array `[height, width, 3]`, RGB, 0 to 255.
"""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from cotir_jax import files

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")

# White pixels between pictures.
_GAP = 4
# What Pillow raises on broken files; struct.error and SyntaxError come from its format readers.
_READ_ERRORS = (OSError, ValueError, SyntaxError, EOFError, IndexError, MemoryError)


def load_picture(source: Path | str | bytes, name: str = "") -> np.ndarray:
    """Reads a picture as upright 8-bit RGB.

    EXIF orientation is applied, greyscale is copied to three channels, alpha is laid over
    white, 16-bit values are scaled to 8 bits.

    Args:
      source: a file's path, or the encoded bytes themselves.
      name: what to call the picture in errors; by default its path.

    Returns:
      uint8 `[height, width, 3]`.

    Raises:
      ValueError: one line naming the picture when it is missing, truncated or no picture.
    """
    name = name or ("picture in memory" if isinstance(source, bytes) else str(source))
    try:
        stream = io.BytesIO(source) if isinstance(source, bytes) else source
        with Image.open(stream) as image:
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError:
        raise ValueError(f"{name}: no such file; check the path") from None
    except (*_READ_ERRORS, Image.DecompressionBombError) as error:
        reason = files.one_line(error)
        if isinstance(error, Image.UnidentifiedImageError):
            reason = "not a picture in a format that Pillow knows"
        raise ValueError(
            f"{name}: cannot be read as a picture ({reason}); replace or remove it"
        ) from error


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith(("I", "F")):  # 16-bit and 32-bit single channel
        values = np.asarray(image).astype(np.float64)
        top = 255.0 if values.max() <= 255 and image.mode == "I" else 65535.0
        if image.mode == "F":
            top = 1.0 if values.max() <= 1 else 255.0
        grey = np.clip(np.rint(values * (255.0 / top)), 0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if "A" in image.mode or "transparency" in image.info:
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return np.array(image.convert("RGB"))


def check_picture(picture: np.ndarray) -> None:
    """Raises ValueError unless `picture` is uint8 `[height, width, 3]` and not empty."""
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
        raise ValueError(
            f"expected a uint8 picture [height, width, 3], got {picture.dtype} "
            f"{list(picture.shape)}; convert it first"
        )


def encode_png(picture: np.ndarray, compress_level: int = 6) -> bytes:
    """Encodes uint8 `[height, width, 3]` as PNG bytes; `compress_level` 0 (fast) to 9."""
    check_picture(picture)
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG", compress_level=compress_level)
    return stream.getvalue()


def data_url(picture: np.ndarray, side: int, quality: int) -> str:
    """Encodes uint8 `[height, width, 3]` as a JPEG in a data URL, shrunk to at most `side`."""
    image = Image.fromarray(picture)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()


def save_picture(picture: np.ndarray, path: Path | str) -> None:
    """Writes uint8 `[height, width, 3]`; the suffix picks the format (JPEG at quality 95).

    The file appears completely or not at all.

    Raises:
      ValueError: the array is no picture, or the suffix is none of `PICTURE_SUFFIXES`.
    """
    check_picture(picture)
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in PICTURE_SUFFIXES:
        raise ValueError(f"{path}: suffix {suffix!r} is not one of {', '.join(PICTURE_SUFFIXES)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"quality": 95, "subsampling": 0} if suffix in (".jpg", ".jpeg") else {}
    if suffix == ".webp":
        options = {"lossless": True}
    kind = Image.registered_extensions()[suffix]
    with files.atomic_path(path) as temporary:
        Image.fromarray(picture).save(temporary, kind, **options)


def list_pictures(folder: Path | str) -> list[Path]:
    """Lists the picture files directly inside `folder`, sorted by name, hidden ones left out.

    Raises:
      ValueError: the folder is missing, is a file, or holds no pictures.
    """
    folder = Path(folder)
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "no such folder"
        raise ValueError(f"{folder}: {what}; name a folder of pictures")
    found = sorted(
        path
        for path in folder.glob("[!.]*")
        if path.suffix.lower() in PICTURE_SUFFIXES and path.is_file()
    )
    if not found:
        raise ValueError(f"{folder}: holds no pictures ({', '.join(PICTURE_SUFFIXES)})")
    return found


def side_by_side(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Puts pictures, uint8 `[height, width_i, 3]`, in one row with white gaps of 4 pixels.

    Returns:
      uint8 `[height, sum(width_i) + 4 * (n - 1), 3]`.

    Raises:
      ValueError: no pictures, or unequal heights.
    """
    if not pictures:
        raise ValueError("side_by_side got no pictures; give at least one")
    for picture in pictures:
        check_picture(picture)
    heights = sorted({picture.shape[0] for picture in pictures})
    if len(heights) > 1:
        raise ValueError(f"side_by_side needs equal heights, got {heights}; resize them first")
    white = np.full((heights[0], _GAP, 3), 255, np.uint8)
    return np.concatenate([part for one in pictures for part in (white, one)][1:], axis=1)


def contact_sheet(
    rows: Sequence[Sequence[np.ndarray]],
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    font_size: int = 14,
) -> np.ndarray:
    """Arranges pictures on a white labelled grid.

    Args:
      rows: pictures, uint8 `[height, width, 3]` each, of any sizes; rows may be uneven.
      row_labels: one text left of each row, or none.
      column_labels: one text above each column, or none.
      font_size: of the labels, in pixels.

    Returns:
      uint8 `[height, width, 3]`.

    Raises:
      ValueError: no pictures, or a label list of the wrong length.
    """
    pictures = [picture for row in rows for picture in row]
    if not pictures:
        raise ValueError("contact_sheet got no pictures; give at least one")
    for picture in pictures:
        check_picture(picture)
    num_columns = max(len(row) for row in rows)
    named = (("row", row_labels, len(rows)), ("column", column_labels, num_columns))
    for what, labels, count in named:
        if labels and len(labels) != count:
            raise ValueError(f"contact_sheet got {len(labels)} {what} labels for {count} {what}s")
    gap, cell_width = _GAP, max(picture.shape[1] for picture in pictures)
    row_heights = [max((p.shape[0] for p in row), default=font_size) for row in rows]
    font = load_font(font_size)
    margin = max((int(font.getlength(label)) + gap for label in row_labels), default=0)
    left = gap + margin
    top = gap + (font_size + gap if column_labels else 0)
    size = (left + num_columns * (cell_width + gap), top + sum(row_heights) + gap * len(rows))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for column, label in enumerate(column_labels):
        draw.text((left + column * (cell_width + gap), gap // 2), label, "black", font=font)
    y = top
    for index, row in enumerate(rows):
        if row_labels:
            middle = y + (row_heights[index] - font_size) // 2
            draw.text((gap, middle), row_labels[index], "black", font=font)
        for column, picture in enumerate(row):
            sheet.paste(Image.fromarray(picture), (left + column * (cell_width + gap), y))
        y += row_heights[index] + gap
    return np.array(sheet)


def load_font(size: int) -> Any:
    """Loads Pillow's own font, in its only size where Pillow was built without FreeType."""
    try:
        return ImageFont.load_default(size)
    except (TypeError, ImportError, OSError):
        return ImageFont.load_default()
