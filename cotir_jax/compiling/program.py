"""Compiling a program: its memory, or that it does not fit, and the compiler's complaints."""

import contextlib
import logging
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

_log = logging.getLogger(__name__)

GIB = 2**30


class Memory(NamedTuple):
    """Bytes of one device.

    Attributes:
      arguments: weights, states and batch.
      outputs: results that do not alias a donated argument.
      temporaries: the most that is in use between arguments and results.
      code: of the program itself.
    """

    arguments: int
    outputs: int
    temporaries: int
    code: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self)


def memory(compiled: Any) -> Memory:
    """Reads the memory per device of a compiled program (`jax.stages.Compiled`)."""
    sizes = compiled.memory_analysis()
    return Memory(
        sizes.argument_size_in_bytes,
        sizes.output_size_in_bytes - sizes.alias_size_in_bytes,
        sizes.temp_size_in_bytes,
        sizes.generated_code_size_in_bytes,
    )


class Compiled(NamedTuple):
    """A program (`jax.stages.Compiled`) that was compiled, or None for one that does not fit.

    Complaints are the compiler's, about involuntary replication.
    """

    program: Any
    memory: Memory
    seconds: float
    complaints: list[str]


def compile_program(lowered: Any, name: str, arguments: int) -> Compiled:
    """Compiles a `jax.stages.Lowered` whose arguments take so many bytes of one device."""
    _log.info("%s: compiling", name)
    start = time.monotonic()
    with standard_error() as said:
        try:
            compiled = lowered.compile()
            used = memory(compiled)
        except jax.errors.JaxRuntimeError as error:
            temporaries = out_of_memory(str(error))
            if temporaries is None:
                raise
            compiled, used = None, Memory(arguments, 0, temporaries, 0)
    lines = [line for line in said if "nvoluntary full remat" in line]
    complaints = [line.split("] ", 1)[-1][:300] for line in lines]
    return Compiled(compiled, used, time.monotonic() - start, complaints)


def out_of_memory(message: str) -> int | None:
    """Reads the bytes of temporaries that do not fit; None for other errors."""
    if "RESOURCE_EXHAUSTED" not in message and "HbmOom" not in message:
        return None
    found = re.search(r"temporaries \(([\d.]+)([KMGT]?)\)", message) or re.search(
        r"Used ([\d.]+)([KMGT]?) of", message
    )
    if found is None:
        return 0
    return int(float(found[1]) * 2 ** (10 * " KMGT".index(found[2] or " ")))


@contextlib.contextmanager
def standard_error() -> Iterator[list[str]]:
    """Collects what C++ code writes to standard error; the list has its lines at the end."""
    lines: list[str] = []
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield lines
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            lines += file.read().decode(errors="replace").splitlines()
