"""A model's text encoders, ready to use: weights, tokenizer and cache."""

from __future__ import annotations

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


class TextEncoders(NamedTuple):
    """What turns a prompt into what the transformer reads.

    Attributes:
      tokens: an embedding per token.
      pooled: one vector per prompt, or None where the model has none.
    """

    tokens: TextEncoder
    pooled: TextEncoder | None


def encode_prompts(encoders: TextEncoders, prompts: Sequence[str]) -> Text:
    """Embeddings of prompts on the host: `[prompts, tokens, width]`, pooled `[prompts, width]`."""
    embeddings = encoders.tokens(*encoders.tokens.tokenize(prompts))
    if encoders.pooled is None:
        return Text(embeddings)
    return Text(embeddings, encoders.pooled(*encoders.pooled.tokenize(prompts)))


def embed_ahead(batch: Mapping[str, np.ndarray], text: TextEncoders) -> dict[str, np.ndarray]:
    """Replaces a batch's token ids by text embeddings; keeps what a training step reads."""
    ids = np.concatenate([batch[f"{name}_ids"] for name in TEXTS])
    masks = np.concatenate([batch[f"{name}_mask"] for name in TEXTS])
    out = dict(zip(TEXTS, np.split(text.tokens(ids, masks), len(TEXTS)), strict=True))
    if text.pooled is not None:
        out["pooled"] = text.pooled(batch["pooled_ids"], batch["pooled_mask"])
    return out | _rest(batch)


def token_ids(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What a step made by `in_step` reads of a batch."""
    ids = {name: array for name, array in batch.items() if name.endswith("_ids")}
    pooled = {name: array for name, array in batch.items() if name == "pooled_mask"}
    return ids | pooled | _rest(batch)


def in_step(step: Callable[..., Any], text: TextEncoders) -> Callable[..., Any]:
    """A training step that encodes its batch's texts by itself.

    Args:
      step: `train.train_step`.
      text: the encoders; their weights, `encoder_weights(text, mesh)`, are given as `frozen.text`.

    Returns:
      The step for batches from `token_ids`.
    """

    def whole(frozen: Any, state: Any, batch: Mapping[str, jax.Array]) -> Any:
        ids = jnp.stack([batch[f"{name}_ids"] for name in TEXTS])
        masks = jnp.stack([batch[f"{name}_mask"] for name in TEXTS])
        tokens_weights, pooled_weights = frozen.text
        embeddings = text.tokens.embed(tokens_weights, ids, masks)
        new = dict(zip(TEXTS, embeddings, strict=True))
        if text.pooled is not None:
            ids, masks = batch["pooled_ids"][None], batch["pooled_mask"][None]
            new["pooled"] = text.pooled.embed(pooled_weights, ids, masks)[0]
        rest = {
            name: array for name, array in batch.items() if not name.startswith("pooled")
            and not name.endswith("_ids")
        }  # fmt: skip
        return step(frozen, state, rest | new)

    return whole


def encoder_weights(text: TextEncoders, mesh: Mesh) -> tuple[Any, Any]:
    """Of both encoders, for `Frozen.text`; None where there is no second one."""
    return text.tokens.weights(mesh), text.pooled and text.pooled.weights(mesh)


def _rest(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    masks = {f"{name}_mask": batch[f"{name}_mask"] for name in TEXTS}
    return masks | {"lq": batch["lq"], "hq": batch["hq"], "group": batch["degradation"]}
