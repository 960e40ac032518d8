"""Attention on TPU by Pallas' splash kernel, which never writes the logits to memory."""

import math

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.sharding import PartitionSpec

from cotir_jax.parallel.sharding import BATCH_AXES, batch_parts

# Rows of queries and keys that one step of the kernel works on lie between these; the chip's vector
# registers hold 128 numbers side by side.
_LANES = 128
_MOST_ROWS = 1024
# Below this the kernel's own sizes would be mostly padding.
_LEAST_HEAD = 64


def takes(query: jax.Array) -> bool:
    """Whether the kernel suits heads `[batch, tokens, heads, head_dim]` like these."""
    return query.shape[-1] % _LEAST_HEAD == 0


def splash_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, *, interpret: bool = False
) -> jax.Array:
    """Full softmax attention, logits and softmax in float32; every device works on its own part.

    Pallas kernels are opaque to the partitioner, so the split is spelt out: the batch over the
    mesh's batch axes, heads over `tensor`, where they divide.

    Args:
      query: `[batch, query_tokens, heads, head_dim]`.
      key: `[batch, tokens, heads, head_dim]`.
      value: `[batch, tokens, heads, head_dim]`.
      interpret: runs the kernel step by step on any platform, for tests.

    Returns:
      `[batch, query_tokens, heads, head_dim]`, in the dtype of `query`.
    """

    def own_part(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        return _attend(query, key, value, interpret)

    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return own_part(query, key, value)
    batch, _, heads, _ = query.shape
    spec = PartitionSpec(
        BATCH_AXES if batch % batch_parts() == 0 else None,
        None,
        "tensor" if heads % mesh.shape["tensor"] == 0 else None,
        None,
    )
    return jax.shard_map(
        own_part, in_specs=(spec, spec, spec), out_specs=spec, check_vma=False
    )(query, key, value)  # fmt: skip


def _attend(query: jax.Array, key: jax.Array, value: jax.Array, interpret: bool) -> jax.Array:
    rows, keys = query.shape[1], key.shape[1]
    q_block, kv_block = _block(rows), _block(keys)
    query = _padded(query * query.shape[-1] ** -0.5, q_block)
    key, value = _padded(key, kv_block), _padded(value, kv_block)
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([splash.FullMask((query.shape[1], key.shape[1]))] * query.shape[2]),
        block_sizes=splash.BlockSizes(
            block_q=q_block, block_kv=kv_block, block_q_dkv=q_block, block_kv_dkv=kv_block,
            block_q_dq=q_block, block_kv_dq=kv_block,
        ),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )  # fmt: skip
    segments = None
    if keys < key.shape[1]:
        # Padding is a segment of its own, so that no real row looks at it.
        segments = splash.SegmentIds(
            (jnp.arange(query.shape[1]) >= rows).astype(jnp.int32),
            (jnp.arange(key.shape[1]) >= keys).astype(jnp.int32),
        )
    heads_first = (rearrange(x, "b n h d -> b h n d") for x in (query, key, value))
    out = jax.vmap(lambda q, k, v: kernel(q, k, v, segments))(*heads_first)
    return rearrange(out, "b h n d -> b n h d")[:, :rows]


def _block(rows: int) -> int:
    """Rows of a block: few rows of padding, but blocks large enough to keep the chip busy.

    A block of n rows costs about as much as n + 128: its start and its end take time too.
    """
    sizes = range(_LANES, min(_MOST_ROWS, -(-rows // _LANES) * _LANES) + 1, _LANES)
    return min(sizes, key=lambda size: (math.ceil(rows / size) * (size + _LANES), -rows % size))


def _padded(x: jax.Array, block: int) -> jax.Array:
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % block), (0, 0), (0, 0)))
