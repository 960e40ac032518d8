"""One sample: bytes from a shard in, cropped pictures and texts out."""

import contextlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from cotir_jax import files
from cotir_jax.bench.words.thoughts import parse_thoughts
from cotir_jax.images.pictures import load_picture

# What Pillow raises on broken files.
_READ_ERRORS = (
    OSError, ValueError, SyntaxError, EOFError, IndexError, Image.DecompressionBombError
)  # fmt: skip


class CorruptSample(Exception):
    """A sample that cannot be used; the message says why."""


@dataclass(frozen=True)
class Texts:
    """What ``meta.json`` says."""

    questions: tuple[str, str]
    thoughts: tuple[str, str, str]
    jpeg_type: str | None


def read_texts(data: bytes) -> Texts:
    """Parse ``meta.json``.

    Raises:
        CorruptSample: no JSON, no thoughts, or not two questions.
    """
    try:
        meta = json.loads(data)
        thoughts = parse_thoughts(meta)
    except (ValueError, RecursionError) as error:
        raise CorruptSample(f"meta.json: {error}") from error
    questions = meta["cot"].get("questions")
    if (
        not isinstance(questions, list)
        or len(questions) < 2
        or not all(isinstance(question, str) and question.strip() for question in questions[:2])
    ):
        raise CorruptSample("meta.json: cot.questions should be [vague, precise]")
    jpeg_type = meta.get("jpeg_type")
    return Texts(
        (questions[0], questions[1]), thoughts, jpeg_type if isinstance(jpeg_type, str) else None
    )


def crop_pair(
    lq: bytes, hq: bytes, patch_size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Decode both pictures and cut the same random patch from them, mirrored or not.

    Args:
        lq: the degraded picture, encoded.
        hq: the clean one.
        patch_size: side of the square patch in pixels.
        rng: decides place and mirroring.

    Returns:
        Two uint8 ``[patch_size, patch_size, 3]``.

    Raises:
        CorruptSample: one cannot be decoded, or their sizes differ.
        ValueError: they are smaller than the patch.
    """
    pictures = {"lq.png": lq, "hq.png": hq}
    images: list[Image.Image] = []
    for name, data in pictures.items():
        with _corrupt_if_unreadable(name):
            images.append(Image.open(io.BytesIO(data)))
    width, height = images[0].size
    if images[1].size != (width, height):
        other = "x".join(map(str, images[1].size))
        raise CorruptSample(f"lq.png is {width}x{height}, hq.png {other}")
    if min(width, height) < patch_size:
        raise ValueError(
            f"pictures are {width}x{height}, smaller than the patch size {patch_size} in "
            "config.train.stages; set smaller patches there, or build larger pictures "
            "(config.bench.size)"
        )
    left = int(rng.integers(width - patch_size + 1))
    top = int(rng.integers(height - patch_size + 1))
    mirror = rng.random() < 0.5
    box = (left, top, left + patch_size, top + patch_size)
    patches = []
    for image, (name, data) in zip(images, pictures.items(), strict=True):
        with _corrupt_if_unreadable(name):
            if image.mode != "RGB" or "transparency" in image.info:
                image = Image.fromarray(load_picture(data, name))
            # Cut and mirrored before the copy to numpy: load_picture's copies of the complete
            # picture take a third as long as decoding it, and numpy is slow at stacking mirrored
            # pixels.
            patch = image.crop(box)
            patch = patch.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirror else patch
            patches.append(np.asarray(patch))
    return patches[0], patches[1]


@contextlib.contextmanager
def _corrupt_if_unreadable(name: str) -> Iterator[None]:
    try:
        yield
    except _READ_ERRORS as error:
        raise CorruptSample(f"{name}: {files.one_line(error)}") from error
