"""One run over several processes: joining, rows of a batch, stopping together.

Every process runs the same program. Only process 0 writes what is not an array: log lines, event
files, pictures, results; arrays are saved by all together.
"""

import contextlib
import ipaddress
import itertools
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from absl import logging as absl_logging
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from orbax.checkpoint import multihost

from cotir_jax import files

# A process that has not been heard from for so long is taken for dead, and the others stop.
_SILENCE_SECONDS = 40
# How long to wait for a process that is heard from: it may be compiling or restoring pictures.
_LAST_SECONDS = 3600
# Google's vendor number on the PCI bus, which TPU chips are attached to.
_TPU_VENDOR = "0x1ae0"
CONTINUE = "start the same command on every host again: it continues from the last checkpoint"

_log = logging.getLogger(__name__)
# A barrier's name may be used once; all processes come to the same ones in the same order.
_barriers = itertools.count()


def find_place(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    environment: Mapping[str, str],
) -> tuple[str, int, int] | None:
    """Reads the place from the flags, or from COTIR_* environment variables where no flag is given.

    Returns:
      Host and port of process 0, number of processes in the job, and the number of this one from 0;
      None where neither says anything.

    Raises:
      ValueError: some of the three are given and others not, or they are impossible.
    """
    names = ("coordinator", "num_processes", "process_id")
    flags = (coordinator, num_processes, process_id)
    given: dict[str, Any] = {f"--{name}": value for name, value in zip(names, flags, strict=True)}
    if all(value is None for value in given.values()):
        variables = [f"COTIR_{name.upper()}" for name in names]
        given = {variable: environment.get(variable) or None for variable in variables}
    if all(value is None for value in given.values()):
        return None
    missing = [name for name, value in given.items() if value is None]
    if missing:
        accepted = ", ".join(given)
        raise ValueError(f"{' and '.join(missing)} missing: give all of {accepted}, or none")
    address, *numbers = given.values()
    for name, number in zip(list(given)[1:], numbers, strict=True):
        if not str(number).isdecimal():
            raise ValueError(f"{name}={number}: expected a whole number, 0 or more")
    count, own = map(int, numbers)
    if not own < count:
        raise ValueError(f"process {own} of {count}: process numbers go from 0 to {count - 1}")
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"{next(iter(given))}={address}: expected HOST:PORT of process 0")
    return address, count, own


def initialize(place: tuple[str, int, int] | None) -> None:
    """Joins the job, before any device is touched.

    Without a place (see `find_place`), Cloud TPU metadata and SLURM are asked (by JAX); a machine
    or job of one process joins nothing.

    Raises:
      ValueError: when the other processes do not come.
    """
    timeouts = {
        "heartbeat_timeout_seconds": _SILENCE_SECONDS,
        "shutdown_timeout_seconds": _LAST_SECONDS,
    }
    try:
        if place is not None and place[1] > 1:
            jax.distributed.initialize(
                *place,
                # Before this, JAX would take the number within a SLURM job for a device's.
                cluster_detection_method="deactivate",
                coordinator_bind_address=place[0] if _is_loopback(place[0]) else None,
                **timeouts,
            )
        elif place is None and (_slurm_processes() > 1 or _has_tpu()):
            jax.distributed.initialize(**timeouts)
    except Exception as error:  # of many kinds
        reason = files.one_line(error, 300)
        raise ValueError(
            f"could not join the other processes ({reason}): the coordinator is process 0's host "
            "and a free port, reachable from all; give --coordinator, --num_processes and "
            "--process_id"
        ) from None
    if jax.process_count() > 1:
        absl_logging.get_absl_handler().setFormatter(_Numbered())
        # JAX aborts this process when another has died, and says so: a Python stack below that
        # would only hide it.
        signal.signal(signal.SIGABRT, signal.SIG_IGN)
        _log.info("process %d of %d", jax.process_index(), jax.process_count())


def is_first() -> bool:
    """Whether this process writes what only one may write."""
    return jax.process_index() == 0


