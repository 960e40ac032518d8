"""Writing an Orbax checkpoint layer by layer, so that memory never holds a complete array.

Orbax itself takes arrays that are in memory. Here its leaves are `Streamed` arrays, and a type
handler, its documented way to store other leaves, writes them as zarr. Orbax does the rest: the
metadata, and the name that appears only when all is written. Restoring needs nothing of this file.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import logging
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import tensorstore

from cotir_jax import files

# A file holds at most this much of a layer, unless one row is larger.
FILE_BYTES = 256 * 2**20
# Files are read in chunks of about this size: a device reads the chunks that its part touches.
CHUNK_BYTES = 2**20
# Every axis of a layer is cut into this many chunks where it can be, so that a mesh axis of this
# size reads nothing twice.
AXIS_CHUNKS = 8
# Smaller arrays are one file with all layers.
SMALL_BYTES = 4 * 2**20
# Layers in flight: one is read and transposed while another one is written.
WORKERS = min(4, max(2, os.cpu_count() or 2))


@dataclasses.dataclass(frozen=True)
class Streamed:
    """An array that is made a layer at a time.

    Attributes:
      shape: of all layers together.
      dtype: of all layers.
      stacked: whether the first axis counts layers.
      layer: gives layer `i`, or with 0 the array where it is not stacked. Called from
        several threads; what it gives is used before the same thread calls it again.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    stacked: bool
    layer: Callable[[int], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Size of all layers together."""
        return math.prod(self.shape) * self.dtype.itemsize


def save_streamed(
    path: Path, arrays: Mapping[str, Streamed], progress: Callable[[int], None] = lambda _: None
) -> str:
    """Writes a checkpoint that any Orbax reader restores.

    Memory: `WORKERS` times a layer in up to four copies (source, ours, chunks, file).

    Args:
      path: folder that does not exist yet.
      arrays: by name.
      progress: called with the number of bytes that were written, from several threads.

    Returns:
      A digest of names, shapes, dtypes and values, "sha256:...", whatever the storage format.

    Raises:
      OSError: when the files cannot be written, for example on a full disk.
    """
    writer = _Writer(path, progress)
    registry = ocp.type_handlers.create_type_handler_registry((Streamed, writer))
    with _quiet():
        handler = ocp.PyTreeCheckpointHandler(
            use_ocdbt=False, use_zarr3=True, type_handler_registry=registry
        )
        with ocp.Checkpointer(handler) as checkpointer:
            checkpointer.save(Path(path).absolute(), dict(arrays))
    lines = "\n".join(sorted(writer.digests))
    return "sha256:" + hashlib.sha256(lines.encode()).hexdigest()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Orbax's warning that this registry stores no jax arrays."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


class _Writer(ocp.type_handlers.NumpyHandler):
    """Orbax's handler of `Streamed` leaves. What it writes is restored as any array."""

    def __init__(self, path: Path, progress: Callable[[int], None]):
        super().__init__()
        self.path, self.progress = path, progress
        self.digests: list[str] = []

    async def serialize(
        self,
        values: Sequence[Streamed],
        infos: Sequence[ocp.type_handlers.ParamInfo],
        args: Any = None,
    ) -> list[Any]:
        for info in infos:
            await info.await_path_creation()
        with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
            parts: list[tuple[str, list[concurrent.futures.Future[str]]]] = []
            for array, info in zip(values, infos, strict=True):
                store = _create(Path(info.parent_dir) / info.name, array)
                # Layers that are written at once.
                layers = array.shape[0] if array.shape else 1
                step = 1 if array.stacked and array.nbytes > SMALL_BYTES else layers
                made = [
                    pool.submit(self._write, store, array, first, first + step)
                    for first in range(0, layers, step)
                ]
                parts.append((f"{info.name} {array.dtype} {array.shape}", made))
            try:
                for title, made in parts:
                    self.digests.append(" ".join([title, *(part.result() for part in made)]))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return []

    def _write(self, store: Any, array: Streamed, first: int, last: int) -> str:
        """Layers `first` to `last` (exclusive); returns the digest of their values."""
        if not array.stacked:
            value = array.layer(0)
        elif last - first == 1:
            value = array.layer(first)[None]
        else:
            value = np.empty(array.shape, array.dtype)
            for index in range(first, last):
                value[index] = array.layer(index)
        target = store[first:last] if array.stacked else store
        for rows in _files(array):
            write = target[rows].write(value[rows], can_reference_source_data_indefinitely=True)
            _written(write, self.path)
        self.progress(value.nbytes)
        return hashlib.sha256(np.ascontiguousarray(value).reshape(-1).view(np.uint8)).hexdigest()


def _written(future: Any, path: Path) -> None:
    try:
        future.result()
    except ValueError as error:  # tensorstore's kind for a failing disk, the system's error inside
        found = re.search(r"os_error_code='(\d+)'", str(error))
        if found:
            raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from None
        reason = files.one_line(error, 300)
        raise OSError(f"{path}: cannot be written ({reason})") from None


def _files(array: Streamed) -> Iterator[Any]:
    """Slices of the rows of a layer, the last axis but one, that make a file each."""
    layer = array.shape[1:] if array.stacked else array.shape
    if len(layer) < 2:
        yield ()
        return
    rows, step = layer[-2], storage_shapes(array)[0][-2]
    for start in range(0, rows, step):
        yield (..., slice(start, min(start + step, rows)), slice(None))


def _create(path: Path, array: Streamed) -> Any:
    """Creates a zarr array: each file holds some rows, cut into chunks that are read separately."""
    file, chunk = storage_shapes(array)
    endian = {"name": "bytes", "configuration": {"endian": "little"}}
    sharding = dict(chunk_shape=chunk, codecs=[endian], index_codecs=[endian, {"name": "crc32c"}])
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": str(path)},
        "metadata": {
            "shape": array.shape,
            "data_type": array.dtype.name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": file}},
            # Weights hardly compress: bytes as they are.
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        },
        # A file at a time is three times slower than all at the end (`new_folder`).
        "context": {"file_io_sync": False},
        # Orbax takes a chunk that is not there for damage, so zeros are written too.
        "store_data_equal_to_fill_value": True,
    }
    return tensorstore.open(spec, create=True).result()


def storage_shapes(array: Streamed) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape of what one file holds, and of the chunks in it."""
    shape = array.shape
    if array.nbytes <= SMALL_BYTES or len(shape) < 2:
        return shape, shape
    layer = shape[1:] if array.stacked else shape
    leading = (1,) if array.stacked else ()
    if len(layer) < 2:
        return leading + layer, leading + layer
    row_bytes = math.prod(layer) // layer[-2] * array.dtype.itemsize
    rows, most = layer[-2], FILE_BYTES // row_bytes
    if rows > most:  # a multiple of a power of two, for chunks to fit; the last file is cut short
        rows = max(1, most - most % 64)
    files = -(-layer[-2] // rows)
    # Into a power of two of chunks each: the greatest that divides the axis.
    row_chunks = math.gcd(rows, max(1, AXIS_CHUNKS // files))
    chunk = [rows // row_chunks, layer[-1] // math.gcd(layer[-1], AXIS_CHUNKS)]
    outer = math.prod(layer[:-2]) * array.dtype.itemsize
    axis = 0
    while math.prod(chunk) * outer > CHUNK_BYTES and any(size % 2 == 0 for size in chunk):
        if chunk[axis] % 2 == 0:
            chunk[axis] //= 2
        axis = 1 - axis
    return leading + (*layer[:-2], rows, layer[-1]), leading + (*layer[:-2], *chunk)
