"""Small photos and builds that several test files share."""

import hashlib
from pathlib import Path

import numpy as np

from cotir_jax.images.pictures import save_picture

# Composites of two to four parts, one that training must not see, one with a second photo.
NAMES = (
    "haze", "noise", "jpeg-compression", "specular-reflection", "haze+snow",
    "low-light+haze+rain-streak+jpeg-compression", "snow+flare",
)  # fmt: skip
SMALL = {
    "samples_per_degradation": 2,
    "test_per_degradation": 1,
    "size": 48,
    "progress": False,
    "degradations": NAMES,
}
ANSWERS = (
    "scene description: a red car. degradation description: mild haze, then noise. "
    "enhancement plan: denoise, then dehaze. answer: done."
)


def save_photos(folder: Path, count: int = 10) -> Path:
    """Photos, each of its own blue level, so that a crop tells where it is from."""
    for number in range(count):
        rng = np.random.default_rng(number)
        photo = rng.integers(60, 200, (70, 90, 3), dtype=np.uint8)
        photo[..., 2] = 20 * number + 30
        save_picture(photo, folder / f"{number}.png")
    return folder


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by relative path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
