"""Errors as one line for people who use the commands."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def one_line(debug: bool) -> Iterator[None]:
    """Prints expected kinds of errors as one line and exits with status 1.

    Args:
      debug: let the traceback through instead.
    """
    try:
        yield
    except (ValueError, OSError, FloatingPointError, MemoryError) as error:
        if debug:
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
