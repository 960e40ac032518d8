"""What a run computes with, as shapes and shardings: nothing is allocated or read."""

import math
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from cotir_jax.models import presets
from cotir_jax.models.text_encoders import configs
from cotir_jax.parallel.sharding import Rules, batch_sharding, shardings
from cotir_jax.text.encoder import TextEncoder
from cotir_jax.text.encoders import (
    POOLED_TOKENS,
    TEXTS,
    Embedded,
    TextEncoders,
    encoder_weights,
)  # fmt: skip
from cotir_jax.text.tokenizer import Tokens
from cotir_jax.training.config import Run
from cotir_jax.training.state import Frozen, TrainState
from cotir_jax.training.weights import draw_state

# Several degradations, so that a multiplier for each has its real shape.
_DEGRADATIONS = 18


def abstract_step(
    run: Run, batch_size: int, patch_size: int, text: TextEncoders | None = None
) -> tuple[Frozen, TrainState, dict[str, Any]]:
    """Makes the training step's arguments as shapes with shardings, as a run builds them.

    Args:
      run: from `Run.read`.
      batch_size: samples of all devices.
      patch_size: side of the pictures in pixels.
      text: the encoders, for a step that encodes texts itself.
    """
    model, groups = run.model, run.groups(_DEGRADATIONS)
    frozen, state = placed(jax.eval_shape(lambda: draw_state(run, groups)), run.mesh, run.rules)
    split = batch_sharding(run.mesh)

    def rows(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch_size, *shape), dtype, sharding=split)

    def tokens_of(count: int) -> Tokens:
        return Tokens(rows(jnp.int32, count), rows(jnp.bool_, count))

    if text is None:
        embeddings = rows(jnp.bfloat16, model.text_tokens, model.text_channels)
        texts: Any = Embedded(embeddings, rows(jnp.bool_, model.text_tokens))
        pooled: Any = rows(jnp.bfloat16, model.pooled_channels)
    else:
        frozen = frozen._replace(text=encoder_weights(text, run.mesh))
        texts, pooled = tokens_of(model.text_tokens), tokens_of(POOLED_TOKENS)
    picture = rows(jnp.uint8, patch_size, patch_size, 3)
    batch = dict.fromkeys(("lq", "hq"), picture) | dict.fromkeys(TEXTS, texts)
    batch["group"] = rows(jnp.int32)
    if model.pooled_channels:
        batch["pooled"] = pooled
    return frozen, state, batch


def abstract_text(
    config: presets.CoTIRConfig, mesh: Mesh, rules: Rules, in_step: bool
) -> TextEncoders:
    """Makes the model's text encoders at their published sizes, with shapes instead of weights.

    MiniLM is replicated where it is part of the step, and on one device otherwise.
    """

    def make(kind: str, sizes: configs.EncoderConfig, tokens: int) -> TextEncoder:
        module = lambda: nnx.split(configs.ENCODERS[kind][0](sizes, rngs=nnx.Rngs(0)))  # noqa: E731
        graph, weights = jax.eval_shape(module)
        separate = kind == "minilm" and not in_step
        where = Mesh([mesh.devices.flat[0]], ("device",)) if separate else mesh
        weights = placed(weights, where, () if kind == "minilm" else rules)
        tokenizer: Any = SimpleNamespace(tokens=tokens, vocab_size=0, source=kind)
        return TextEncoder(
            nnx.merge(graph, weights), tokenizer, mesh=where, uses_mask=kind in ("qwen3", "minilm")
        )

    tokens, pooled = configs.encoder_configs(config)
    return TextEncoders(
        make(config.text_encoder, tokens, config.text_tokens),
        pooled and make("clip", pooled, POOLED_TOKENS),
    )


def device_bytes(leaf: jax.ShapeDtypeStruct) -> int:
    """Counts the bytes of an array on one device."""
    return leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape))


def sum_bytes(tree: Any) -> int:
    """Adds up the bytes of all arrays on one device."""
    return sum(map(device_bytes, jax.tree.leaves(tree)))


def placed(tree: Any, mesh: Mesh, rules: Rules) -> Any:
    """Adds shardings to a tree of shapes."""
    return jax.tree.map(
        lambda leaf, where: leaf.update(sharding=where), tree, shardings(tree, mesh, rules)
    )
