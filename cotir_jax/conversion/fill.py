"""Filling a model in memory from tensors in memory: small models and tests."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from flax import nnx

from cotir_jax.conversion.name_tables import Table, account, assemble


def fill(model: nnx.Module, table: Table, tensors: Mapping[str, np.ndarray]) -> None:
    """Puts tensors on disk into the parameters that the table names.

    Args:
      model: module with arrays, which are replaced.
      table: names of the file.
      tensors: its content.

    Raises:
      ValueError: for missing, unknown or misshapen tensors, naming the first ones.
    """
    state = nnx.state(model, nnx.Param)
    flat = {".".join(map(str, path)): variable for path, variable in nnx.to_flat_state(state)}
    targets = {path: variable.shape for path, variable in flat.items()}
    problems = account(table, {name: array.shape for name, array in tensors.items()}, targets)
    if problems:
        shown = "; ".join(problems[:5]) + (" ..." if len(problems) > 5 else "")
        raise ValueError(f"{len(problems)} tensors do not fit this model: {shown}")
    for row in table.rows:
        target = flat[row.path]
        value = assemble(row, tensors.__getitem__, target.shape, np.dtype(target.dtype))
        target.set_value(jnp.asarray(value))
    nnx.update(model, state)
