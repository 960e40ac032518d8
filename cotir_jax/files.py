"""Writing files completely or not at all, and errors as one line for people."""

import contextlib
import errno
import os
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

# System errors that mean a full disk or quota, or a file above the allowed size.
NO_SPACE = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


@contextlib.contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yields a temporary path; the file written there takes the place of `path` at the end.

    After an error, or when the process is killed, `path` is as it was before. A killed process
    leaves a hidden file ending in `.part`; after an error nothing is left.

    Args:
      path: final name; its folder must exist.
    """
    path = Path(path)
    # Random, because hosts that share a disk may share process ids; short, so that it fits
    # wherever the final name fits.
    temporary = path.with_name(f".{uuid.uuid4().hex[:12]}.part")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
    except OSError as error:
        if str(error.filename) == str(temporary):
            error.filename = str(path)  # the name that the user knows
        raise
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Waits until a file is on the disk: a power cut could otherwise leave a name without data."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path | str, data: bytes) -> None:
    """Writes a file completely or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path | str, text: str) -> None:
    """Writes a UTF-8 text file completely or not at all."""
    write_bytes(path, text.encode())


def one_line(error: BaseException, limit: int | None = None) -> str:
    """Returns an error's message on one line, or what kind of error it is where it has none.

    Args:
      error: any exception.
      limit: most characters, for messages of libraries, which can fill pages.
    """
    kind = "not enough memory" if isinstance(error, MemoryError) else type(error).__name__
    return (" ".join(str(error).split()) or kind)[:limit]


@contextlib.contextmanager
def errors_on_one_line(debug: bool) -> Iterator[None]:
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
        line = one_line(error)
        if isinstance(error, OSError) and error.errno in NO_SPACE:
            line += (
                ": what was saved before is unchanged; free some space and run the command again"
            )
        print(f"error: {line}", file=sys.stderr)
        sys.exit(1)


def _thread_line(failure: threading.ExceptHookArgs) -> None:
    """Prints one line for a library's background thread that failed, for example on a full disk."""
    name = failure.thread.name if failure.thread else "a thread"
    print(f"warning: {name} stopped: {failure.exc_value}", file=sys.stderr)
