"""A benchmark as a TFDS data set of ArrayRecord files: its paths, and how it is read.

    tfds.data_source("cotir_bench", split="train", data_dir=folder)[5]["lq"]

`tfds_builder` writes it. Samples lie in the order of their keys: by degradation folder, then
by number. TensorFlow is not needed.
"""

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

NAME, VERSION = "cotir_bench", "1.0.0"


def shard_path(folder: Path, split: str, number: int, total: int) -> Path:
    """Returns the path of a shard by TFDS's naming; `folder` is its `data_dir`, here and below."""
    name = f"{NAME}-{split}.array_record-{number:05d}-of-{total:05d}"
    return folder / NAME / VERSION / name


def is_data_set(folder: Path) -> bool:
    """Returns whether `folder` holds the complete data set."""
    return (folder / NAME / VERSION / "dataset_info.json").is_file()


def read_info(folder: Path) -> dict[str, Any]:
    """Reads `counts`, split -> degradation folder -> samples, and `prompts`, name -> lines.

    Raises:
        ValueError: the file that should hold them is missing or damaged.
    """
    path = folder / NAME / VERSION / "metadata.json"
    try:
        info = json.loads(path.read_bytes())
        return {name: info[name] for name in ("counts", "prompts")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__} {error}"
        raise ValueError(f"{path}: cannot be read ({reason}); build the data set again") from None


@lru_cache(maxsize=8)
def open_split(folder: Path, split: str) -> Sequence[dict[str, bytes]]:
    """Opens a split by place, every feature as bytes (the pictures as PNG).

    Raises:
        ValueError: no such split.
    """
    import tensorflow_datasets as tfds  # takes half a second

    builder = tfds.builder_from_directory(folder / NAME / VERSION)
    if split not in builder.info.splits:
        raise ValueError(f"{folder}: has no split {split!r}, only {', '.join(builder.info.splits)}")
    skip = tfds.decode.SkipDecoding()
    return builder.as_data_source(split, decoders={"hq": skip, "lq": skip})
