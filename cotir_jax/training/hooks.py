"""What happens after a training step: metrics, progress, checkpoints with validation.

A hook is called with every finished step.
"""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from tqdm import tqdm

from cotir_jax.checkpoints.training import TrainingCheckpoints
from cotir_jax.data.batches import CorruptCounter, Stage
from cotir_jax.models import flops
from cotir_jax.parallel import processes
from cotir_jax.training.config import Run
from cotir_jax.training.metric_files import MetricFiles
from cotir_jax.training.state import TrainState
from cotir_jax.training.step import check_finite
from cotir_jax.training.throughput import Throughput
from cotir_jax.training.weights import saved_arrays

_log = logging.getLogger(__name__)


class Finished(NamedTuple):
    """A step that was handed to the devices; its arrays may still be being computed.

    Attributes:
      step: number of steps so far, this one included.
      stage: that it belongs to.
      state: after it.
      metrics: scalars.
    """

    step: int
    stage: Stage
    state: TrainState
    metrics: Mapping[str, jax.Array]


Hook = Callable[[Finished], None]


class Interrupted(Exception):
    """SIGTERM or SIGINT arrived; the state has been saved."""


class Progress:
    """A bar on a terminal, a line of log every so many steps elsewhere; of the first process."""

    def __init__(self, step: int, steps: int, every: int):
        self._every, self._first = every, processes.is_first()
        hidden = None if self._first else True  # None: unless on a terminal
        self._bar = tqdm(total=steps, initial=step, unit="step", mininterval=1, disable=hidden)
        self._steps = steps

    def show(self, step: int, metrics: Mapping[str, float]) -> None:
        """Shows the newest metrics."""
        line = f"loss {metrics['loss']:.4f}, {metrics['samples_per_second']:.1f} samples/s"
        self._bar.set_postfix_str(line, refresh=False)
        self._bar.update(step - self._bar.n)
        if self._bar.disable and self._first and (step % self._every == 0 or step == self._steps):
            _log.info("step %d of %d: %s", step, self._steps, line)

    def close(self) -> None:
        """Leaves the bar as it is."""
        self._bar.close()


class StepMetrics:
    """Reads a step's metrics while the devices work on the next one.

    Progress shows the newest; means of `log.every` steps are a line in the files.
    """

    def __init__(self, run: Run, files: MetricFiles, speed: Throughput, progress: Progress):
        self._run, self.files, self._speed, self._progress = run, files, speed, progress
        self._waiting: Finished | None = None
        self._sums: dict[str, float] = {}
        self._count = 0
        self.last: dict[str, float] = {}

    def __call__(self, finished: Finished) -> None:
        """Reads the step before this one; at the end of a stage this one too."""
        self.read()
        self._waiting = finished
        if finished.step == finished.stage.end_step:
            self.read()

    def read(self) -> None:
        """Reads the newest step, unless that is done.

        Raises:
          FloatingPointError: where a quantity is not finite.
        """
        if self._waiting is None:
            return
        step, stage, _, metrics = self._waiting
        self._waiting = None
        values = {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
        check_finite(values, step - 1)
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += 1
        self._speed.ended()
        work = flops.total(self._run.step_flops(stage))
        speed = self._speed.report(stage.batch_size, work)
        self.last = values | speed
        self._progress.show(step, self.last)
        if step % self._run.log.every == 0:
            means = {name: total / self._count for name, total in self._sums.items()}
            self.files.write_line(step, means | speed)
            self._sums, self._count = {}, 0
            self._speed.restart()


class Profile:
    """Writes a profiler trace of some steps, for TensorBoard's profile page or Perfetto.

    Args:
      folder: where to.
      at: the step after which it begins; 0 for never.
      steps: how many steps it shows.
    """

    def __init__(self, folder: Path, at: int, steps: int):
        self._folder, self._first, self._last = folder, at, at + steps
        self._running = False

    def __call__(self, finished: Finished) -> None:
        """Begins or ends the trace, once this step's results are there."""
        if self._first and finished.step == self._first:
            jax.block_until_ready(finished.metrics)
            jax.profiler.start_trace(str(self._folder))
            self._running = True
        elif self._running and finished.step >= self._last:
            jax.block_until_ready(finished.metrics)
            self.close()

    def close(self) -> None:
        """Ends a trace that is under way."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
            _log.info("profile of steps %d to %d: %s", self._first, self._last, self._folder)


@dataclasses.dataclass(eq=False)
class Checkpoints:
    """Saves every `checkpoint.every` steps, at the end, and where the run is asked to stop.

    Attributes:
      metrics: read before anything is saved, so that a state that is not finite is not.
      validate: scores a step's state by the held-out samples; None where there are none.
      speed: of the steps; saving does not count.
      corrupt: counts the samples that this process reads, on top of those restored.
    """

    run: Run
    checkpoints: TrainingCheckpoints
    metrics: StepMetrics
    validate: Callable[[Finished], dict[str, float]] | None
    speed: Throughput
    corrupt: CorruptCounter
    stop: processes.StopRequest

    def __post_init__(self) -> None:
        self._restored = self.corrupt.seen, self.corrupt.corrupt

    def __call__(self, finished: Finished) -> None:
        """Saves if it is time.

        Raises:
          Interrupted: after saving, where a signal arrived.
        """
        step = finished.step
        stop = self.stop.at(step)
        due = step % self.run.checkpoint.every == 0 or step == self.run.steps
        if due or stop:
            self.metrics.read()
            with self.speed.paused():
                scores = self.validate(finished) if due and self.validate else {}
                self.metrics.files.flush()
                # Counts restored from the checkpoint plus those of all processes since then.
                own = np.subtract((self.corrupt.seen, self.corrupt.corrupt), self._restored)
                seen, corrupt = map(int, self._restored + process_allgather(own).sum(axis=0))
                samples = {"seen": seen, "corrupt": corrupt}
                self.checkpoints.save(step, saved_arrays(finished.state), samples, scores)
        if stop:
            self.checkpoints.wait()
            raise Interrupted(f"asked to stop: saved at step {step}")
