"""Errors as one line for people who use the commands."""

from __future__ import annotations

import contextlib
import errno
import sys
import threading
from collections.abc import Iterator

_NO_SPACE = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


@contextlib.contextmanager
def one_line(debug: bool) -> Iterator[None]:
    """Prints expected kinds of errors as one line and exits with status 1.

    Args:
      debug: let the traceback through instead.
    """
    if not debug:
        threading.excepthook = _thread_line
    try:
        yield
    except (ValueError, OSError, FloatingPointError, MemoryError) as error:
        if debug:
            raise
        line = " ".join(str(error).split())
        if isinstance(error, OSError) and error.errno in _NO_SPACE:
            line += (
                ": what was saved before is unchanged; free some space and run the command again"
            )
        print(f"error: {line}", file=sys.stderr)
        sys.exit(1)


def _thread_line(failure: threading.ExceptHookArgs) -> None:
    """A library's background thread failed, for example the event files' on a full disk."""
    name = failure.thread.name if failure.thread else "a thread"
    print(f"warning: {name} stopped: {failure.exc_value}", file=sys.stderr)
