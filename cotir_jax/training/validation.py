"""Validation while training: the held-out samples, restored with the weights of the moment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from cotir_jax.checkpoints.training import METRIC
from cotir_jax.data.batches import Stage, stage_batches
from cotir_jax.data.shard_index import ShardIndex
from cotir_jax.images.pictures import side_by_side
from cotir_jax.models import pipeline, presets
from cotir_jax.models.transformer import Text
from cotir_jax.parallel import processes
from cotir_jax.parallel.sharding import batch_sharding, replicated
from cotir_jax.text.encoders import TextEncoders, embed_ahead, encode_prompts
from cotir_jax.training.state import Frozen, TrainState, restored_weights

_READ = ("lq", "prompt", "pooled", "empty")


class Result(NamedTuple):
    """What a validation found.

    Attributes:
      metrics: PSNR of the restored pictures (`METRIC`) and of the degraded ones.
      rows: uint8 `[pictures, height, width, 3]`, degraded | restored | clean side by side.
    """

    metrics: dict[str, float]
    rows: np.ndarray


class Validation:
    """The held-out samples and the program that restores them.

    Every process of a run builds one and calls it, and gets the same result.

    Args:
      held_out: the samples.
      config: see `configs/default.py`.
      model_config: the transformer's sizes.
      stage: the last one, of whose patch size the samples are cut.
      text: encodes the prompts.
      mesh: of the training state.
    """

    def __init__(
        self,
        held_out: ShardIndex,
        config: ml_collections.ConfigDict,
        model_config: presets.CoTIRConfig,
        stage: Stage,
        text: TextEncoders,
        mesh: Mesh,
    ):
        self._count = config.data.validation * len(held_out.degradations)
        self._sharding = batch_sharding(mesh)
        parts = mesh.shape["data"] * mesh.shape["fsdp"]
        # As large as training's, or as few as the devices can share evenly.
        self._size = min(-(-self._count // parts) * parts, stage.batch_size)
        self._batches = self._read(held_out, config, model_config, stage, text)
        self._run = jax.jit(_restore, out_shardings=replicated(mesh))
        self._compiled: Any = None

    def __call__(self, frozen: Frozen, state: TrainState, pictures: int) -> Result:
        """Restores and scores the samples; shows the first `pictures`."""
        every = list(range(self._size))
        results = []
        for batch in self._batches:
            inputs = {name: batch[name] for name in _READ if name in batch}
            placed = processes.place_rows(inputs, every, self._size, self._sharding)
            if self._compiled is None:
                self._compiled = processes.compile_together(self._run, frozen, state, placed)
            results.append(np.asarray(self._compiled(frozen, state, placed)))
        restored = np.concatenate(results)[: self._count]
        lq, hq = (
            np.concatenate([batch[name] for batch in self._batches])[: self._count]
            for name in ("lq", "hq")
        )
        rows = [side_by_side([lq[i], restored[i], hq[i]]) for i in range(min(pictures, len(hq)))]
        metrics = {METRIC: mean_psnr(restored, hq), "input_psnr": mean_psnr(lq, hq)}
        return Result(metrics, np.stack(rows) if rows else np.zeros((0, 1, 1, 3), np.uint8))

    def _read(
        self,
        held_out: ShardIndex,
        config: ml_collections.ConfigDict,
        model_config: presets.CoTIRConfig,
        stage: Stage,
        text: TextEncoders,
    ) -> list[dict[str, np.ndarray]]:
        """All samples, embedded; the last batch is filled up with samples of the beginning."""
        once = Stage(0, -(-self._count // self._size), stage.patch_size, self._size)
        batches = stage_batches(
            held_out,
            once,
            seed=config.seed,
            tokenizer=text.tokens.tokenizer,
            pooled_tokenizer=text.pooled and text.pooled.tokenizer,
            vague_schedule=((0, 0.0),),
            num_threads=config.data.threads,
        )
        embedded = [embed_ahead(batch, text) for batch in batches]
        if model_config.guidance and not model_config.guidance_embed:
            prompts = [""] * self._size
            empty = np.asarray(encode_prompts(text, prompts).embeddings)
            embedded = [batch | {"empty": empty} for batch in embedded]
        return embedded


def mean_psnr(pictures: np.ndarray, reference: np.ndarray) -> float:
    """Mean over pictures of the PSNR over all RGB values, range 255."""
    difference = pictures.astype(np.float64) - reference.astype(np.float64)
    error = np.square(difference / 255).mean((1, 2, 3))
    return float((10 * np.log10(1 / (error + 1e-8))).mean())


def _restore(frozen: Frozen, state: TrainState, batch: Mapping[str, jax.Array]) -> jax.Array:
    return pipeline.restore_pictures(
        nnx.merge(state.graphdef, restored_weights(state), frozen.transformer),
        nnx.merge(state.autoencoder, frozen.autoencoder),
        batch["lq"],
        Text(batch["prompt"], batch.get("pooled")),
        jax.random.key(0),
        state.config.num_steps,
        Text(batch["empty"]) if "empty" in batch else None,
    )
