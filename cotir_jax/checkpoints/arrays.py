"""Reading Orbax checkpoints that are dictionaries of arrays."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from cotir_jax import files


def restore(path: Path, targets: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Reads the named arrays, each device its own part; others in the checkpoint are not read.

    Args:
      path: of the checkpoint.
      targets: shape, dtype (values are cast) and sharding by name.

    Raises:
      ValueError: for a checkpoint that is not there, damaged, or lacks an array of that shape.
    """
    item = dict(targets)
    args = ocp.args.PyTreeRestore(
        item=item,
        restore_args=ocp.checkpoint_utils.construct_restore_args(item),
        partial_restore=True,
    )
    with _readable(path), _checkpointer() as checkpointer:
        arrays = checkpointer.restore(path.absolute(), args=args)
    # A partial restore hands targets back that the checkpoint does not have.
    missing = [name for name, array in arrays.items() if isinstance(array, jax.ShapeDtypeStruct)]
    if missing:
        raise ValueError(
            f"{path}: lacks {len(missing)} arrays of this model, such as {missing[0]}; it was "
            "written for another model or version: convert or train it again"
        )
    return arrays


def stored_arrays(path: Path) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes on disk.

    Raises:
      ValueError: for a checkpoint that is not there or damaged.
    """
    with _readable(path), _checkpointer() as checkpointer:
        tree = checkpointer.metadata(path.absolute()).item_metadata.tree
    return {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in tree.items()}


def read_array(path: Path, name: str) -> np.ndarray:
    """One array on the host, in its dtype on disk.

    Raises:
      ValueError: for a checkpoint that is not there or damaged.
    """
    args = ocp.args.PyTreeRestore(
        item={name: 0},
        restore_args={name: ocp.RestoreArgs(restore_type=np.ndarray)},
        partial_restore=True,
    )
    with _readable(path), _checkpointer() as checkpointer:
        return checkpointer.restore(path.absolute(), args=args)[name]


def _checkpointer() -> ocp.Checkpointer:
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler())


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turns the storage libraries' errors into one line that names the part."""
    if not path.is_dir():
        raise ValueError(f"{path}: this part of the model folder is not there; write it anew")
    try:
        yield
    except Exception as error:  # of many kinds
        reason = files.one_line(error, 200)
        raise ValueError(
            f"{path}: cannot be read ({reason}); write the model folder anew"
        ) from None
