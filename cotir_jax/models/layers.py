"""Parts that the transformers and the CoT adapter share."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from cotir_jax.models.lora import Linear
from cotir_jax.parallel.sharding import keep_batch_split

REMAT_POLICIES = {
    "none": jax.checkpoint_policies.everything_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def timestep_embedding(timestep: jax.Array) -> jax.Array:
    """Sinusoids of 1000 times `[batch]`, cosines first, longest period 10,000: `[batch, 256]`."""
    frequencies = jnp.exp(-math.log(10_000.0) * jnp.arange(128, dtype=jnp.float32) / 128)
    angles = 1000.0 * timestep.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def rotary_angles(
    position_ids: jax.Array, axes_dim: tuple[int, ...], theta: float, position_dtype: str
) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of the rotary position embedding, the axes side by side.

    Axis a with d_a channels turns pair i by `position * theta ** (-2 i / d_a)`. With
    `position_dtype="bfloat16"` ids, frequencies, angles and their cosines are rounded to bfloat16
    as the release does (docs/design.md, section 3). The rounding is explicit because XLA may keep
    excess precision inside a fused bfloat16 expression.

    Args:
      position_ids: `[batch, tokens, axes]`.
      axes_dim: channels per axis, each even.
      theta: frequency base.
      position_dtype: "float32" or "bfloat16".

    Returns:
      cos, sin: `[batch, tokens, 1, head_dim / 2]`, float32.
    """
    if position_ids.shape[-1] != len(axes_dim):
        raise ValueError(
            f"position_ids {position_ids.shape} must have {len(axes_dim)} axes last ({axes_dim})"
        )
    coarse = position_dtype == "bfloat16"

    def rounded(x: jax.Array) -> jax.Array:
        return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7) if coarse else x

    ids = rounded(position_ids.astype(jnp.float32))
    angles = jnp.concatenate(
        [
            ids[..., axis, None] * _frequencies(dim, theta, coarse)
            for axis, dim in enumerate(axes_dim)
        ],
        axis=-1,
    )
    angles = rounded(angles)[:, :, None, :]
    return rounded(jnp.cos(angles)), rounded(jnp.sin(angles))


def _frequencies(dim: int, theta: float, coarse: bool) -> np.ndarray:
    dtype = jnp.bfloat16 if coarse else np.float32

    def rounded(x: np.ndarray) -> np.ndarray:
        return x.astype(dtype).astype(np.float32)

    exponent = rounded(np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim))
    # The base is rounded too (10,000 is 9,984 in bfloat16), as PyTorch wraps a scalar base.
    base = rounded(np.asarray(theta, np.float32)).astype(np.float64)
    powers = np.power(base, exponent.astype(np.float64)).astype(np.float32)
    return rounded(np.float32(1.0) / rounded(powers))


