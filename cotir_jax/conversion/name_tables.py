"""Name tables: which published tensors each of our arrays is made of, read in both directions."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a name table: the published tensors of one of our arrays.

    Attributes:
      path: our parameter's path, joined by dots.
      names: for each layer (one where not stacked), the tensors that are joined along their first
        axis, which on disk is the output axis.
      stacked: whether our array has a leading layers axis.
      layout: how a tensor on disk differs from ours. "linear": `[out, in]` or `[out, in, 1, 1]`
        there, `[in, out]` here, vectors alike; "conv": `[out, in, height, width]` there,
        `[height, width, in, out]` here; "same": alike (embedding tables); "swapped": as "linear",
        and the two halves of the output axis are exchanged.
    """

    path: str
    names: tuple[tuple[str, ...], ...]
    stacked: bool = False
    layout: str = "linear"

    @property
    def tensors(self) -> list[str]:
        """Names of all its tensors."""
        return [name for layer in self.names for name in layer]


class Table(NamedTuple):
    """The names of one published file or folder.

    Attributes:
      rows: a row per array of ours.
      unneeded: patterns (of the full name) of tensors that are there and not used, with the reason.
    """

    rows: Sequence[Row]
    unneeded: Mapping[str, str] = {}


def one(path: str, *names: str, layout: str = "linear") -> Row:
    """A parameter that exists once."""
    return Row(path, (names,), False, layout)


def per_layer(path: str, count: int, *names: str, layout: str = "linear") -> Row:
    """A parameter with a leading layers axis; `{}` in the names is the layer's number."""
    layers = tuple(tuple(name.replace("{}", str(i)) for name in names) for i in range(count))
    return Row(path, layers, True, layout)


