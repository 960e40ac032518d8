"""What a run writes down about itself: `metrics.jsonl`, TensorBoard files and pictures."""

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cotir_jax.images.pictures import save_picture


class MetricFiles:
    """`metrics.jsonl` and `events/` in a workdir, or nothing at all in a process that writes none.

    Files are opened with the first thing that is written.

    Args:
      workdir: of the run.
      enabled: False in all processes of a run but one.
    """

    def __init__(self, workdir: Path, enabled: bool):
        self._workdir, self._enabled = workdir, enabled

    @cached_property
    def _events(self) -> Any:
        from tensorboardX import SummaryWriter  # takes half a second

        return SummaryWriter(str(self._workdir / "events"))

    def write_line(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes a line of `metrics.jsonl`, and the same scalars as events."""
        if self._enabled:
            with open(self._workdir / "metrics.jsonl", "a") as file:
                file.write(json.dumps({"step": step, **scalars}) + "\n")
        self.write_scalars(step, scalars)

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes scalars as events."""
        if self._enabled:
            for name, value in scalars.items():
                self._events.add_scalar(name, value, step)

    def write_pictures(self, step: int, name: str, pictures: np.ndarray) -> None:
        """Writes pictures as events, and as one sheet that replaces the last one.

        Args:
          step: of the events.
          name: of the events, and of the sheet without its suffix.
          pictures: `[batch, height, width, 3]`, uint8.
        """
        if self._enabled:
            self._events.add_images(name, pictures, step, dataformats="NHWC")
            save_picture(np.concatenate(pictures), self._workdir / f"{name}.png")

    def write_text(self, step: int, name: str, text: str) -> None:
        """Writes Markdown text as an event."""
        if self._enabled:
            self._events.add_text(name, text, step)

    def flush(self) -> None:
        """Hands what was written to the operating system."""
        if "_events" in self.__dict__:
            self._events.flush()

    def close(self) -> None:
        """Closes the files."""
        if "_events" in self.__dict__:
            self._events.close()
