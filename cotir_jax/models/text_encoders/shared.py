"""Parts that the text encoders share: embedding tables, a norm, a check of inputs."""

import jax
import jax.numpy as jnp
from flax import nnx


def check_ids(ids: jax.Array, mask: jax.Array | None = None) -> None:
    """Raises `ValueError` unless ids (and mask, where given) are `[batch, tokens]`."""
    if ids.ndim != 2 or not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(f"token ids {ids.shape} {ids.dtype}: expected [batch, tokens], int32")
    if mask is not None and (mask.shape != ids.shape or mask.dtype != bool):
        raise ValueError(f"mask {mask.shape} {mask.dtype}: expected {ids.shape}, bool, as the ids")


def embedding_table(
    rows: int, width: int, *, axes: tuple[str | None, str | None], dtype: str, rngs: nnx.Rngs
) -> nnx.Param:
    """A table `[rows, width]` of normal numbers with deviation 0.02.

    Args:
      rows, width: sizes.
      axes: logical names of the two axes, for sharding.
      dtype: of the table.
      rngs: source of the numbers.
    """
    values = 0.02 * jax.random.normal(rngs.params(), (rows, width), dtype)
    # Placement is decided in one place (`partitioning`), not when the parameter is made.
    return nnx.Param(values, out_sharding=axes, eager_sharding=False)


class RMSNorm(nnx.Module):
    """`scale * x / rms(x)` over channels, the division in float32."""

    def __init__(self, width: int, *, eps: float, param_dtype: str):
        self.scale = nnx.Param(jnp.ones((width,), param_dtype))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises `[..., width]`; the result has the dtype of `x`."""
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps)
        return y.astype(x.dtype) * self.scale[...].astype(x.dtype)