def our_shape(row: Row, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """Shape of our array, from the shapes on disk.

    Raises:
      ValueError: when the tensors of the row do not fit each other.
    """
    layers = [_layer_shape(row, [tuple(shapes[name]) for name in names]) for names in row.names]
    shape = layers[0]
    for names, other in zip(row.names, layers, strict=True):
        if other != shape:
            raise ValueError(f"{names[0]} gives {other}, {row.names[0][0]} gives {shape}")
    return (len(row.names), *shape) if row.stacked else shape


def _layer_shape(row: Row, parts: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    first = parts[0]
    if any(part[1:] != first[1:] for part in parts):
        raise ValueError(f"{row.names[0]} cannot be joined: shapes {list(parts)}")
    if not first:
        return ()
    joined = np.broadcast_to(np.int8(0), (sum(part[0] for part in parts), *first[1:]))
    return _to_ours(joined, row.layout).shape


def assemble(
    row: Row, read: Callable[[str], np.ndarray], shape: tuple[int, ...], dtype: np.dtype
) -> np.ndarray:
    """Builds our array from the tensors on disk, one at a time.

    Memory: the result, one tensor, and its copy where the dtype changes.

    Args:
      row: which tensors.
      read: gives a tensor by name.
      shape: from `our_shape`.
      dtype: of the result.
    """
    if not row.stacked:
        return assemble_layer(row, 0, read, shape, dtype)
    result = np.empty(shape, dtype)
    for index in range(len(row.names)):
        result[index] = assemble_layer(row, index, read, shape[1:], dtype)
    return result


def assemble_layer(
    row: Row,
    index: int,
    read: Callable[[str], np.ndarray],
    shape: tuple[int, ...],
    dtype: np.dtype,
    buffer: np.ndarray | None = None,
) -> np.ndarray:
    """Builds one layer of a stacked array, or all of another one.

    Args:
      row: which tensors.
      index: of the layer.
      read: gives a tensor by name.
      shape: of the layer.
      dtype: of the result.
      buffer: uint8, large enough for the result, to use as its memory.
    """
    names = row.names[index]
    if len(names) == 1 and (row.layout == "same" or len(shape) < 2) and row.layout != "swapped":
        return read(names[0]).astype(dtype, copy=False).reshape(shape)
    if buffer is None:
        result = np.empty(shape, dtype)
    else:
        size = math.prod(shape) * dtype.itemsize
        result = buffer[:size].view(dtype).reshape(shape)
    start = 0
    for name in names:
        tensor = read(name).astype(dtype, copy=False)
        end = start + tensor.shape[0]
        if row.layout == "same":
            result[start:end] = tensor
        else:
            _transposed_copy(result[..., start:end], _to_ours(tensor, row.layout))
        start = end
    if row.layout == "swapped":
        result[...] = np.roll(result, shape[-1] // 2, axis=-1)
    return result


def disassemble(
    row: Row, array: np.ndarray, sizes: Sequence[int] | None = None
) -> dict[str, np.ndarray]:
    """The tensors on disk that our array comes from; the inverse of `assemble`.

    Args:
      row: which tensors.
      array: ours, of any dtype.
      sizes: first axis of each joined tensor; equal parts by default.
    """
    tensors = {}
    for index, names in enumerate(row.names):
        layer = array[index] if row.stacked else array
        if row.layout == "swapped":
            layer = np.roll(layer, layer.shape[-1] // 2, axis=-1)
        if row.layout == "conv":
            joined = layer.transpose(3, 2, 0, 1)
        else:
            joined = layer if row.layout == "same" else layer.T
        cuts = np.cumsum(sizes)[:-1] if sizes else len(names)
        parts = np.split(joined, cuts, axis=0) if len(names) > 1 else [joined]
        for name, part in zip(names, parts, strict=True):
            tensors[name] = np.empty(part.shape, part.dtype)
            _transposed_copy(tensors[name], part)
    return tensors


def _to_ours(tensor: np.ndarray, layout: str) -> np.ndarray:
    """A view of one tensor with its axes in our order."""
    if layout == "conv":
        return tensor.transpose(2, 3, 1, 0)
    if layout == "same":
        return tensor
    return (tensor[:, :, 0, 0] if tensor.shape[2:] == (1, 1) else tensor).T


def _transposed_copy(target: np.ndarray, view: np.ndarray) -> None:
    """`target[...] = view` in columns of a cache line: plain transposed copies are 20 times slower.

    The numbers are copied as raw integers, for which numpy does not hold Python's lock.
    """
    raw = f"u{target.dtype.itemsize}"
    target, view = target.view(raw), view.view(raw)
    if view.ndim != 2 or view.flags.c_contiguous:
        target[...] = view
        return
    block = max(1, 64 // target.dtype.itemsize)
    for start in range(0, view.shape[1], block):
        target[:, start : start + block] = view[:, start : start + block]


def account(
    table: Table, shapes: Mapping[str, tuple[int, ...]], targets: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """Compares a table with what is on disk and with the model; an empty list is a fit.

    Every tensor on disk is used once or is unneeded by rule; every row's tensors are there and
    give the shape of its target.

    Args:
      table: names of the file.
      shapes: shape on disk by name.
      targets: shape by our path; paths that the table does not name are another table's.

    Returns:
      A line per problem.
    """
    problems, used = [], set[str]()
    for row in table.rows:
        missing = [name for name in row.tensors if name not in shapes]
        problems += [f"{name} is used twice" for name in row.tensors if name in used]
        used.update(row.tensors)
        problems += [f"missing {name}" for name in missing]
        if missing:
            continue
        if row.path not in targets:
            problems.append(f"{row.tensors[0]} gives {row.path}, which the model does not have")
            continue
        try:
            shape = our_shape(row, shapes)
        except ValueError as error:
            problems.append(str(error))
            continue
        if shape != (expected := tuple(targets[row.path])):
            problems.append(f"{row.tensors[0]} gives {row.path} {shape}, the model has {expected}")
    for name in sorted(set(shapes) - used):
        if not any(re.fullmatch(pattern, name) for pattern in table.unneeded):
            problems.append(f"unknown tensor {name}")
    return problems
