"""Work spread over processes: a bounded number at a time, results as they come."""

import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from typing import Any

from tqdm import tqdm

Spread = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[tuple[Any, Any]]]


@contextmanager
def spread_over(workers: int | None) -> Iterator[Spread]:
    """Yields `spread(function, items)`, which yields `(item, function(item))` as they get done.

    Items are taken from their iterable as processes become free, so that neither they nor the
    results pile up. Processes are spawned, never forked, because the caller may have started
    JAX's threads; they end with this one, however it ends.

    Args:
        workers: processes; None is one per core, 1 works in this process, in the items' order.

    Raises:
        ChildProcessError: a process died.
    """
    workers = workers or os.cpu_count() or 1
    if workers == 1:
        yield lambda function, items: ((item, function(item)) for item in items)
        return
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start_worker)

    def spread(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        waiting: dict[Future, Any] = {}
        for item in items:
            waiting[_submit(pool, function, item)] = item
            if len(waiting) >= 2 * workers:
                yield from _finished(waiting)
        while waiting:
            yield from _finished(waiting)

    try:
        yield spread
    except BrokenProcessPool:
        raise ChildProcessError(
            f"a worker process died, perhaps for want of memory; try again with fewer than "
            f"{workers} workers"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def progress_bar(total: int, unit: str, name: str, shown: bool, done: int = 0) -> tqdm:
    """Makes a bar on a terminal, a line every ten seconds in a log."""
    every = 0.1 if sys.stderr.isatty() else 10.0
    return tqdm(
        total=total, initial=done, unit=unit, desc=name, disable=not shown, mininterval=every
    )


def _submit(pool: ProcessPoolExecutor, function: Callable[[Any], Any], item: Any) -> Future:
    # Spawned workers import the program's main module again: JAX and all, or a script without a
    # guard. Ours need nothing of it, so an empty one stands in while they start.
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        return pool.submit(function, item)
    finally:
        sys.modules["__main__"] = main


def _finished(waiting: dict[Future, Any]) -> Iterator[tuple[Any, Any]]:
    done, _ = wait(waiting, return_when=FIRST_COMPLETED)
    for future in done:
        yield waiting.pop(future), future.result()


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it, without a traceback of its own

    # A worker whose parent was killed would wait for ever for the next piece of work.
    def watch() -> None:
        if (parent := parent_process()) is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
