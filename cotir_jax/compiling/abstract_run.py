"""What a run computes with, as shapes and shardings alone: nothing is allocated or read."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx
from jax.sharding import Mesh

from cotir_jax.models import pipeline, presets
from cotir_jax.models.text_encoders import configs
from cotir_jax.models.transformer import make_transformer
from cotir_jax.parallel.sharding import Rules, batch_sharding, shardings
from cotir_jax.text.encoder import TextEncoder
from cotir_jax.text.encoders import POOLED_TOKENS, TEXTS, TextEncoders, encoder_weights
from cotir_jax.training.config import train_settings
from cotir_jax.training.state import Frozen, TrainState, init_state

# Several degradations, so that a multiplier for each has its real shape.
_DEGRADATIONS = 18


def abstract_step(
    config: ml_collections.ConfigDict,
    model_config: presets.CoTIRConfig,
    mesh: Mesh,
    batch_size: int,
    patch_size: int,
    text: TextEncoders | None = None,
) -> tuple[Frozen, TrainState, dict[str, jax.ShapeDtypeStruct]]:
    """Arguments of the training step as shapes with shardings, as a run builds them.

    With `text` they are those of the step that encodes texts itself (`text.in_step`).
    """
    settings = train_settings(config, _DEGRADATIONS)

    def fresh() -> tuple[Frozen, TrainState]:
        rngs = nnx.Rngs(0)
        model = make_transformer(model_config, rngs=rngs)
        autoencoder = pipeline.make_autoencoder(model_config, rngs=rngs)
        return init_state(model, autoencoder, settings, config.seed)

    frozen, state = placed(jax.eval_shape(fresh), mesh, config.sharding_rules)
    split = batch_sharding(mesh)

    def rows(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch_size, *shape), dtype, sharding=split)

    tokens = model_config.text_tokens
    batch = {name: rows((patch_size, patch_size, 3), jnp.uint8) for name in ("lq", "hq")}
    batch |= {f"{name}_mask": rows((tokens,), jnp.bool_) for name in TEXTS}
    batch["group"] = rows((), jnp.int32)
    if text is not None:
        batch |= {f"{name}_ids": rows((tokens,), jnp.int32) for name in TEXTS}
        if text.pooled is not None:
            batch["pooled_ids"] = rows((POOLED_TOKENS,), jnp.int32)
            batch["pooled_mask"] = rows((POOLED_TOKENS,), jnp.bool_)
        return frozen._replace(text=encoder_weights(text, mesh)), state, batch
    width = model_config.text_channels
    batch |= {name: rows((tokens, width), jnp.bfloat16) for name in TEXTS}
    if model_config.pooled_channels:
        batch["pooled"] = rows((model_config.pooled_channels,), jnp.bfloat16)
    return frozen, state, batch


def abstract_text(
    config: presets.CoTIRConfig, mesh: Mesh, rules: Rules, in_step: bool
) -> TextEncoders:
    """The model's text encoders at their published sizes, with shapes instead of weights.

    MiniLM is whole on every device where it is part of the step, and on one device otherwise.
    """

    def make(kind: str, sizes: configs.EncoderConfig, tokens: int) -> TextEncoder:
        module = lambda: nnx.split(configs.make_encoder(sizes, rngs=nnx.Rngs(0)))  # noqa: E731
        graph, weights = jax.eval_shape(module)
        alone = kind == "minilm" and not in_step
        where = Mesh([mesh.devices.flat[0]], ("device",)) if alone else mesh
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
    """Bytes of an array on one device."""
    return leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape))


def sum_bytes(tree: Any) -> int:
    return sum(map(device_bytes, jax.tree.leaves(tree)))


def placed(tree: Any, mesh: Mesh, rules: Rules) -> Any:
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        tree,
        shardings(tree, mesh, rules),
    )
