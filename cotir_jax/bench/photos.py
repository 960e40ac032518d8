"""Clean photos: where they come from, how they are split, how crops are cut."""

import importlib.util
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from cotir_jax.pictures import list_pictures, load_picture

# Photographs inside scikit-image's wheel. No two of one subject stand on both sides.
BUNDLED_TRAIN = (
    "astronaut.png", "brick.png", "coffee.png", "coins.png", "grass.png", "gravel.png",
    "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png", "retina.jpg",
)  # fmt: skip
BUNDLED_TEST = ("camera.png", "chelsea.png", "rocket.jpg")

_BORDER = 2  # some photo collections have dark outer rows


def find_photos(
    photos: Path | None, test_photos: Path | None, seed: int
) -> tuple[list[Path], list[Path]]:
    """The photos to train on and those to test on; no file is in both.

    Args:
        photos: a folder, or None for the photographs that ship inside scikit-image.
        test_photos: a folder of test photos; then all of ``photos`` is for training. By default
            an eighth of ``photos``, at least one, is set apart, chosen by ``seed``.

    Raises:
        ValueError: a missing or empty folder, too few photos, or one file in both folders.
    """
    if photos is None:
        train, test = _bundled_photos()
    else:
        train, test = list_pictures(photos), []
        if test_photos is None:
            if len(train) < 2:
                raise ValueError(
                    f"{photos}: holds {len(train)} photo; at least 2 are needed, one for the test"
                )
            chosen = np.random.default_rng([seed, len(train)]).permutation(len(train))
            test = sorted(train[index] for index in chosen[: max(len(train) // 8, 1)])
            train = sorted(set(train) - set(test))
    if test_photos is not None:
        test = list_pictures(test_photos)
        both = {path.resolve() for path in train} & {path.resolve() for path in test}
        if both:
            raise ValueError(f"{min(both)}: is among the training and the test photos; use it once")
    return train, test


def _bundled_photos() -> tuple[list[Path], list[Path]]:
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


@lru_cache(maxsize=16)
def trimmed_photo(path: Path) -> np.ndarray:
    """A photo without its outermost 2 pixels, uint8 ``[height, width, 3]``; recent ones are kept.

    Raises:
        ValueError: unreadable, or smaller than 16 pixels either way.
    """
    photo = load_picture(path)
    if min(photo.shape[:2]) < 16:
        raise ValueError(
            f"{path}: {photo.shape[1]}x{photo.shape[0]} is too small, at least 16x16 is needed"
        )
    photo = photo[_BORDER:-_BORDER, _BORDER:-_BORDER]
    photo.flags.writeable = False
    return photo


def sample_crop(photo: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Cut a square of ``size`` pixels at a random scale and place, mirrored half of the time.

    The scale lies between the one at which the photo's shorter side just fits and full
    resolution; a smaller photo is enlarged as little as needed. Flat places (black corners, sky)
    are avoided where the photo has better ones.

    Args:
        photo: uint8 ``[height, width, 3]``.

    Returns:
        uint8 ``[size, size, 3]``.
    """
    height, width = photo.shape[:2]
    fits = size / min(height, width)
    best: tuple[float, ...] = ()
    most_content = -1.0
    for _ in range(6):
        scale = fits if fits >= 1 else float(np.exp(rng.uniform(np.log(fits), 0)))
        side = min(size / scale, height, width)
        left, top = rng.uniform(0, width - side), rng.uniform(0, height - side)
        box = (left, top, left + side, top + side)
        window = photo[int(top) : int(top + side) + 1 : 4, int(left) : int(left + side) + 1 : 4, 1]
        # Spread, and how much of the crop is not sheer black.
        content = min(float(window.std()) / 12, float((window > 12).mean()) / 0.6)
        if content > most_content:
            best, most_content = box, content
        if content >= 1:
            break
    crop = Image.fromarray(photo).resize((size, size), Image.Resampling.LANCZOS, box=best)
    if rng.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.array(crop)
