"""Clean photos: where they come from, how they are split, how crops are cut."""

import hashlib
import importlib.util
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from etils import epath
from numpy.random import Generator
from PIL import Image

from cotir_jax.bench.degradations.filters import luma
from cotir_jax.images.pictures import PICTURE_SUFFIXES, list_pictures, load_picture

# Photographs inside scikit-image's wheel. No two of one subject stand on both sides.
BUNDLED_TRAIN = (
    "astronaut.png", "brick.png", "coffee.png", "coins.png", "grass.png", "gravel.png",
    "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png", "retina.jpg",
)  # fmt: skip
BUNDLED_TEST = ("camera.png", "chelsea.png", "rocket.jpg")

BORDER = 2  # some photo collections have dark outer rows
_MIN_SIDE = 16
_CACHE_BYTES = 256 * 2**20
_recent: OrderedDict[Path | epath.Path, np.ndarray] = OrderedDict()

# A file here, or an object in a bucket (gs://...), which etils reads with gcsfs.
PhotoPath: TypeAlias = Path | epath.Path


def find_photos(
    photos: Path | str | None, test_photos: Path | str | None, seed: int
) -> tuple[list[PhotoPath], list[PhotoPath]]:
    """Finds the photos to train on and those to test on; no file is in both.

    Args:
        photos: a folder or bucket (`gs://...`), or None for the photographs that ship inside
            scikit-image.
        test_photos: a folder of test photos; then all of `photos` is for training. By default
            an eighth of `photos`, at least one, is kept for the test.
        seed: of that choice.

    Raises:
        ValueError: a missing or empty folder, too few photos, or one file in both folders.
    """
    test: list[PhotoPath] = []
    if photos is None:
        train, test = _bundled_photos()
    else:
        train = _photos_in(photos)
        if test_photos is None:
            if len(train) < 2:
                raise ValueError(
                    f"{photos}: holds 1 photo; at least 2 are needed, one for the test"
                )
            chosen = np.random.default_rng([seed, len(train)]).permutation(len(train))
            test = sorted(train[index] for index in chosen[: max(len(train) // 8, 1)])
            train = sorted(set(train) - set(test))
    if test_photos is not None:
        test = _photos_in(test_photos)
        both = {path.resolve() for path in train} & {path.resolve() for path in test}
        if both:
            raise ValueError(f"{min(both)}: is among the training and the test photos; use it once")
    return train, test


def _photos_in(folder: Path | str) -> list[PhotoPath]:
    if "://" not in str(folder):
        return list(list_pictures(folder))
    bucket = epath.Path(folder)
    found = sorted(path for path in bucket.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES)
    if not found:
        raise ValueError(f"{folder}: holds no pictures ({', '.join(PICTURE_SUFFIXES)})")
    return found


def fingerprint(photos: Sequence[PhotoPath]) -> str:
    """Returns the number of files and a hash of their names and sizes, in order, as text.

    Their folder does not matter.
    """
    digest = hashlib.sha256()
    for path in photos:
        stat = path.stat()
        size = stat.st_size if isinstance(path, Path) else stat.length
        digest.update(f"{path.name}\0{size}\0".encode())
    return f"{len(photos)} files {digest.hexdigest()[:16]}"


def _bundled_photos() -> tuple[list[PhotoPath], list[PhotoPath]]:
    # Finding the package without importing it saves its import time.
    package = importlib.util.find_spec("skimage")
    if package is None or package.origin is None:
        raise ValueError("no folder of photos was named and scikit-image is not installed; "
                         "name one, or pip install scikit-image")  # fmt: skip
    folder = Path(package.origin).parent / "data"
    train, test = ([folder / name for name in names] for names in (BUNDLED_TRAIN, BUNDLED_TEST))
    missing = [path.name for path in train + test if not path.is_file()]
    if missing:
        raise ValueError(f"{folder}: lacks {', '.join(missing)}; reinstall scikit-image")
    return train, test


def trimmed_photo(path: PhotoPath) -> np.ndarray:
    """Reads a photo without its outermost 2 pixels, uint8 `[height, width, 3]`, read-only.

    Photos used last are kept, up to 256 MB.

    Raises:
        ValueError: unreadable, or smaller than 16 pixels either way.
    """
    if path in _recent:
        _recent.move_to_end(path)
        return _recent[path]
    photo = load_picture(path if isinstance(path, Path) else path.read_bytes(), str(path))
    if min(photo.shape[:2]) < _MIN_SIDE:
        raise ValueError(
            f"{path}: {photo.shape[1]}x{photo.shape[0]} is too small, at least "
            f"{_MIN_SIDE}x{_MIN_SIDE} is needed; replace or remove it"
        )
    photo = photo[BORDER:-BORDER, BORDER:-BORDER]
    photo.flags.writeable = False
    _recent[path] = photo
    held = sum(kept.nbytes for kept in _recent.values())
    while held > _CACHE_BYTES and len(_recent) > 1:
        held -= _recent.popitem(last=False)[1].nbytes
    return photo


class Crop(NamedTuple):
    """A square of a photo: left, top, right, bottom in pixels, and whether it is mirrored."""

    box: tuple[float, float, float, float]
    mirrored: bool


def choose_crop(photo: np.ndarray, size: int, rng: Generator) -> Crop:
    """Chooses a square to be scaled to `size` pixels, mirrored half of the time.

    The scale is between that at which the photo's shorter side just fits and full
    resolution; a smaller photo is enlarged as little as needed. Flat places (black corners, sky)
    are avoided where the photo, uint8 `[height, width, 3]`, has better ones.
    """
    height, width = photo.shape[:2]
    fits = size / min(height, width)
    best, most_content = (0.0, 0.0, 0.0, 0.0), -1.0
    for _ in range(6):
        scale = fits if fits >= 1 else float(np.exp(rng.uniform(np.log(fits), 0)))
        side = min(size / scale, height, width)
        left, top = rng.uniform(0, width - side), rng.uniform(0, height - side)
        window = photo[int(top) : int(top + side) + 1 : 4, int(left) : int(left + side) + 1 : 4, 1]
        # Spread, and how much of the crop is not sheer black.
        content = min(float(window.std()) / 12, float((window > 12).mean()) / 0.6)
        if content > most_content:
            best, most_content = (left, top, left + side, top + side), content
        if content >= 1:
            break
    return Crop(best, bool(rng.random() < 0.5))


def recolour(photo: np.ndarray, rng: Generator) -> np.ndarray:
    """Gives uint8 `[height, width, 3]` other colours and contrast, its shapes kept.

    The channels in any order, a gamma of each, a saturation of 0 to 2 (a tenth of the photos
    becomes grey), then contrast and light, which may clip. A model that has seen the palette of
    only one collection corrects others towards it, asked or not: white paper becomes grey, a
    bright feather pale.
    """
    gamma = np.exp(rng.normal(0, 0.15, 3)).astype(np.float32)
    values = (photo[..., rng.permutation(3)] / np.float32(255)) ** gamma
    saturation = 0.0 if rng.random() < 0.1 else rng.uniform(0, 2)
    grey = luma(values)[..., None]
    values = grey + np.float32(saturation) * (values - grey)
    contrast, light = np.exp(rng.normal(0, 0.2)), rng.normal(0, 0.06)
    values = 0.5 + np.float32(light) + np.float32(contrast) * (values - 0.5)
    return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)


def cut(field: np.ndarray, crop: Crop, size: int) -> np.ndarray:
    """Cuts a crop and scales it to `size` pixels a side; dtype and channels stay.

    `field` is a photo, uint8 `[height, width, 3]`, or its depth, float32 `[height, width]`.
    """
    photo = field.dtype == np.uint8
    how = Image.Resampling.LANCZOS if photo else Image.Resampling.BILINEAR
    image = Image.fromarray(field).resize((size, size), how, box=crop.box)
    if crop.mirrored:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.array(image)
