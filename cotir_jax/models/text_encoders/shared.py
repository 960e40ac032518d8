"""Parts that the text encoders share: a transformer block, tables, norms, a check of inputs."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from cotir_jax.models.layers import rms_norm
from cotir_jax.models.lora import Linear, sharded_param


def check_ids(
    ids: jax.Array, mask: jax.Array | None = None, limit: int | None = None, name: str = ""
) -> None:
    """Raises `ValueError` unless ids (and mask) are `[batch, tokens]`, tokens at most `limit`."""
    if ids.ndim != 2 or not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(f"token ids {ids.shape} {ids.dtype}: expected [batch, tokens], int32")
    if mask is not None and (mask.shape != ids.shape or mask.dtype != bool):
        raise ValueError(f"mask {mask.shape} {mask.dtype}: expected {ids.shape}, bool, as the ids")
    if limit is not None and (length := ids.shape[1]) > limit:
        raise ValueError(f"got {length} tokens, {name} takes at most {limit}: shorten the text")


def embedding_table(
    shape: tuple[int, int], axes: tuple[str | None, str | None], dtype: str, rngs: nnx.Rngs
) -> nnx.Param:
    """A table `[rows, width]` of normal numbers with deviation 0.02, with logical axes."""
    values = 0.02 * jax.random.normal(rngs.params(), shape, dtype)
    return sharded_param(nnx.Param, values, axes)


class RMSNorm(nnx.Module):
    """`scale * x / rms(x)` over channels, the division in float32."""

    def __init__(self, width: int, *, eps: float, param_dtype: str):
        self.scale = nnx.Param(jnp.ones((width,), param_dtype))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises `[..., width]`; the result has the dtype of `x`."""
        return rms_norm(x, self.eps) * self.scale[...].astype(x.dtype)


def layer_norm(width: int, eps: float, param_dtype: str, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm in float32, with the two-pass variance: E[x^2] - E[x]^2 cancels."""
    more: dict[str, Any] = dict(dtype=jnp.float32, use_fast_variance=False, rngs=rngs)
    return nnx.LayerNorm(width, epsilon=eps, param_dtype=param_dtype, **more)


class PreNormBlock(nnx.Module):
    """Attention and MLP, each on the normalised residual stream and added to it.

    Args:
      config: sizes, with `mlp_size`, `param_dtype` and `dtype`.
      width: channels of the residual stream.
      head_dim: channels of a head.
      heads: heads of the queries, and of keys and values.
      norm: makes a norm over the residual stream.
      activation: of the MLP.
      gated: whether the activation is of a second linear layer, which multiplies the first.
      use_bias: whether the linear layers have biases.
    """

    def __init__(
        self,
        config: Any,
        width: int,
        head_dim: int,
        heads: tuple[int, int],
        norm: Callable[[], nnx.Module],
        activation: Callable[[jax.Array], jax.Array],
        *,
        gated: bool = False,
        use_bias: bool = False,
        rngs: nnx.Rngs,
    ):
        linear: dict[str, Any] = dict(
            use_bias=use_bias, param_dtype=config.param_dtype, dtype=config.dtype, rngs=rngs
        )
        back = linear | {"axes": ("mlp", "embed")}
        self.head_dim, self.activation = head_dim, activation
        inner, key_value = (count * head_dim for count in heads)
        self.attention_norm = norm()
        # Not fused, so that each splits over the tensor axis between heads.
        self.query = Linear(width, inner, **linear)
        self.key = Linear(width, key_value, **linear)
        self.value = Linear(width, key_value, **linear)
        self.attention_out = Linear(inner, width, **back)
        self.mlp_norm = norm()
        self.mlp_gate = Linear(width, config.mlp_size, **linear) if gated else None
        self.mlp_in = Linear(width, config.mlp_size, **linear)
        self.mlp_out = Linear(config.mlp_size, width, **back)

    def heads(self, tokens: jax.Array) -> list[jax.Array]:
        """Queries, keys and values, `[batch, tokens, heads, head_dim]`, of the residual stream."""
        x = self.attention_norm(tokens)
        return [
            rearrange(linear(x), "b t (heads dim) -> b t heads dim", dim=self.head_dim)
            for linear in (self.query, self.key, self.value)
        ]

    def finish(self, tokens: jax.Array, attended: jax.Array) -> jax.Array:
        """Adds attention's output `[batch, tokens, heads, head_dim]` and the MLP to the tokens."""
        attended = rearrange(attended, "b t heads dim -> b t (heads dim)")
        tokens = tokens + self.attention_out(attended)
        x = self.mlp_norm(tokens)
        if self.mlp_gate is None:
            return tokens + self.mlp_out(self.activation(self.mlp_in(x)))
        return tokens + self.mlp_out(self.activation(self.mlp_gate(x)) * self.mlp_in(x))
