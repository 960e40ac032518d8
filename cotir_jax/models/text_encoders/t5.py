"""The encoder of T5 v1.1 XXL, which gives FLUX.1 its text embeddings, in Flax NNX.

Raffel et al. (arXiv 1910.10683): RMS norm before attention and MLP, attention logits without
`1 / sqrt(d)`, one table of relative position biases for all layers. Version 1.1 has a gated GELU
(Shazeer, arXiv 2002.05202).
"""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from cotir_jax.models.layers import scan_blocks, stack_blocks
from cotir_jax.models.text_encoders.shared import PreNormBlock, RMSNorm, check_ids, embedding_table


@dataclasses.dataclass(frozen=True)
class T5Config:
    """Sizes of a T5 v1.1 encoder; the defaults are XXL.

    Attributes:
      width: channels of the residual stream and of the result.
      num_buckets: of relative positions, half for each direction.
      max_distance: from here on all positions share a bucket.
      param_dtype, dtype: of the weights, and of the computation; float16 overflows.
    """

    vocab_size: int = 32128
    width: int = 4096
    mlp_size: int = 10240
    num_heads: int = 64
    head_dim: int = 64
    num_layers: int = 24
    num_buckets: int = 32
    max_distance: int = 128
    norm_eps: float = 1e-6
    param_dtype: str = "bfloat16"
    dtype: str = "bfloat16"


def _gelu_tanh(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=True)


class T5Block(PreNormBlock):
    """A layer: unscaled attention with a bias of positions, gated GELU."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        heads, norm = (config.num_heads, config.num_heads), partial(_norm, config)
        super().__init__(
            config, config.width, config.head_dim, heads, norm, _gelu_tanh, gated=True, rngs=rngs
        )

    def __call__(self, tokens: jax.Array, bias: jax.Array, mask: jax.Array | None) -> jax.Array:
        """One layer.

        Args:
          tokens: `[batch, tokens, width]`.
          bias: added to the attention logits, `[1, heads, tokens, tokens]`, float32.
          mask: `[batch, 1, 1, tokens]`, True at columns to attend to, or None for all.
        """
        query, key, value = self.heads(tokens)
        out = jax.nn.dot_product_attention(query, key, value, bias, mask, scale=1.0)
        return self.finish(tokens, out)


def _norm(config: T5Config) -> RMSNorm:
    return RMSNorm(config.width, eps=config.norm_eps, param_dtype=config.param_dtype)


class T5Encoder(nnx.Module):
    """Text embeddings from token ids."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        self.config = config
        shape, dtype = (config.vocab_size, config.width), config.param_dtype
        self.token_embedding = embedding_table(shape, ("vocab", "embed"), dtype, rngs)
        buckets = config.num_buckets, config.num_heads
        self.position_bias = embedding_table(buckets, (None, None), dtype, rngs)
        self.blocks = stack_blocks(lambda rngs: T5Block(config, rngs=rngs), config.num_layers, rngs)
        self.final_norm = _norm(config)

    def __call__(self, ids: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Last hidden states after the final norm, padding positions included.

        Args:
          ids: token ids `[batch, tokens]`, int32.
          mask: True at text, False at padding `[batch, tokens]`, bool. None attends to all
            positions: so does FLUX.1.

        Returns:
          `[batch, tokens, width]`, in `config.dtype`.

        Raises:
          ValueError: for other shapes or dtypes.
        """
        check_ids(ids, mask)
        config = self.config
        tokens = self.token_embedding[...][ids].astype(config.dtype)
        buckets = position_buckets(ids.shape[1], config.num_buckets, config.max_distance)
        bias = self.position_bias[...].astype(jnp.float32)[buckets]
        bias = rearrange(bias, "rows columns heads -> 1 heads rows columns")
        columns = None if mask is None else mask[:, None, None, :]
        tokens = scan_blocks(self.blocks, tokens, bias, columns, remat="none")
        return self.final_norm(tokens)


def position_buckets(tokens: int, num_buckets: int, max_distance: int) -> np.ndarray:
    """Bucket of each pair of positions: near distances exact, far ones logarithmic.

    Columns after the row take the upper half of the buckets. In a half of n buckets, distances
    below n / 2 have their own, and those from n / 2 to `max_distance` share the rest.

    Returns:
      `[tokens, tokens]`, int32, row then column.
    """
    distance = np.arange(tokens)[None, :] - np.arange(tokens)[:, None]
    half = num_buckets // 2
    exact = half // 2
    far = np.maximum(np.abs(distance), 1).astype(np.float32) / np.float32(exact)
    # In float32 as the reference: a distance on a border could fall to the other side.
    share = np.log(far) / np.float32(math.log(max_distance / exact)) * np.float32(half - exact)
    bucket = np.where(
        np.abs(distance) < exact,
        np.abs(distance),
        np.minimum(exact + share.astype(np.int32), half - 1),
    )
    return (bucket + half * (distance > 0)).astype(np.int32)
