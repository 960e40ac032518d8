"""How fast training runs: step time, share of the peak, waiting for data, memory."""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax

# Dense bfloat16 FLOP/s of one JAX device, by the beginning of `device_kind`, the longest counts.
# TPU: "peak compute per chip (bf16)" on the Cloud TPU documentation's page of each version; a chip
# is one device, of TPU7x two. NVIDIA: data sheets (SXM where not said), half of the sparse figure.
_PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12, "TPU v5e": 197e12, "TPU v5": 459e12,  # "TPU v5" is v5p
    "TPU v6 lite": 918e12, "TPU v6e": 918e12, "TPU7x": 2307e12 / 2,
    "NVIDIA A100": 312e12, "NVIDIA H200": 989e12, "NVIDIA GH200": 989e12,
    "NVIDIA H100": 989e12, "NVIDIA H100 PCIe": 756e12, "NVIDIA H100 NVL": 835e12,
}  # fmt: skip
# Names of our numbers -> of the backend's.
_MEMORY = {"memory_gb": "bytes_in_use", "peak_memory_gb": "peak_bytes_in_use"}
# What a report may hold, besides the step's own metrics.
NAMES = ("step_seconds", "samples_per_second", "input_wait", "mfu", *_MEMORY)


def peak_flops(device_kind: str) -> float | None:
    """Returns the peak dense bfloat16 FLOP/s of a device, None where it is not known."""
    names = [name for name in _PEAK_FLOPS if device_kind.startswith(name)]
    # "TPU v4 lite" is an inference chip of its own.
    if not names or device_kind == "TPU v4 lite":
        return None
    return _PEAK_FLOPS[max(names, key=len)]


class Throughput:
    """Measures training steps by when the devices finish them.

    Call `begin`, then for each step `dispatched` and, in the same order, `ended`; `waiting` around
    what prepares a batch; `paused` around what does not belong to a step.

    Args:
      devices: all that the step runs on.
      clock: seconds.
    """

    def __init__(self, devices: Sequence[jax.Device], clock: Callable[[], float] = time.monotonic):
        self._devices, self._clock = devices, clock
        # A thread of its own notes the moment, whatever else the program is doing.
        self._watch = ThreadPoolExecutor(1, thread_name_prefix="step end")
        self.begin()

    def begin(self) -> None:
        """Starts an interval now, with no step under way."""
        self._under_way: deque[Future[float]] = deque()
        self._last: Future[float] | None = None
        self._end = self._clock()
        self.restart()

    def restart(self) -> None:
        """Starts an interval where the last step ended."""
        self._start, self._paused, self._waited, self._steps = self._end, 0.0, 0.0, 0

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the time in here out; all steps must have ended."""
        start = self._clock()
        try:
            yield
        finally:
            self._paused += self._clock() - start

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time in here in which the devices have nothing to do."""
        start = self._clock()
        yield
        end = self._clock()
        if self._last is None:
            self._waited += end - start
        elif self._last.done():
            self._waited += max(0.0, end - max(start, self._last.result()))

    def dispatched(self, outputs: Any) -> None:
        """Notes that a step was handed to the devices; `outputs` are its arrays."""

        def finished() -> float:
            jax.block_until_ready(outputs)
            return self._clock()

        self._last = self._watch.submit(finished)
        self._under_way.append(self._last)

    def ended(self) -> None:
        """Waits for the earliest step under way, and counts it."""
        self._end = self._under_way.popleft().result()
        self._steps += 1

    def report(self, batch_size: int, step_flops: float | None) -> dict[str, float]:
        """Returns the interval's numbers.

        Args:
          batch_size: samples of a step, of all processes.
          step_flops: of all devices together, None where they are not known.

        Returns:
          `step_seconds`; `samples_per_second` of all processes; `input_wait`, the share of time in
          which the devices waited for data and text embeddings; `mfu`, model FLOPs per second
          against the devices' peak; `memory_gb` and `peak_memory_gb` of this process's fullest
          device (10^9 bytes). Numbers that are not known are left out.
        """
        elapsed = max(self._end - self._start - self._paused, 1e-9)
        seconds = elapsed / max(self._steps, 1)
        numbers = {
            "step_seconds": seconds,
            "samples_per_second": batch_size / seconds,
            "input_wait": min(self._waited / elapsed, 1.0),
        }
        peak = peak_flops(self._devices[0].device_kind)
        if step_flops is not None and peak is not None:
            numbers["mfu"] = step_flops / (seconds * peak * len(self._devices))
        own = [each for each in self._devices if each.process_index == jax.process_index()]
        stats = [found for device in own if (found := device.memory_stats())]
        for name, theirs in _MEMORY.items():
            if stats and all(theirs in device for device in stats):
                numbers[name] = max(device[theirs] for device in stats) / 1e9
        return numbers

    def close(self) -> None:
        """Ends the thread that notes when steps end."""
        self._watch.shutdown(wait=False)
