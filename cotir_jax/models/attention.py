"""The one attention function; the kernel is picked by platform."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Full softmax attention, logits and softmax in float32.

    The cuDNN kernel is used on NVIDIA for 16-bit inputs, XLA's own program elsewhere. Queries may
    be fewer than keys: the CoT adapter and the last single block ask for some rows only.

    Args:
      query: `[batch, query_tokens, heads, head_dim]`.
      key: `[batch, tokens, heads, head_dim]`.
      value: `[batch, tokens, heads, head_dim]`.

    Returns:
      `[batch, query_tokens, heads * head_dim]`, in the dtype of `query`.
    """
    use_cudnn = jax.default_backend() == "gpu" and query.dtype in (jnp.bfloat16, jnp.float16)
    out = jax.nn.dot_product_attention(
        query, key, value, implementation="cudnn" if use_cudnn else "xla"
    )
    return out.reshape(*out.shape[:2], -1)
