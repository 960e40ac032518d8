"""The lower layers of Qwen3, the text encoder of FLUX.2 klein, in Flax NNX.

A decoder (Qwen3 report, arXiv 2505.09388): RMS norm before attention and MLP, grouped-query
attention with normalised queries and keys, rotary positions, SwiGLU. FLUX.2 reads the residual
stream after layers 9, 18 and 27 of 36, so the layers above, the final norm and the output head do
not exist here.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from cotir_jax.models.layers import scan_blocks, stack_blocks
from cotir_jax.models.text_encoders.shared import PreNormBlock, RMSNorm, check_ids, embedding_table


@dataclasses.dataclass(frozen=True)
class Qwen3Config:
    """Sizes of Qwen3; the defaults are Qwen3-4B.

    Attributes:
      output_layers: after which layers the residual stream is read, increasing; the last one is
        the number of layers there are.
      theta: base of the rotary frequencies.
      param_dtype, dtype: of the weights, and of the computation.
    """

    vocab_size: int = 151936
    hidden_size: int = 2560
    mlp_size: int = 9728
    num_heads: int = 32
    num_kv_heads: int = 8
    head_dim: int = 128
    theta: float = 1e6
    norm_eps: float = 1e-6
    output_layers: tuple[int, ...] = (9, 18, 27)
    param_dtype: str = "bfloat16"
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        layers = self.output_layers
        if not layers or min(layers) < 1 or list(layers) != sorted(set(layers)):
            raise ValueError(
                f"output_layers {layers}: expected increasing numbers from 1, as 9, 18"
            )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"{self.num_heads} query heads do not divide over {self.num_kv_heads} key heads"
            )

    @property
    def num_layers(self) -> int:
        """Layers that are computed."""
        return self.output_layers[-1]

    @property
    def width(self) -> int:
        """Channels of the result."""
        return len(self.output_layers) * self.hidden_size


QWEN3_4B = Qwen3Config()
QWEN3_8B = Qwen3Config(hidden_size=4096, mlp_size=12288)


class Qwen3Block(PreNormBlock):
    """A layer: grouped-query attention with normalised queries and keys, SwiGLU."""

    def __init__(self, config: Qwen3Config, *, rngs: nnx.Rngs):
        norm = partial(RMSNorm, eps=config.norm_eps, param_dtype=config.param_dtype)
        width, heads = config.hidden_size, (config.num_heads, config.num_kv_heads)
        super().__init__(
            config, width, config.head_dim, heads, partial(norm, width), jax.nn.silu,
            gated=True, rngs=rngs,
        )  # fmt: skip
        self.query_norm, self.key_norm = norm(config.head_dim), norm(config.head_dim)

    def __call__(
        self,
        carry: tuple[jax.Array, jax.Array],
        angles: tuple[np.ndarray, np.ndarray],
        visible: jax.Array,
        slot: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """One layer.

        Args:
          carry: tokens `[batch, tokens, hidden]`, and outputs `[outputs, batch, tokens, hidden]`.
          angles: cosines and sines, `[tokens, 1, head_dim / 2]`.
          visible: `[batch, 1, tokens, tokens]`, True where a row sees a column.
          slot: which output the result is written to.
        """
        tokens, outputs = carry
        query, key, value = self.heads(tokens)
        query = rotate(self.query_norm(query), angles)
        key = rotate(self.key_norm(key), angles)
        out = jax.nn.dot_product_attention(query, key, value, mask=visible)
        # A row that sees nothing (padding before the text) gets nothing, as in PyTorch's fused
        # attention, which transformers uses; a plain softmax would give it the mean of all rows.
        out = jnp.where(visible.any(-1)[:, 0, :, None, None], out, 0)
        tokens = self.finish(tokens, out)
        return tokens, jax.lax.dynamic_update_index_in_dim(outputs, tokens, slot, 0)


class Qwen3(nnx.Module):
    """Three hidden states per token, from token ids."""

    def __init__(self, config: Qwen3Config, *, rngs: nnx.Rngs):
        self.config = config
        shape = config.vocab_size, config.hidden_size
        self.token_embedding = embedding_table(shape, ("vocab", "embed"), config.param_dtype, rngs)
        self.blocks = stack_blocks(
            lambda rngs: Qwen3Block(config, rngs=rngs), config.num_layers, rngs
        )

    def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Hidden states after `config.output_layers`, side by side, without the final norm.

        Positions count from the first id, padding or not, and rows of padding are computed too: the
        constraint losses compare all positions. With padding on the right every row agrees with
        transformers; so it does with padding on the left, in its default attention (sdpa).

        Args:
          ids: token ids `[batch, tokens]`, int32.
          mask: True at text, False at padding `[batch, tokens]`, bool.

        Returns:
          `[batch, tokens, len(output_layers) * hidden_size]`, in `config.dtype`.

        Raises:
          ValueError: for other shapes or dtypes.
        """
        check_ids(ids, mask)
        config, length = self.config, ids.shape[1]
        tokens = self.token_embedding[...][ids].astype(config.dtype)
        visible = jnp.tril(jnp.ones((length, length), bool)) & mask[:, None, None, :]
        # Every layer writes to the output that comes next, where the last one to write stays. So
        # one scan over one stack suffices: slices of the stack would be copies of the weights.
        slots = np.searchsorted(config.output_layers, np.arange(1, config.num_layers + 1))
        outputs = jnp.zeros((len(config.output_layers), *tokens.shape), tokens.dtype)
        _, outputs = scan_blocks(
            self.blocks,
            (tokens, outputs),
            rotary_angles(length, config.head_dim, config.theta),
            visible,
            remat="none",
            per_layer=slots.astype(np.int32),
        )
        return rearrange(outputs, "outputs b t hidden -> b t (outputs hidden)")


def rotary_angles(tokens: int, head_dim: int, theta: float) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines of `position * theta ** (-2 i / head_dim)`.

    Returns:
      cos, sin: `[tokens, 1, head_dim / 2]`, float32.
    """
    frequencies = (theta ** -(np.arange(0, head_dim, 2) / head_dim)).astype(np.float32)
    angles = np.arange(tokens, dtype=np.float32)[:, None, None] * frequencies
    return np.cos(angles), np.sin(angles)


def rotate(x: jax.Array, angles: tuple[np.ndarray, np.ndarray]) -> jax.Array:
    """Rotates channel i with channel i + head_dim / 2 of `[batch, tokens, heads, head_dim]`.

    In float32; the result has the dtype of `x`. (FLUX pairs neighbours instead: `layers`.)
    """
    cos, sin = angles
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)
