"""The lower layers of Qwen3, the text encoder of FLUX.2 klein, in Flax NNX.

A decoder (Qwen3 report, arXiv 2505.09388): RMS norm before attention and MLP, grouped-query
attention with normalised queries and keys, rotary positions, SwiGLU. FLUX.2 reads the residual
stream after layers 9, 18 and 27 of 36, so the layers above, the final norm and the output head do
not exist here.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from cotir_jax.models.layers import scan_blocks, stack_blocks
from cotir_jax.models.lora import Linear
from cotir_jax.models.text_encoders.shared import (
    RMSNorm,
    check_ids,
    embedding_table,
)


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


class Qwen3Block(nnx.Module):
    """Attention and MLP, each on the normalised residual stream and added to it."""

    def __init__(self, config: Qwen3Config, *, rngs: nnx.Rngs):
        hidden, heads, kv_heads = config.hidden_size, config.num_heads, config.num_kv_heads

        def linear(into: int, out: int, axes: tuple[str, str]) -> Linear:
            return Linear(
                into, out, axes=axes, param_dtype=config.param_dtype, dtype=config.dtype, rngs=rngs
            )

        def norm(width: int) -> RMSNorm:
            return RMSNorm(width, eps=config.norm_eps, param_dtype=config.param_dtype)

        grow, shrink = ("embed", "mlp"), ("mlp", "embed")
        self.head_dim = config.head_dim
        self.attention_norm = norm(hidden)
        # Not fused, so that each splits over the tensor axis between heads.
        self.query = linear(hidden, heads * config.head_dim, grow)
        self.key = linear(hidden, kv_heads * config.head_dim, grow)
        self.value = linear(hidden, kv_heads * config.head_dim, grow)
        self.query_norm, self.key_norm = norm(config.head_dim), norm(config.head_dim)
        self.attention_out = linear(heads * config.head_dim, hidden, shrink)
        self.mlp_norm = norm(hidden)
        self.mlp_gate = linear(hidden, config.mlp_size, grow)
        self.mlp_in = linear(hidden, config.mlp_size, grow)
        self.mlp_out = linear(config.mlp_size, hidden, shrink)

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
        tokens = tokens + self._attend(self.attention_norm(tokens), angles, visible)
        x = self.mlp_norm(tokens)
        tokens = tokens + self.mlp_out(jax.nn.silu(self.mlp_gate(x)) * self.mlp_in(x))
        return tokens, jax.lax.dynamic_update_index_in_dim(outputs, tokens, slot, 0)

    def _attend(
        self, x: jax.Array, angles: tuple[np.ndarray, np.ndarray], visible: jax.Array
    ) -> jax.Array:
        query, key, value = (
            rearrange(linear(x), "b t (heads dim) -> b t heads dim", dim=self.head_dim)
            for linear in (self.query, self.key, self.value)
        )
        query = rotate(self.query_norm(query), angles)
        key = rotate(self.key_norm(key), angles)
        out = jax.nn.dot_product_attention(query, key, value, mask=visible)
        # A row that sees nothing (padding before the text) gets nothing, as in PyTorch's fused
        # attention, which transformers uses; a plain softmax would give it the mean of all rows.
        out = jnp.where(visible.any(-1)[:, 0, :, None, None], out, 0)
        return self.attention_out(rearrange(out, "b t heads dim -> b t (heads dim)"))


class Qwen3(nnx.Module):
    """Three hidden states per token, from token ids."""

    def __init__(self, config: Qwen3Config, *, rngs: nnx.Rngs):
        self.config = config
        self.token_embedding = embedding_table(
            config.vocab_size,
            config.hidden_size,
            axes=("vocab", "embed"),
            dtype=config.param_dtype,
            rngs=rngs,
        )
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
