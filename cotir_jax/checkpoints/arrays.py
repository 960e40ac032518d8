"""Reads the parts of model folders: Orbax checkpoints that are dictionaries of arrays."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from cotir_jax import files


def read_arrays(path: Path, targets: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Reads the named arrays onto devices, each its own part of every array, and no others.

    Args:
      path: of the checkpoint.
      targets: shape, dtype (values are cast) and sharding by name.

    Raises:
      ValueError: for a checkpoint that is missing or damaged, or lacks an array of that shape.
    """
    item = dict(targets)
    args = ocp.args.PyTreeRestore(
        item=item,
        restore_args=ocp.checkpoint_utils.construct_restore_args(item),
        partial_restore=True,
    )
    with _opened(path) as checkpointer:
        arrays = checkpointer.restore(path.absolute(), args=args)
    # A partial restore returns the targets of arrays that the checkpoint does not have.
    missing = [name for name, array in arrays.items() if isinstance(array, jax.ShapeDtypeStruct)]
    if missing:
        raise ValueError(
            f"{path}: lacks {len(missing)} arrays of this model, such as {missing[0]}; it was "
            "written for another model or version: convert or train it again"
        )
    return arrays


def read_shapes(path: Path) -> dict[str, jax.ShapeDtypeStruct]:
    """Reads the shapes and dtypes of all arrays.

    Raises:
      ValueError: for a checkpoint that is missing or damaged.
    """
    with _opened(path) as checkpointer:
        tree = checkpointer.metadata(path.absolute()).item_metadata.tree
    return {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in tree.items()}


def read_array(path: Path, name: str) -> np.ndarray:
    """Reads one array into host memory, in the dtype that it is stored in.

    Raises:
      ValueError: for a checkpoint that is missing or damaged.
    """
    args = ocp.args.PyTreeRestore(
        item={name: 0},
        restore_args={name: ocp.RestoreArgs(restore_type=np.ndarray)},
        partial_restore=True,
    )
    with _opened(path) as checkpointer:
        return checkpointer.restore(path.absolute(), args=args)[name]


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[ocp.Checkpointer]:
    """Yields what reads `path`; the storage libraries' errors become one line that names it."""
    if not path.is_dir():
        raise ValueError(f"{path}: this part of the model folder is missing; write it again")
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            yield checkpointer
    except Exception as error:  # libraries raise many kinds
        reason = f"cannot be read ({files.one_line(error, 200)})"
        raise ValueError(f"{path}: {reason}; write the model folder again") from None
