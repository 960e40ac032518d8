"""What a run computes with, as shapes and shardings alone: nothing is allocated or read."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx
from jax.sharding import Mesh

from cotir_jax import partitioning, run_config, train
from cotir_jax.models import pipeline, presets
from cotir_jax.models.text.clip import CLIPConfig, CLIPText
from cotir_jax.models.text.minilm import MiniLM, MiniLMConfig
from cotir_jax.models.text.qwen3 import QWEN3_4B, QWEN3_8B, Qwen3
from cotir_jax.models.text.t5 import T5Config, T5Encoder
from cotir_jax.models.transformer import make_transformer
from cotir_jax.text import POOLED_TOKENS

# Several degradations, so that a multiplier for each has its real shape.
_DEGRADATIONS = 18
_TEXTS = ("prompt", "scene", "degradation", "plan")


def abstract_step(
    config: ml_collections.ConfigDict,
    model_config: presets.CoTIRConfig,
    mesh: Mesh,
    batch_size: int,
    patch_size: int,
) -> tuple[train.Frozen, train.TrainState, dict[str, jax.ShapeDtypeStruct]]:
    """Arguments of `train.train_step` as shapes with shardings, as a run builds them."""
    settings = run_config.train_settings(config, _DEGRADATIONS)

    def fresh() -> tuple[train.Frozen, train.TrainState]:
        rngs = nnx.Rngs(0)
        model = make_transformer(model_config, rngs=rngs)
        autoencoder = pipeline.make_autoencoder(model_config, rngs=rngs)
        return train.init_state(model, autoencoder, settings, config.seed)

    frozen, state = placed(jax.eval_shape(fresh), mesh, config.sharding_rules)
    split = partitioning.batch_sharding(mesh)

    def rows(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch_size, *shape), dtype, sharding=split)

    tokens = model_config.text_tokens
    batch = {name: rows((patch_size, patch_size, 3), jnp.uint8) for name in ("lq", "hq")}
    batch |= {name: rows((tokens, model_config.text_channels), jnp.bfloat16) for name in _TEXTS}
    batch |= {f"{name}_mask": rows((tokens,), jnp.bool_) for name in _TEXTS}
    batch["group"] = rows((), jnp.int32)
    if model_config.pooled_channels:
        batch["pooled"] = rows((model_config.pooled_channels,), jnp.bfloat16)
    return frozen, state, batch


def text_encoders(config: presets.CoTIRConfig) -> Iterator[tuple[str, Any, int]]:
    """Kind, maker and tokens of the encoders that the published model has."""
    if config.text_encoder == "minilm":
        yield "minilm", lambda: MiniLM(MiniLMConfig(), rngs=nnx.Rngs(0)), config.text_tokens
    elif config.text_encoder == "qwen3":
        sizes = {encoder.width: encoder for encoder in (QWEN3_4B, QWEN3_8B)}
        if config.text_channels not in sizes:
            raise ValueError(
                f"text_channels {config.text_channels}: no Qwen3 of this width is known, "
                f"expected {sorted(sizes)}"
            )
        chosen = sizes[config.text_channels]
        yield "qwen3", lambda: Qwen3(chosen, rngs=nnx.Rngs(0)), config.text_tokens
    else:
        yield "t5", lambda: T5Encoder(T5Config(), rngs=nnx.Rngs(0)), config.text_tokens
        yield "clip", lambda: CLIPText(CLIPConfig(), rngs=nnx.Rngs(0)), POOLED_TOKENS


def device_bytes(leaf: jax.ShapeDtypeStruct) -> int:
    """Bytes of an array on one device."""
    return leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape))


def sum_bytes(tree: Any) -> int:
    return sum(map(device_bytes, jax.tree.leaves(tree)))


def placed(tree: Any, mesh: Mesh, rules: partitioning.Rules) -> Any:
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        tree,
        partitioning.shardings(tree, mesh, rules),
    )
