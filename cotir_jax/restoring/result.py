"""Input and result of a `Restorer`: kinds of pictures that it takes, and `Restored`."""

import dataclasses
import io
from pathlib import Path

import numpy as np
from PIL import Image

from cotir_jax.explaining.explainer import Explanation
from cotir_jax.images.photo import Photo, check_pixels, eight_bits, read_photo, write_photo

Picture = Photo | np.ndarray | Image.Image | Path | str | bytes


@dataclasses.dataclass(frozen=True)
class Restored:
    """A restored picture.

    Attributes:
      photo: pixels, with alpha, profile and EXIF of the degraded file.
      thoughts: what was wrong with the picture, if it was explained.
    """

    photo: Photo
    thoughts: Explanation | None = None

    @property
    def image(self) -> np.ndarray:
        """uint8 or uint16 `[height, width, 3]`."""
        return self.photo.pixels

    def save(self, path: str | Path, quality: int = 95) -> None:
        """Writes the picture; the suffix picks the format (see `photo.write_photo`)."""
        write_photo(self.photo, Path(path), quality)

    def _repr_png_(self) -> bytes:  # shown by notebooks
        stream = io.BytesIO()
        Image.fromarray(eight_bits(self.image)).save(stream, "PNG")
        return stream.getvalue()


def as_photo(picture: Picture) -> Photo:
    """A file, bytes, Pillow picture or array as a `Photo`.

    Raises:
      ValueError: for an unreadable picture, or another shape or dtype.
    """
    if isinstance(picture, Photo):
        return picture
    if isinstance(picture, (str, Path, bytes)):
        return read_photo(picture)
    if isinstance(picture, Image.Image):
        kind = "RGBA" if picture.has_transparency_data else "L" if picture.mode == "L" else "RGB"
        picture = np.asarray(picture.convert(kind))
    alpha, grey = None, picture.ndim == 2
    if grey:
        picture = np.repeat(picture[..., None], 3, axis=2)
    elif picture.ndim == 3 and picture.shape[-1] == 4:
        picture, alpha = picture[..., :3], picture[..., 3]
    check_pixels(picture)
    return Photo(picture, alpha, grey)