def apply_rotary(x: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates adjacent channel pairs of `[batch, tokens, heads, head_dim]`, in float32."""
    cos, sin = angles
    even, odd = rearrange(x.astype(jnp.float32), "... (pair two) -> two ... pair", two=2)
    rotated = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    return rearrange(rotated, "... pair two -> ... (pair two)").astype(x.dtype)


def layer_norm(x: jax.Array) -> jax.Array:
    """LayerNorm over channels without affine part, eps 1e-6, in float32."""
    y = x.astype(jnp.float32)
    y = y - y.mean(-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + 1e-6)
    return y.astype(x.dtype)


def modulate(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    """`layer_norm(x) * (1 + scale) + shift`; x `[batch, tokens, channels]`."""
    return layer_norm(x) * (1 + scale) + shift


class QKNorm(nnx.Module):
    """RMS norm of queries and keys over the head dimension, eps 1e-6.

    It is computed in float32 (docs/design.md, section 3).
    """

    def __init__(self, head_dim: int, *, param_type: type[nnx.Param], param_dtype: str):
        self.query_scale = param_type(jnp.ones((head_dim,), param_dtype))
        self.key_scale = param_type(jnp.ones((head_dim,), param_dtype))

    def query(self, x: jax.Array) -> jax.Array:
        """Normalises queries `[..., head_dim]`."""
        return rms_norm(x) * self.query_scale[...].astype(x.dtype)

    def key(self, x: jax.Array) -> jax.Array:
        """Normalises keys `[..., head_dim]`."""
        return rms_norm(x) * self.key_scale[...].astype(x.dtype)


def rms_norm(x: jax.Array, eps: float = 1e-6) -> jax.Array:
    """`x / rms(x)` over channels, computed in float32."""
    y = x.astype(jnp.float32)
    return (y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + eps)).astype(x.dtype)


class Modulation(nnx.Module):
    """`silu(conditioning_vector)` through one linear, cut into `count` shift/scale/gate vectors."""

    def __init__(self, hidden_size: int, count: int, *, rngs: nnx.Rngs, **linear: Any):
        self.count = count
        # Zero start: every block begins as the identity, as diffusion transformers are trained.
        self.lin = Linear(
            hidden_size,
            count * hidden_size,
            axes=("embed", None),
            zero_init=True,
            rngs=rngs,
            **linear,
        )

    def __call__(self, conditioning_vector: jax.Array) -> tuple[jax.Array, ...]:
        """`[batch, hidden]` to `count` arrays `[batch, 1, hidden]`."""
        out = self.lin(jax.nn.silu(conditioning_vector))[:, None, :]
        return tuple(jnp.split(out, self.count, axis=-1))


class MLPEmbedder(nnx.Module):
    """Linear, SiLU, linear: embeds the sinusoids of timestep or guidance."""

    def __init__(self, in_features: int, hidden_size: int, *, rngs: nnx.Rngs, **linear: Any):
        self.in_layer = Linear(in_features, hidden_size, axes=(None, "mlp"), rngs=rngs, **linear)
        self.out_layer = Linear(hidden_size, hidden_size, rngs=rngs, **linear)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[batch, in_features]` to `[batch, hidden_size]`."""
        return self.out_layer(jax.nn.silu(self.in_layer(x)))


class FinalLayer(nnx.Module):
    """Modulated LayerNorm and a linear to the output channels; shift first, scale second."""

    def __init__(
        self,
        hidden_size: int,
        out_channels: int,
        *,
        zero_init: bool = False,
        rngs: nnx.Rngs,
        **linear: Any,
    ):
        self.modulation = Modulation(hidden_size, 2, rngs=rngs, **linear)
        self.linear = Linear(
            hidden_size,
            out_channels,
            axes=("embed", None),
            zero_init=zero_init,
            rngs=rngs,
            **linear,
        )

    def __call__(self, x: jax.Array, conditioning_vector: jax.Array) -> jax.Array:
        """`[batch, tokens, hidden]` to `[batch, tokens, out_channels]`."""
        shift, scale = self.modulation(conditioning_vector)
        return self.linear(modulate(x, shift, scale))


def stack_blocks(make: Callable[[nnx.Rngs], Any], count: int, rngs: nnx.Rngs) -> Any:
    """Builds `count` blocks as one module whose parameters have a leading `layers` axis."""
    build = nnx.vmap(
        make,
        in_axes=0,
        out_axes=0,
        axis_size=count,
        transform_metadata={nnx.PARTITION_NAME: "layers"},
    )
    return nnx.split_rngs(splits=count)(build)(rngs)


def scan_blocks(blocks: Any, carry: Any, *broadcast: Any, remat: str, per_layer: Any = None) -> Any:
    """Runs stacked blocks one after the other as a single scanned program.

    Args:
      blocks: module from `stack_blocks`, called as `block(carry, *broadcast) -> carry`.
      carry: what changes from block to block.
      *broadcast: what every block reads.
      remat: key of `REMAT_POLICIES`.
      per_layer: pytree with a leading layers axis; each block gets its slice as last argument.
    """
    graphdef, states = nnx.split(blocks)

    def body(carry: Any, layer: tuple[Any, Any]) -> tuple[Any, None]:
        state, item = layer
        items = () if item is None else (item,)
        carry = keep_batch_split(carry)
        return nnx.merge(graphdef, state)(carry, *broadcast, *items), None

    if remat != "none":
        body = jax.checkpoint(body, policy=REMAT_POLICIES[remat], prevent_cse=False)
    return jax.lax.scan(body, carry, (states, per_layer))[0]


def collect_blocks(blocks: Any, carry: Any, *broadcast: Any) -> tuple[Any, Any]:
    """Runs stacked blocks by `block.reference(carry, *broadcast) -> (carry, kept)`.

    Returns:
      The last carry, and what the blocks kept, stacked along a leading layers axis.
    """
    graphdef, states = nnx.split(blocks)
    return jax.lax.scan(
        lambda carry, state: nnx.merge(graphdef, state).reference(carry, *broadcast), carry, states
    )
