"""Contact sheets of the benchmark: every degradation at three severities, and the composites."""

import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from cotir_jax.bench.composites import SEEN, SINGLES, UNSEEN, apply_chain, sample_chain
from cotir_jax.bench.photos import find_photos, trimmed_photo
from cotir_jax.bench.words.table import plain_name
from cotir_jax.images.pictures import PICTURE_SUFFIXES, contact_sheet, load_font, save_picture

_SEVERITIES = {"mild": 1 / 6, "moderate": 1 / 2, "severe": 5 / 6}
_COMPOSITE_SEVERITY = 0.45
_COLUMNS = 7
# Those of scikit-image's photographs that show a scene and one to be mirrored in panes.
_PHOTO, _SECOND = "coffee", "motorcycle_left"


def write_gallery(
    out: Path | str, photo: Path | str | None = None, side: int = 160, seed: int = 8
) -> list[Path]:
    """Draws two sheets: `out` with every degradation, and next to it one with the composites.

    Args:
        out: the first picture; the second one's name has `-composites` before the suffix.
        photo: what to degrade; by default a photograph that ships inside scikit-image.
        side: of each picture on the sheets in pixels; they are degraded at three times that.
        seed: of every draw.

    Returns:
        The two files.

    Raises:
        ValueError: the photo cannot be read, or the suffix is no picture's.
    """
    out = Path(out)
    if out.suffix.lower() not in PICTURE_SUFFIXES:
        raise ValueError(
            f"{out}: suffix {out.suffix!r} is not one of {', '.join(PICTURE_SUFFIXES)}"
        )
    whole = Image.fromarray(trimmed_photo(_bundled(_PHOTO) if photo is None else Path(photo)))
    clean = np.asarray(ImageOps.fit(whole, (3 * side, 3 * side), Image.Resampling.LANCZOS))
    # A photo of the user's comes without a second one; it is mirrored itself.
    second = trimmed_photo(_bundled(_SECOND)) if photo is None else None
    other = out.with_name(f"{out.stem}-composites{out.suffix}")
    save_picture(degradations_sheet(clean, side, seed, second), out)
    save_picture(composites_sheet(clean, side, seed, second), other)
    return [out, other]


def degradations_sheet(
    clean: np.ndarray, side: int, seed: int = 0, second: np.ndarray | None = None
) -> np.ndarray:
    """Shows the clean picture and every degradation at three severities, in two halves.

    Args:
        clean: uint8 `[size, size, 3]`.
        side: of each picture on the sheet.
        seed: of the draws.
        second: uint8 `[any, any, 3]` to show in window reflections.

    Returns:
        uint8 `[height, width, 3]`.
    """
    labels = ["clean", *map(plain_name, SINGLES)]
    levels = _SEVERITIES.values()
    rows = [[_example(clean, name, at, side, seed, second) for at in levels] for name in SINGLES]
    rows = [[_small(clean, side)], *rows]
    half = (len(rows) + 1) // 2
    halves = [
        contact_sheet(rows[part], labels[part], list(_SEVERITIES), font_size=13)
        for part in (slice(half), slice(half, None))
    ]
    return contact_sheet([halves])


def composites_sheet(
    clean: np.ndarray, side: int, seed: int = 0, second: np.ndarray | None = None
) -> np.ndarray:
    """Shows the composites at moderate severity with their names, those of the test split last.

    It takes and returns what `degradations_sheet` does.
    """
    blocks = []
    for label, names in (("seen", SEEN), ("unseen: test only", UNSEEN)):
        cells = [
            _captioned(_example(clean, name, _COMPOSITE_SEVERITY, side, seed, second), name)
            for name in names
        ]
        rows = [cells[start : start + _COLUMNS] for start in range(0, len(cells), _COLUMNS)]
        head = [label] + [""] * (len(rows[0]) - 1)
        blocks.append(contact_sheet(rows, column_labels=head, font_size=13))
    return contact_sheet([[block] for block in blocks])


def _example(
    clean: np.ndarray, name: str, severity: float, side: int, seed: int, second: np.ndarray | None
) -> np.ndarray:
    # The same draws at each severity, so that only the strength differs.
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    chain = sample_chain(name, min(clean.shape[:2]), rng, severity, second=second)
    return _small(apply_chain(clean, chain, rng), side)


def _small(picture: np.ndarray, side: int) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS))


def _captioned(picture: np.ndarray, name: str) -> np.ndarray:
    """Writes the parts of a picture's name below it, in up to three lines."""
    size, width = 11, picture.shape[1]
    font = load_font(size)
    lines = [""]
    for number, part in enumerate(name.split("+")):
        word = plain_name(part) if number == 0 else f"+ {plain_name(part)}"
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width - 4:  # some letters are wider than that
            lines.append(word)
        else:
            lines[-1] = longer
    strip = Image.new("RGB", (width, 3 * (size + 2)), "white")
    for number, line in enumerate(lines):
        ImageDraw.Draw(strip).text((1, number * (size + 1)), line, "black", font=font)
    return np.concatenate([picture, np.asarray(strip)])


def _bundled(stem: str) -> Path:
    train, test = find_photos(None, None, 0)
    return next(path for path in train + test if path.stem == stem)
