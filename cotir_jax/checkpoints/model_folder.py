"""Model folders: weights ready to use (`weights/`, Orbax) and `model.json` beside them."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import Mesh

from cotir_jax import partitioning
from cotir_jax.models import presets
from cotir_jax.models.flux2 import Flux2

# Weights that ship with the package.
PACKAGED = Path(__file__).parent.parent / "weights"


def save_model(folder: Path, model: Flux2, notes: dict[str, Any], dtype: str = "bfloat16") -> None:
    """Writes a model folder, replacing one that is there only once the new one is complete.

    Args:
      folder: where to.
      model: the model to save.
      notes: kept in `model.json` under "notes": where the weights come from.
      dtype: dtype on disk.
    """
    folder = Path(folder).absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    weights = {
        ".".join(map(str, path)): jnp.asarray(variable[...], dtype)
        for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param))
    }
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(temporary / "weights", weights)
    described = {
        "model": dataclasses.asdict(model.config),
        "dtype": dtype,
        "parameters": sum(array.size for array in weights.values()),
        "notes": notes,
    }
    (temporary / "model.json").write_text(json.dumps(described, indent=1) + "\n")
    if folder.exists():
        shutil.rmtree(folder)
    temporary.rename(folder)


def load_config(folder: Path) -> presets.CoTIRConfig:
    """Reads the sizes of the model in a folder.

    Raises:
      ValueError: when it is not a model folder.
    """
    path = Path(folder) / "model.json"
    try:
        return presets.from_dict(json.loads(path.read_text())["model"])
    except FileNotFoundError:
        raise ValueError(
            f"{folder}: not a model folder (no model.json); training writes one as WORKDIR/model"
        ) from None
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: damaged ({error!r})") from None


def load_model(
    folder: Path,
    mesh: Mesh,
    rules: partitioning.Rules,
    config: presets.CoTIRConfig | None = None,
) -> Flux2:
    """Restores a model folder onto a mesh; each device reads its own part.

    Args:
      folder: from `save_model`.
      mesh: where to.
      rules: logical axis -> mesh axis.
      config: the sizes that are expected; by default those of the folder.

    Raises:
      ValueError: for damaged weights, or weights of another model.
    """
    stored = load_config(folder)
    config = config or stored
    structure, state = jax.eval_shape(lambda: nnx.split(Flux2(config, rngs=nnx.Rngs(0))))
    placed = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        partitioning.shardings(state, mesh, rules),
    )
    flat = {".".join(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(placed)}
    path = (Path(folder) / "weights").absolute()
    with ocp.StandardCheckpointer() as checkpointer:
        try:
            weights = checkpointer.restore(path, flat)
        except Exception as error:  # the storage layer raises many kinds
            if _sizes(stored) != _sizes(config):
                raise ValueError(
                    f"{folder} holds {stored.name} with other sizes than this {config.name}"
                ) from None
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"{path}: weights cannot be read: {reason}") from None
    for key, variable in nnx.to_flat_state(state):
        variable.set_value(weights[".".join(map(str, key))])
    return nnx.merge(structure, state)


def _sizes(config: presets.CoTIRConfig) -> dict[str, Any]:
    free = {"name", "dtype", "base_dtype", "remat", "num_steps", "lora_scale"}
    return {k: v for k, v in dataclasses.asdict(config).items() if k not in free}
