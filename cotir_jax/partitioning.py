"""The device mesh and where arrays lie on it.

Parameters carry logical axis names (`out_sharding` metadata); the rules map those to the mesh axes
`data`, `fsdp` and `tensor`. The same program runs on one device and on many.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp", "tensor")
Rules = Sequence[tuple[str, str | None]]

# Logical axis of a weight -> mesh axis, where a config says nothing else.
RULES: Rules = (("embed", "fsdp"), ("mlp", "tensor"), ("vocab", "tensor"), ("layers", None))


def make_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Builds the mesh; one size may be -1, which takes the devices that are left.

    Args:
      sizes: size of each of `MESH_AXES`; an axis left out has size 1.
      devices: all devices by default.

    Raises:
      ValueError: for an unknown axis or sizes that do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    unknown = set(sizes) - set(MESH_AXES)
    if unknown:
        raise ValueError(f"mesh axes {sorted(unknown)}: accepted are {list(MESH_AXES)}")
    shape = [sizes.get(axis, 1) for axis in MESH_AXES]
    fixed = math.prod(size for size in shape if size != -1)
    if shape.count(-1) == 1 and fixed > 0 and len(devices) % fixed == 0:
        shape[shape.index(-1)] = len(devices) // fixed
    if min(shape) < 1 or math.prod(shape) != len(devices):
        asked = ", ".join(f"{axis}={sizes.get(axis, 1)}" for axis in MESH_AXES)
        raise ValueError(
            f"mesh {asked} does not fit {len(devices)} devices: set config.mesh so that the "
            f"product is {len(devices)} (one of them may be -1)"
        )
    return jax.make_mesh(
        tuple(shape),
        MESH_AXES,
        axis_types=(jax.sharding.AxisType.Auto,) * len(MESH_AXES),
        devices=devices,
    )


def shardings(tree: Any, mesh: Mesh, rules: Rules) -> Any:
    """Shardings for a pytree of (abstract) variables and arrays, in the tree's own structure.

    Variables follow their logical axes where a rule names a mesh axis that divides them evenly;
    everything else is replicated.

    Args:
      tree: pytree with `nnx.Variable` or array leaves, real or abstract.
      mesh: from `make_mesh`.
      rules: pairs of logical axis and mesh axis (or None).
    """
    with nnx.logical_axis_rules(tuple((logical, axis) for logical, axis in rules)):
        specs = nnx.get_partition_spec(tree)
    is_spec = lambda x: isinstance(x, PartitionSpec)  # noqa: E731
    flat_specs = jax.tree.leaves(specs, is_leaf=is_spec)
    leaves, structure = jax.tree.flatten(tree)
    placed = [
        NamedSharding(mesh, _divisible(spec, leaf.shape, mesh))
        for spec, leaf in zip(flat_specs, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, placed)


def _divisible(spec: PartitionSpec, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    axes = [
        axis if axis in mesh.shape and size % mesh.shape[axis] == 0 else None
        for axis, size in zip(spec, shape, strict=False)
    ]
    return PartitionSpec(*axes)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Batches are split over `data` and `fsdp` along their first axis."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def global_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's part of a batch, `[local batch, ...]`, to arrays over the whole mesh.

    Raises:
      ValueError: when the batch does not divide over the mesh.
    """
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    size = len(next(iter(batch.values()))) * jax.process_count()
    if size % parts:
        raise ValueError(
            f"batch of {size} does not divide over data x fsdp = {parts}: change the batch sizes "
            "in config.train.stages or config.mesh"
        )
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, np.asarray(array))
        for name, array in batch.items()
    }
