"""The one attention function; the kernel is picked by platform."""

from functools import partial

import jax
import jax.numpy as jnp
from einops import rearrange

from cotir_jax.models import products, tpu_attention

# On CPU the logits in work stay near this size, so that they are read back from the cache: all of
# them for klein-4b at 1,500 rows are 226 MB, and writing them took longer than the products.
CPU_LOGITS_BYTES = 4 * 2**20
CPU_MIN_ROWS = 64


def attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Full softmax attention, logits and softmax in float32.

    The platform that the program is compiled for decides: a loop over heads and parts of the
    queries on CPU, Pallas' splash kernel on TPU for heads of 64 channels and multiples of it, the
    cuDNN kernel on NVIDIA for 16-bit inputs, XLA's own program elsewhere.
    Queries may be fewer than keys: the CoT adapter and the last single block ask for some rows
    only.

    Args:
      query: `[batch, query_tokens, heads, head_dim]`.
      key: `[batch, tokens, heads, head_dim]`.
      value: `[batch, tokens, heads, head_dim]`.

    Returns:
      `[batch, query_tokens, heads * head_dim]`, in the dtype of `query`.
    """
    # jax looks for cuDNN while it traces, so it can be named only where there is a GPU.
    use_cudnn = jax.default_backend() == "gpu" and query.dtype in (jnp.bfloat16, jnp.float16)
    plain = partial(jax.nn.dot_product_attention, implementation="cudnn" if use_cudnn else "xla")
    on_tpu = tpu_attention.splash_attention if tpu_attention.takes(query) else plain
    out = jax.lax.platform_dependent(query, key, value, cpu=_by_head, tpu=on_tpu, default=plain)
    return rearrange(out, "b n h d -> b n (h d)")


def _by_head(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Attention for CPU, shapes as in `attention`; the heads one after the other.

    The batch is not looped over, so that it may be sharded. Sharded heads are gathered first.
    """
    heads = tuple(rearrange(x, "b n h d -> h b n d") for x in (query, key, value))
    out = jax.lax.map(lambda parts: _one_head(*parts), heads)
    return rearrange(out, "h b n d -> b n h d")


def _one_head(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """`[batch, query_tokens, head_dim]` of one head; some rows of the queries at a time.

    Softmax and both products are in float32, which XLA:CPU also does faster than bfloat16 unless
    `products` is asked for: then they keep their inputs' dtype. The sum of the softmax divides the
    output rather than the weights: one pass fewer over the logits, two in the backward pass. That
    computes the logits again, so that they are never all kept.
    """
    dtype, wide = query.dtype, jnp.promote_types(query.dtype, jnp.float32)
    narrow = dtype if products.in_bfloat16() else wide
    query, key, value = query.astype(wide), key.astype(narrow), value.astype(narrow)
    einsum = partial(jnp.einsum, preferred_element_type=wide)
    batch, count, head_dim = query.shape
    rows = max(CPU_MIN_ROWS, CPU_LOGITS_BYTES // (wide.itemsize * batch * key.shape[1]))
    steps = -(-count // rows)
    rows = -(-count // steps)

    # The products keep their batch axis even where it is 1: a remat policy that saves products
    # without one (`dots_with_no_batch_dims_saveable`) must not save the logits.
    @partial(jax.checkpoint, prevent_cse=False)
    def attend(query: jax.Array) -> jax.Array:
        logits = einsum("bqd,bkd->bqk", (query * head_dim**-0.5).astype(narrow), key)
        top = jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
        weights = jnp.exp(logits - top)
        total = weights.sum(axis=-1, keepdims=True)
        return einsum("bqk,bkd->bqd", weights.astype(narrow), value) / total

    query = jnp.pad(query, ((0, 0), (0, steps * rows - count), (0, 0)))
    out = jax.lax.map(attend, rearrange(query, "b (s r) d -> s b r d", s=steps))
    return rearrange(out, "s b r d -> b (s r) d")[:, :count].astype(dtype)