def wait_for_all(what: str) -> None:
    """Returns once every process has come here, however long that takes.

    Asks the coordinator: a barrier of collectives would give up on a slow process, on CPU within
    half a minute.
    """
    if jax.process_count() > 1:
        key = f"{what} {next(_barriers)}"
        multihost.get_barrier_sync_fn()(key=key, timeout_ms=_LAST_SECONDS * 1000)


def compile_together(program: Any, *arguments: Any) -> Any:
    """Compiles a jitted function in all processes; no collective begins before the last is ready.

    Process 0 may find the program in the compilation cache while others take minutes.
    """
    compiled = program.lower(*arguments).compile()
    wait_for_all("compiled")
    return compiled


def own_rows(size: int, sharding: NamedSharding) -> list[int]:
    """Lists the rows of a batch of `size` that this process's devices hold, in order.

    Where a mesh axis that does not split the batch spans processes, several hold the same rows.
    """
    held = sharding.addressable_devices_indices_map((size,)).values()
    return sorted({row for index in held if index for row in range(size)[index[0]]})


def place_rows(tree: Any, size: int, sharding: NamedSharding) -> Any:
    """Makes arrays over the complete mesh from the rows that each process has.

    Args:
      tree: pytree of arrays `[rows, ...]` of this process: those of `own_rows`, or all.
      size: rows of the batch.
      sharding: of the batch.
    """
    place = jax.make_array_from_process_local_data
    return jax.tree.map(lambda array: place(sharding, array, (size, *array.shape[1:])), tree)


class StopRequest:
    """Whether SIGTERM or Ctrl-C asked for the run to stop.

    Of several processes all stop at the same step, whichever was asked: JAX's preemption service
    hears SIGTERM and agrees on a step that none has passed.
    """

    def __init__(self) -> None:
        self._asked = False
        if threading.current_thread() is not threading.main_thread():
            return
        if jax.process_count() == 1:
            signal.signal(signal.SIGTERM, self._ask)
            signal.signal(signal.SIGINT, self._ask)
        else:
            signal.signal(signal.SIGINT, lambda *_: os.kill(os.getpid(), signal.SIGTERM))

    def at(self, step: int) -> bool:
        """Whether to save and stop after `step`; several processes ask after every step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked

    def _ask(self, *_: Any) -> None:
        self._asked = True


@contextlib.contextmanager
def leaving_together() -> Iterator[None]:
    """Ends this process when it, or another of the job, fails.

    An error of one would otherwise wait at exit for the others, which wait for it. The others
    notice by a broken connection or by its silence, and stop too.
    """
    try:
        yield
    except BaseException as error:
        clean = isinstance(error, SystemExit) and error.code in (0, None)
        if clean or not jax.distributed.is_initialized() or jax.process_count() == 1:
            raise
        if isinstance(error, jax.errors.JaxRuntimeError):
            reason = files.one_line(error, 200)
            print(f"error: another process stopped ({reason}); {CONTINUE}", file=sys.stderr)
        elif not isinstance(error, SystemExit):
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


class _Numbered(absl_logging.PythonFormatter):
    """absl's log lines, with the process's number in front."""

    def format(self, record: logging.LogRecord) -> str:
        return f"[process {jax.process_index()}] {super().format(record)}"


def _is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0]
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _slurm_processes() -> int:
    """Processes that `srun` started; 1 in the batch script itself."""
    started = {"SLURM_STEP_NODELIST", "SLURM_PROCID"} <= os.environ.keys()
    return int(os.environ.get("SLURM_NTASKS", 1)) if started else 1


def _has_tpu() -> bool:
    """Whether this is a TPU machine; without touching the devices."""
    if os.environ.get("JAX_PLATFORMS", "tpu").split(",")[0] not in ("tpu", ""):
        return False
    vendors = Path("/sys/bus/pci/devices").glob("*/vendor")
    return any(path.read_text().strip() == _TPU_VENDOR for path in vendors)
