"""The text half of CLIP ViT-L/14, which gives FLUX.1 its pooled text vector, in Flax NNX.

Radford et al. (arXiv 2103.00020): a causal transformer with layer norms before attention and MLP;
the text's vector is the normalised row of its end-of-text token, here without the projection.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from cotir_jax.models.layers import scan_blocks, stack_blocks
from cotir_jax.models.text_encoders.shared import (
    PreNormBlock,
    check_ids,
    embedding_table,
    layer_norm,
)

ACTIVATIONS = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
}
# What older config files of all CLIP models say, whatever the tokenizer's id is.
_LEGACY_END = 2


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """Sizes of a CLIP text encoder; the defaults are ViT-L/14.

    Attributes:
      max_tokens: rows of the position table.
      activation: key of `ACTIVATIONS`.
      end_id: id of the end-of-text token. 2 stands for the highest id in the text, which is the
        end of text in CLIP's vocabulary.
      param_dtype, dtype: of the weights, and of the computation.
    """

    vocab_size: int = 49408
    max_tokens: int = 77
    hidden_size: int = 768
    mlp_size: int = 3072
    num_heads: int = 12
    num_layers: int = 12
    activation: str = "quick_gelu"
    norm_eps: float = 1e-5
    end_id: int = 49407
    param_dtype: str = "bfloat16"
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation {self.activation!r}: known are {sorted(ACTIVATIONS)}")
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} does not divide over {self.num_heads} heads"
            )


def _norm(config: CLIPConfig, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return layer_norm(config.hidden_size, config.norm_eps, config.param_dtype, rngs)


class CLIPBlock(PreNormBlock):
    """A layer: causal attention and MLP, with biases."""

    def __init__(self, config: CLIPConfig, *, rngs: nnx.Rngs):
        width, count = config.hidden_size, config.num_heads
        norm, activation = partial(_norm, config, rngs), ACTIVATIONS[config.activation]
        super().__init__(
            config, width, width // count, (count, count), norm, activation,
            use_bias=True, rngs=rngs,
        )  # fmt: skip

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """One layer on `[batch, tokens, hidden_size]`."""
        query, key, value = self.heads(tokens)
        out = jax.nn.dot_product_attention(query, key, value, is_causal=True)
        return self.finish(tokens, out)


class CLIPText(nnx.Module):
    """One vector per text, from token ids."""

    def __init__(self, config: CLIPConfig, *, rngs: nnx.Rngs):
        self.config = config
        width, dtype = config.hidden_size, config.param_dtype
        self.token_embedding, self.position_embedding = (
            embedding_table((rows, width), (axis, "embed"), dtype, rngs)
            for rows, axis in ((config.vocab_size, "vocab"), (config.max_tokens, None))
        )
        self.blocks = stack_blocks(
            lambda rngs: CLIPBlock(config, rngs=rngs), config.num_layers, rngs
        )
        self.final_norm = _norm(config, rngs)

    def __call__(self, ids: jax.Array) -> jax.Array:
        """Hidden state at the first end-of-text token, after the final norm.

        Needs no mask: attention is causal and padding comes after the end of the text. Without an
        end-of-text token the first row is taken, as in transformers.

        Args:
          ids: token ids `[batch, tokens]`, int32, tokens at most `config.max_tokens`.

        Returns:
          `[batch, hidden_size]`, in `config.dtype`.

        Raises:
          ValueError: for other shapes or dtypes, or too many tokens.
        """
        config, length = self.config, ids.shape[-1]
        check_ids(ids, limit=config.max_tokens, name="CLIP")
        tokens = self.token_embedding[...][ids] + self.position_embedding[...][:length]
        tokens = scan_blocks(self.blocks, tokens.astype(config.dtype), remat="none")
        score = ids if config.end_id == _LEGACY_END else ids == config.end_id
        pooled = tokens[jnp.arange(len(ids)), jnp.argmax(score, axis=-1)]
        return self.final_norm(pooled).astype(config.dtype)
