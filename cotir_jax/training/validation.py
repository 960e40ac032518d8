"""Validation while training: the held-out samples, restored with the current weights."""

import logging
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from cotir_jax.checkpoints.training import METRIC
from cotir_jax.data.batches import Stage, stage_batches
from cotir_jax.data.shard_index import ShardIndex
from cotir_jax.images.pictures import side_by_side
from cotir_jax.models import pipeline
from cotir_jax.models.transformer import Text
from cotir_jax.parallel import processes
from cotir_jax.parallel.sharding import batch_sharding, replicated
from cotir_jax.text.encoders import TextEncoders, embed_texts, encode_prompts
from cotir_jax.training.config import Run
from cotir_jax.training.hooks import Finished
from cotir_jax.training.metric_files import MetricFiles
from cotir_jax.training.state import Frozen, TrainState, evaluation_weights

_log = logging.getLogger(__name__)


class Validation:
    """The held-out samples and the program that restores them; scores a step's state.

    Samples are cropped to the patch size of the run's last stage. Every process of a run builds one
    and calls it, and gets the same result.
    """

    def __init__(
        self, held_out: ShardIndex, run: Run, text: TextEncoders, frozen: Frozen, files: MetricFiles
    ):
        self._run, self._frozen, self._files = run, frozen, files
        self._count = run.data.validation * len(held_out.degradations)
        self._sharding = batch_sharding(run.mesh)
        parts = run.mesh.shape["data"] * run.mesh.shape["fsdp"]
        # As large as training's, or as few as the devices can share evenly.
        self._size = min(-(-self._count // parts) * parts, run.stages[-1].batch_size)
        self._batches = self._read(held_out, text)
        self._restore = jax.jit(_restore, out_shardings=replicated(run.mesh))
        self._compiled: Any = None

    def __call__(self, finished: Finished) -> dict[str, float]:
        """Restores the samples with the current weights, and scores them.

        Returns:
          PSNR of the restored pictures (`METRIC`) and of the degraded ones.
        """
        results = []
        for batch in self._batches:
            inputs = {name: batch[name] for name in ("lq", "text", "empty") if name in batch}
            placed = processes.place_rows(inputs, self._size, self._sharding)
            arguments = self._frozen, finished.state, placed
            if self._compiled is None:
                self._compiled = processes.compile_together(self._restore, *arguments)
            results.append(np.asarray(self._compiled(*arguments)))
        degraded, clean = ([batch[name] for batch in self._batches] for name in ("lq", "hq"))
        pictures = [np.concatenate(x)[: self._count] for x in (degraded, results, clean)]
        lq, restored, hq = pictures
        scores = {METRIC: mean_psnr(restored, hq), "input_psnr": mean_psnr(lq, hq)}
        self._files.write_scalars(finished.step, scores)
        if processes.is_first():
            said = ", ".join(f"{name} {value:.2f} dB" for name, value in scores.items())
            _log.info("step %d validation: %s", finished.step, said)
        shown = min(self._run.log.pictures, self._count)
        if shown:
            rows = [side_by_side([each[i] for each in pictures]) for i in range(shown)]
            self._files.write_pictures(finished.step, "validation", np.stack(rows))
        return scores

    def _read(self, held_out: ShardIndex, text: TextEncoders) -> list[dict[str, Any]]:
        """Reads all samples and embeds their prompts; the first ones fill up the last batch."""
        run = self._run
        stage = Stage(0, -(-self._count // self._size), run.stages[-1].patch_size, self._size)
        batches = stage_batches(
            held_out,
            stage,
            seed=run.seed,
            tokenizer=text.tokens.tokenizer,
            pooled_tokenizer=text.pooled and text.pooled.tokenizer,
            vague_schedule=((0, 0.0),),
            num_threads=run.data.threads,
        )
        read = []
        for batch in batches:
            embedded = embed_texts(batch, text)
            out = {"lq": batch["lq"], "hq": batch["hq"]}
            out["text"] = Text(embedded["prompt"].embeddings, embedded.get("pooled"))
            if run.model.two_passes:
                out["empty"] = encode_prompts(text, [""] * self._size)
            read.append(out)
        return read


def mean_psnr(pictures: np.ndarray, reference: np.ndarray) -> float:
    """Mean over pictures of the PSNR over all RGB values, range 255."""
    difference = pictures.astype(np.float64) - reference.astype(np.float64)
    error = np.square(difference / 255).mean((1, 2, 3))
    return float((10 * np.log10(1 / (error + 1e-8))).mean())


def _restore(frozen: Frozen, state: TrainState, batch: Mapping[str, Any]) -> jax.Array:
    restored = pipeline.restore_range(
        nnx.merge(state.graphdef, evaluation_weights(state), frozen.transformer),
        nnx.merge(state.autoencoder, frozen.autoencoder),
        pipeline.to_unit_range(batch["lq"]),
        batch["text"],
        jax.random.key(0),
        state.config.num_steps,
        batch.get("empty"),
    )
    return pipeline.to_uint8(restored)
