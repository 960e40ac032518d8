"""Encoder and decoder of the FLUX autoencoders (docs/design.md, section 4).

Everything is channels-last, `[batch, height, width, channels]`.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from cotir_jax.models.lora import Linear

GROUPS = 32
GROUP_NORM_EPS = 1e-6

# Attention logits of one picture that are held at once: 128 MB in float32, as large as the
# decoder's widest activation at 512 x 512 pixels. Larger pictures go through in parts.
MAX_LOGITS = 2**25


class GroupNorm(nnx.Module):
    """Group normalisation with float32 statistics, the variance in a second pass.

    Sums run over positions first, channels of a group last: the channel axis is never split, which
    TPUs and XLA:CPU would pay for at full resolution.
    """

    def __init__(self, channels: int, param_dtype: str):
        self.scale = nnx.Param(jnp.ones((channels,), param_dtype))
        self.bias = nnx.Param(jnp.zeros((channels,), param_dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[batch, height, width, channels]` to the same, in the dtype of `x`."""
        wide = x.astype(jnp.float32)
        centred = wide - self._group_mean(wide)
        inverse = jax.lax.rsqrt(self._group_mean(jnp.square(centred)) + GROUP_NORM_EPS)
        scale = inverse * self.scale[...].astype(jnp.float32)
        return (centred * scale + self.bias[...].astype(jnp.float32)).astype(x.dtype)

    def _group_mean(self, x: jax.Array) -> jax.Array:
        """Mean over positions and the channels of a group, `[batch, 1, 1, channels]`."""
        groups = rearrange(x.mean(axis=(1, 2)), "b (g c) -> b g c", g=GROUPS).mean(axis=-1)
        return jnp.repeat(groups, x.shape[-1] // GROUPS, axis=-1)[:, None, None]


def _conv(into: int, out: int, dtypes: dict[str, Any], rngs: nnx.Rngs) -> nnx.Conv:
    return nnx.Conv(into, out, (3, 3), padding=1, rngs=rngs, **dtypes)


def _pointwise(into: int, out: int, dtypes: dict[str, Any], rngs: nnx.Rngs) -> Linear:
    return Linear(into, out, axes=(None, None), use_bias=True, rngs=rngs, **dtypes)


class ResidualBlock(nnx.Module):
    """Two rounds of norm, swish and convolution, added to the input."""

    def __init__(self, into: int, out: int, dtypes: dict[str, Any], *, rngs: nnx.Rngs):
        self.norm1 = GroupNorm(into, dtypes["param_dtype"])
        self.conv1 = _conv(into, out, dtypes, rngs)
        self.norm2 = GroupNorm(out, dtypes["param_dtype"])
        self.conv2 = _conv(out, out, dtypes, rngs)
        self.shortcut = _pointwise(into, out, dtypes, rngs) if into != out else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[batch, height, width, into]` to `[batch, height, width, out]`."""
        hidden = self.conv1(nnx.silu(self.norm1(x)))
        hidden = self.conv2(nnx.silu(self.norm2(hidden)))
        return hidden + (x if self.shortcut is None else self.shortcut(x))


class SpatialAttention(nnx.Module):
    """Attention of every position to every position, one head as wide as the channels."""

    def __init__(self, channels: int, dtypes: dict[str, Any], *, rngs: nnx.Rngs):
        self.norm = GroupNorm(channels, dtypes["param_dtype"])
        self.qkv = _pointwise(channels, 3 * channels, dtypes, rngs)
        self.out = _pointwise(channels, channels, dtypes, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[batch, height, width, channels]` to the same."""
        tokens = rearrange(self.norm(x), "b h w c -> b (h w) c")
        mixed = attend(*jnp.split(self.qkv(tokens), 3, axis=-1))
        return x + self.out(mixed).reshape(x.shape)


def attend(
    query: jax.Array, key: jax.Array, value: jax.Array, max_logits: int = MAX_LOGITS
) -> jax.Array:
    """Softmax attention with one head, exact, queries in parts where there are many.

    The head is too wide (512) for the fused kernels that `attention.attention` picks from.

    Args:
      query: `[batch, tokens, channels]`, as key, value and the result, which has its dtype.
      key: of all positions.
      value: of all positions.
      max_logits: logits of a picture that may be held at once.
    """

    def part(query: jax.Array) -> jax.Array:
        logits = jnp.einsum("bqc,bkc->bqk", query, key, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(logits * query.shape[-1] ** -0.5, axis=-1)
        return jnp.einsum("bqk,bkc->bqc", weights.astype(value.dtype), value)

    tokens = query.shape[1]
    parts = -(-tokens * tokens // max_logits)
    if parts <= 1:
        return part(query)
    size = -(-tokens // parts)
    padded = jnp.pad(query, ((0, 0), (0, parts * size - tokens), (0, 0)))
    out = jax.lax.map(part, rearrange(padded, "b (p q) c -> p b q c", p=parts))
    return rearrange(out, "p b q c -> b (p q) c")[:, :tokens]


class Middle(nnx.Module):
    """Residual block, attention, residual block, at the lowest resolution."""

    def __init__(self, channels: int, dtypes: dict[str, Any], *, rngs: nnx.Rngs):
        self.block1 = ResidualBlock(channels, channels, dtypes, rngs=rngs)
        self.attention = SpatialAttention(channels, dtypes, rngs=rngs)
        self.block2 = ResidualBlock(channels, channels, dtypes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[batch, height, width, channels]` to the same."""
        return self.block2(self.attention(self.block1(x)))


class Level(nnx.Module):
    """The residual blocks of one resolution, then a convolution that changes the resolution.

    Args:
      into: channels of the input.
      out: channels of the result.
      count: residual blocks.
      resample: "down" halves, "up" doubles, "" keeps the resolution.
      dtypes: `param_dtype` and `dtype`.
      rngs: for random initial weights.
    """

    def __init__(
        self, into: int, out: int, count: int, resample: str, dtypes: dict[str, Any], *,
        rngs: nnx.Rngs,
    ):  # fmt: skip
        self.blocks = nnx.List(
            [ResidualBlock(into if i == 0 else out, out, dtypes, rngs=rngs) for i in range(count)]
        )
        self.up = resample == "up"
        down: dict[str, Any] = dict(strides=2, padding=((0, 1), (0, 1)))
        conv = dtypes | (dict(padding=1) if self.up else down)
        self.resample = nnx.Conv(out, out, (3, 3), rngs=rngs, **conv) if resample else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[batch, height, width, into]` to `out` channels at the new resolution."""
        for block in self.blocks:
            x = block(x)
        if self.resample is None:
            return x
        if self.up:
            x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
        return self.resample(x)


class Coder(nnx.Module):
    """The encoder or the decoder: convolution, levels and middle, norm, convolution.

    The encoder maps pictures to posterior mean and log variance, joined; the decoder maps latents
    to pictures. The middle is at the lowest resolution: after the encoder's levels, before the
    decoder's.

    Args:
      way: "down" for the encoder, "up" for the decoder.
      into: channels of the input.
      widths: channels of each level, in the order of computation.
      count: residual blocks of a level.
      out: channels of the result.
      dtypes: `param_dtype` and `dtype`.
      rngs: for random initial weights.
    """

    def __init__(
        self, way: str, into: int, widths: Sequence[int], count: int, out: int,
        dtypes: dict[str, Any], *, rngs: nnx.Rngs,
    ):  # fmt: skip
        self.up = way == "up"
        self.conv_in = _conv(into, widths[0], dtypes, rngs)
        self.middle = Middle(widths[0 if self.up else -1], dtypes, rngs=rngs)
        # All levels but the last change the resolution.
        sizes = zip([widths[0], *widths], widths, [way] * (len(widths) - 1) + [""], strict=False)
        self.levels = nnx.List(
            [Level(before, width, count, step, dtypes, rngs=rngs) for before, width, step in sizes]
        )
        self.norm_out = GroupNorm(widths[-1], dtypes["param_dtype"])
        self.conv_out = _conv(widths[-1], out, dtypes, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[batch, height, width, into]` to `out` channels, at the other end's resolution."""
        x = self.conv_in(x)
        for part in [self.middle, *self.levels] if self.up else [*self.levels, self.middle]:
            x = part(x)
        return self.conv_out(nnx.silu(self.norm_out(x)))
