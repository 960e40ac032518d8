"""TensorBoard files, with TensorFlow or without."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def create_writer(folder: Path) -> Any:
    """A metric writer with clu's methods: clu's own where TensorFlow is installed, which it needs.

    Args:
      folder: for the event files.
    """
    if importlib.util.find_spec("tensorflow"):
        from clu import metric_writers

        return metric_writers.SummaryWriter(str(folder))
    return EventWriter(folder)


class EventWriter:
    """The part of clu's `MetricWriter` that training uses, on tensorboardX."""

    def __init__(self, folder: Path):
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Pictures `[batch, height, width, 3]`, uint8."""
        for name, batch in images.items():
            self._writer.add_images(name, batch, step, dataformats="NHWC")

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        for name, text in texts.items():
            self._writer.add_text(name, text, step)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
