"""What a run writes down about itself: `metrics.jsonl` and TensorBoard files."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


class MetricFiles:
    """`metrics.jsonl` and `events/` in a workdir, or nothing at all in a process that writes none.

    Args:
      workdir: of the run.
      enabled: False in all processes of a run but one.
    """

    def __init__(self, workdir: Path, enabled: bool):
        self._lines = workdir / "metrics.jsonl"
        self._events = create_writer(workdir / "events") if enabled else None

    def write_line(self, step: int, scalars: Mapping[str, float]) -> None:
        """A line of `metrics.jsonl`, and the same scalars as events."""
        if self._events:
            with open(self._lines, "a") as file:
                file.write(json.dumps({"step": step, **scalars}) + "\n")
        self.write_scalars(step, scalars)

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        if self._events:
            self._events.write_scalars(step, scalars)

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Pictures `[batch, height, width, 3]`, uint8."""
        if self._events:
            self._events.write_images(step, images)

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        if self._events:
            self._events.write_texts(step, texts)

    def flush(self) -> None:
        if self._events:
            self._events.flush()

    def close(self) -> None:
        if self._events:
            self._events.close()


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
