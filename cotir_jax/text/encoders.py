"""Texts to what the transformer reads: on the host ahead of a training step, or within it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from cotir_jax.models.transformer import Text
from cotir_jax.text.encoder import TextEncoder

# Tokens that CLIP was trained with (docs/design.md, section 2).
POOLED_TOKENS = 77
# Texts of a training sample.
TEXTS = ("prompt", "scene", "degradation", "plan")


class Embedded(NamedTuple):
    """Texts as embeddings: what a training step reads where a batch has `Tokens`.

    Attributes:
      embeddings: `[batch, tokens, width]`, bfloat16.
      mask: bool `[batch, tokens]`, False at padding; None where no loss leaves padding out.
    """

    embeddings: jax.Array
    mask: jax.Array | None


class TextEncoders(NamedTuple):
    """A model's text encoders.

    Attributes:
      tokens: an embedding per token.
      pooled: one vector per prompt, or None where the model has none.
    """

    tokens: TextEncoder
    pooled: TextEncoder | None


def encode_prompts(encoders: TextEncoders, prompts: Sequence[str]) -> Text:
    """Embeds prompts on the host: `[prompts, tokens, width]`, pooled `[prompts, width]`."""
    embeddings = encoders.tokens(*encoders.tokens.tokenize(prompts))
    if encoders.pooled is None:
        return Text(embeddings)
    return Text(embeddings, encoders.pooled(*encoders.pooled.tokenize(prompts)))


def embed_texts(batch: Mapping[str, Any], text: TextEncoders) -> dict[str, Any]:
    """Embeds a batch's texts on the host, ahead of the training step.

    Args:
      batch: `TEXTS` as `Tokens` `[batch, tokens]`, `pooled` for a model that reads it, and others.
      text: the encoders.

    Returns:
      The batch with `Embedded` texts, `pooled` `[batch, width]`, and the others as they were.
    """
    tokens = jax.tree.map(lambda *x: np.concatenate(x), *(batch[name] for name in TEXTS))
    embeddings = np.split(text.tokens(*tokens), len(TEXTS))
    return _embedded(batch, embeddings, text.pooled and text.pooled(*batch["pooled"]))


def with_texts_embedded(step: Callable[..., Any], text: TextEncoders) -> Callable[..., Any]:
    """Makes a training step that embeds its batch's texts first.

    Args:
      step: `training.step.train_step`.
      text: the encoders; their weights, `encoder_weights(text, mesh)`, are given as `frozen.text`.

    Returns:
      The step for a batch as `embed_texts` takes it.
    """

    def embed_and_step(frozen: Any, state: Any, batch: Mapping[str, Any]) -> Any:
        tokens_weights, pooled_weights = frozen.text
        tokens = jax.tree.map(lambda *x: jnp.stack(x), *(batch[name] for name in TEXTS))
        embeddings = text.tokens.embed(tokens_weights, *tokens)
        pooled = None
        if text.pooled is not None:
            pooled = text.pooled.embed(pooled_weights, *(x[None] for x in batch["pooled"]))[0]
        return step(frozen, state, _embedded(batch, embeddings, pooled))

    return embed_and_step


def _embedded(batch: Mapping[str, Any], embeddings: Any, pooled: Any) -> dict[str, Any]:
    new: dict[str, Any] = {
        name: Embedded(each, batch[name].mask) for name, each in zip(TEXTS, embeddings, strict=True)
    }
    if pooled is not None:
        new["pooled"] = pooled
    return {**batch, **new}


def encoder_weights(text: TextEncoders, mesh: Mesh) -> tuple[Any, Any]:
    """Returns both encoders' weights, for `Frozen.text`; None where there is no second encoder."""
    return text.tokens.weights(mesh), text.pooled and text.pooled.weights(mesh)
