"""Depth maps and rain or snow masks from files, for those who have them."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from cotir_jax.bench.degradations.filters import resize
from cotir_jax.images.pictures import PICTURE_SUFFIXES, list_pictures, load_picture


class Maps(NamedTuple):
    """Files that replace what is otherwise made up; without any, nothing changes.

    `depth` goes from a photo's file name without suffix to its depth map, in which bright is
    near, as in OneRestore's data and in what monocular depth networks write. Masks are bright
    where rain or snow is; one of them is drawn for each sample.
    """

    depth: Mapping[str, Path] = {}
    rain_masks: tuple[Path, ...] = ()
    snow_masks: tuple[Path, ...] = ()


def load_maps(
    depth: Path | str | None = None,
    rain_masks: Path | str | None = None,
    snow_masks: Path | str | None = None,
) -> Maps:
    """Finds the maps: each argument a folder of pictures, one picture, or None.

    Raises:
        ValueError: a path is missing, holds no pictures or something that is none, or two depth
            maps are for one photo.
    """
    by_photo: dict[str, Path] = {}
    for path in _pictures(depth):
        if path.stem in by_photo:
            raise ValueError(
                f"{path}: a second depth map besides {by_photo[path.stem].name} for photo "
                f"{path.stem!r}; remove one"
            )
        by_photo[path.stem] = path
    return Maps(by_photo, tuple(_pictures(rain_masks)), tuple(_pictures(snow_masks)))


def _pictures(place: Path | str | None) -> list[Path]:
    if place is None:
        return []
    place = Path(place)
    if place.is_file() and place.suffix.lower() not in PICTURE_SUFFIXES:
        raise ValueError(f"{place}: not a picture ({', '.join(PICTURE_SUFFIXES)}); name a folder")
    files = [place] if place.is_file() else list_pictures(place)
    for path in files:  # headers only: collections hold tens of thousands
        try:
            with Image.open(path):
                pass
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            raise ValueError(f"{path}: cannot be read as a picture; replace or remove it") from None
    return files


@lru_cache(maxsize=16)  # 3 MB each, in every worker
def load_map(path: Path) -> np.ndarray:
    """Reads a map's brightness, read-only float32 `[height, width]` in [0, 1]; keeps recent ones.

    Raises:
        ValueError: it cannot be read.
    """
    field = load_picture(path).mean(axis=2, dtype=np.float32) / 255
    field.flags.writeable = False
    return field


def depth_of_photo(maps: Maps, photo: Path, height: int, width: int) -> np.ndarray | None:
    """Returns the nearness that `maps` holds for a photo's name, brought to `height` and `width`.

    It is to be cut like the photo, and the cut given to `composites.sample_chain`.

    Returns:
        float32 `[height, width]` in [0, 1], 1 nearest; None where there is none.

    Raises:
        ValueError: unreadable, or of other proportions than the photo (by more than 2 %).
    """
    path = maps.depth.get(photo.stem)
    if path is None:
        return None
    field = load_map(path)
    found, expected = field.shape[1] / field.shape[0], width / height
    if abs(found / expected - 1) > 0.02:
        raise ValueError(
            f"{path}: {field.shape[1]}x{field.shape[0]} has other proportions than {photo.name} "
            f"({width}x{height}); give the depth map of the full photo"
        )
    return resize(field, height, width, Image.Resampling.BILINEAR)
