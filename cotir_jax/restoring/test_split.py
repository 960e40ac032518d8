"""Restoring a test split: every listed picture with its prompts, once."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cotir_jax import files
from cotir_jax.bench.listing import find_lq, read_listing
from cotir_jax.images.pictures import load_picture, save_picture

# Called with a picture, uint8 [height, width, 3], and a prompt; returns a picture of that size.
Restore = Callable[[np.ndarray, str], np.ndarray]


def restore_listing(
    restore: Restore,
    listing: Path,
    out: Path,
    prompts: str | None,
    *,
    part: tuple[int, int] = (0, 1),
    settings: Mapping[str, Any] | None = None,
) -> Iterator[str]:
    """Restores every picture of a test split's listing, under its own name with suffix `.png`.

    Args:
      restore: restores one picture.
      listing: the split's `test.jsonl`.
      out: folder of the results.
      prompts: "vague" or "precise"; with None, every prompt is empty.
      part: which of how many parts of the split: processes share it.
      settings: what the results depend on, kept in the folder as `settings.json`. If given,
        pictures that exist already are skipped, provided they were made with the same settings.

    Yields:
      A line per picture restored.

    Raises:
      ValueError: for a missing or damaged listing, a listed picture that is missing, a line without
        the prompt, results of other settings; after the last picture when some could not be read.
    """
    if prompts not in (None, "vague", "precise"):
        raise ValueError(f"prompts={prompts!r}: accepted are vague and precise")
    pictures = read_listing(listing)[part[0] :: part[1]]
    paths = [find_lq(listing, picture) for picture in pictures]
    for picture in pictures:
        if prompts and prompts not in picture.prompts:
            raise ValueError(
                f"{listing} line {picture.line}: has no {prompts} prompt; add it to the listing"
            )
    stems = Counter(path.stem for path in paths)
    if twice := [stem for stem, count in stems.items() if count > 1]:
        raise ValueError(f"{listing}: two pictures are called {twice[0]}; rename one")
    if settings is not None:
        _check_settings(out, dict(settings))
    failed = []
    for picture, path in zip(pictures, paths, strict=True):
        target = out / f"{path.stem}.png"
        if settings is not None and target.exists():
            continue
        try:
            degraded = load_picture(path)
        except ValueError as error:
            failed.append(path.name)
            yield f"skipped {error}"
            continue
        prompt = picture.prompts[prompts] if prompts else ""
        save_picture(restore(degraded, prompt), target)
        yield f"{picture.id} {picture.deg_type}"
    if failed:
        raise ValueError(f"{len(failed)} of {len(paths)} pictures could not be read: {failed[:5]}")


def _check_settings(out: Path, settings: dict[str, Any]) -> None:
    """Raises ValueError if `out` has results of other settings; else writes `settings.json`."""
    path = out / "settings.json"
    try:
        before = json.loads(path.read_text()) if path.exists() else None
    except ValueError:
        raise ValueError(f"{path}: is damaged; name another folder or remove this one") from None
    if before is None and out.is_dir() and any(out.glob("*.png")):
        raise ValueError(f"{out}: holds pictures of unknown origin; name another folder")
    if before not in (None, settings):
        raise ValueError(
            f"{out}: holds results of {json.dumps(before)}, this run is {json.dumps(settings)}; "
            "name another folder or remove this one"
        )
    out.mkdir(parents=True, exist_ok=True)
    files.write_text(path, json.dumps(settings) + "\n")
