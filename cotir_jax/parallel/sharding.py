"""The device mesh, and where arrays are on it.

Parameters carry logical axis names (`out_sharding` metadata); the rules map those to the mesh axes
`data`, `fsdp` and `tensor`. The same program runs on one device and on many.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from einops import rearrange
from flax import nnx
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp", "tensor")
# Mesh axes that the first axis of a batch is split over.
BATCH_AXES = ("data", "fsdp")
Rules = Sequence[tuple[str, str | None]]
# Bytes from which on an array is worth splitting over `fsdp` where its axes do not say so.
LARGE = 2**20

# Logical axis of a weight -> mesh axis, where a config says nothing else.
RULES: Rules = (("embed", "fsdp"), ("mlp", "tensor"), ("vocab", "tensor"), ("layers", None))


def make_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Builds the mesh; one size may be -1, which takes the devices that are left.

    Several TPU slices follow each other along `data`: only gradients cross the data-centre
    network between them, once a step, while weights are gathered within a slice.

    Args:
      sizes: size of each of `MESH_AXES`; an axis left out has size 1.
      devices: all devices by default.

    Raises:
      ValueError: for an unknown axis, sizes that do not multiply to the number of devices, or a
        `data` axis that does not divide over the slices.
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
    axis_types = (AxisType.Auto,) * len(MESH_AXES)
    # Other platforms number slices as well, by process.
    tpus = [device for device in devices if device.platform == "tpu"]
    slices = len({getattr(device, "slice_index", 0) for device in tpus})
    if slices <= 1:
        return jax.make_mesh(tuple(shape), MESH_AXES, axis_types=axis_types, devices=devices)
    data, fsdp, tensor = shape
    if data % slices:
        raise ValueError(
            f"mesh data={data}: the data axis spans the {slices} slices, so set "
            f"config.mesh.data to a multiple of {slices}, or to -1 and config.mesh.fsdp to at most "
            f"the {len(devices) // slices} devices of a slice"
        )
    arranged = mesh_utils.create_hybrid_device_mesh(
        (data // slices, fsdp, tensor), (slices, 1, 1), devices
    )
    return Mesh(arranged, MESH_AXES, axis_types=axis_types)


def shardings(tree: Any, mesh: Mesh, rules: Rules) -> Any:
    """Returns shardings for a pytree of (abstract) variables and arrays, in its own structure.

    Variables follow their logical axes where a rule names a mesh axis that divides them evenly.
    Large ones that are not split over `fsdp` then, as LoRA's B and the autoencoder's kernels, are
    split along the first free one of their last two axes that divides, so that no device holds all
    of them and their optimizer states. Everything else is replicated.

    Args:
      tree: pytree with `nnx.Variable` or array leaves, real or abstract.
      mesh: from `make_mesh`.
      rules: pairs of logical axis and mesh axis (or None).
    """
    # A variable without an array stands where an optimizer keeps nothing for it.
    variables = jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, nnx.Variable))
    variables = [variable for variable in variables if jax.tree.leaves(variable)]
    with nnx.logical_axis_rules(tuple((logical, axis) for logical, axis in rules)):
        specs = nnx.get_partition_spec(variables)
    flat_specs = jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, PartitionSpec))
    leaves, structure = jax.tree.flatten(tree)
    spread = any(axis == "fsdp" for _, axis in rules)
    placed = []
    for spec, leaf in zip(flat_specs, leaves, strict=True):
        shape = leaf.shape
        # The autoencoder's have no logical axes.
        axes = [
            axis if axis in mesh.shape and size % mesh.shape[axis] == 0 else None
            for axis, size in zip([*spec, *[None] * len(shape)], shape, strict=False)
        ]
        if spread and "fsdp" not in axes and leaf.dtype.itemsize * math.prod(shape) >= LARGE:
            for axis in range(max(0, len(shape) - 2), len(shape)):
                if axes[axis] is None and shape[axis] % mesh.shape["fsdp"] == 0:
                    axes[axis] = "fsdp"
                    break
        placed.append(NamedSharding(mesh, PartitionSpec(*axes)))
    return jax.tree.unflatten(structure, placed)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Splits batches over `data` and `fsdp` along their first axis."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def batch_parts() -> int:
    """Counts the devices that a batch is split over in the mesh in force; 1 without one."""
    shape = jax.sharding.get_abstract_mesh().shape
    return math.prod(shape.get(axis, 1) for axis in BATCH_AXES)


def keep_batch_split(tree: Any) -> Any:
    """Tells the partitioner that activations stay split along their first axis, the batch.

    Weights are split over `fsdp` too, along an axis that products contract. Left to itself the
    partitioner may split activations there instead: every device then holds the complete batch, and
    every product ends with a sum over devices. This makes it gather weights. Between blocks, where
    no product needs all rows of a sample, those are split over `tensor` (Korthikanti 2022, arXiv
    2205.05198), or each of its devices would keep a copy. Without a mesh in force, or for a batch
    that does not divide over it, nothing changes.

    Args:
      tree: pytree of arrays `[batch, ...]` or `[batch, rows, channels]`.
    """
    tensor = jax.sharding.get_abstract_mesh().shape.get("tensor", 1)

    def keep(x: jax.Array) -> jax.Array:
        if x.ndim < 2:
            return x
        rest: list[Any] = [PartitionSpec.UNCONSTRAINED] * (x.ndim - 1)
        if tensor > 1 and x.ndim == 3 and x.shape[1] % tensor == 0:
            rest[0] = "tensor"
        return _constrain(x, *rest)

    return jax.tree.map(keep, tree)


def keep_samples_whole(x: jax.Array) -> jax.Array:
    """Tells the partitioner to split `[batch, ...]` only along the batch, for convolutions.

    Left to itself, XLA (of jax 0.10.2, on CPU devices in a mesh with all three axes above 1) splits
    places or channels, and then gets the gradient of kernels that are split over `fsdp` wrong.
    Without a mesh in force, or for a batch that does not divide over it, nothing changes.
    """
    return _constrain(x)


def _constrain(x: jax.Array, *rest: Any) -> jax.Array:
    parts = batch_parts()
    if parts * jax.sharding.get_abstract_mesh().shape.get("tensor", 1) == 1 or x.shape[0] % parts:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(BATCH_AXES, *rest))


def in_rounds(function: Callable[[Any], jax.Array], tree: Any, most: int) -> jax.Array:
    """Applies a function to several batches, a few rows of each device at a time.

    One loop, so that the function is compiled once and its activations are those of one round.

    Args:
      function: maps arrays `[rows, ...]` to one `[rows, ...]`, row by row.
      tree: pytree of arrays `[kinds, batch, ...]`, split over devices along `batch`.
      most: rows of a device in one round.

    Returns:
      `[kinds, batch, ...]`.
    """
    kinds, batch = jax.tree.leaves(tree)[0].shape[:2]
    parts = math.gcd(batch, batch_parts())
    own = batch // parts
    each = parts * max(count for count in range(1, min(most, own) + 1) if own % count == 0)
    # Rows of one device stay on it: `each` is the outer axis.
    rounds = jax.tree.map(
        lambda x: rearrange(x, "k (each rounds) ... -> (k rounds) each ...", each=each), tree
    )
    out = jax.lax.map(lambda part: function(keep_batch_split(part)), rounds)
    return rearrange(out, "(k rounds) each ... -> k (each rounds) ...", k=kinds)


def replicated(mesh: Mesh) -> NamedSharding:
    """Puts the same array on every device."""
    return NamedSharding(mesh, PartitionSpec())
