"""The training loop: the only place of training with disk, clocks, signals and logging."""

from __future__ import annotations

import json
import logging
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from clu import metrics as clu_metrics
from clu import parameter_overview
from flax import nnx
from jax.sharding import Mesh
from tqdm import tqdm

from cotir_jax import partitioning, run_config, train
from cotir_jax import text as text_lib
from cotir_jax.checkpoints import model_folder
from cotir_jax.checkpoints.training import METRIC, TrainingCheckpoints
from cotir_jax.data.batches import CorruptCounter, Stage, stage_batches
from cotir_jax.data.shard_index import ShardIndex
from cotir_jax.metric_writer import create_writer
from cotir_jax.models import pipeline, presets
from cotir_jax.models.transformer import Text, make_transformer
from cotir_jax.pictures import save_picture, side_by_side

_log = logging.getLogger(__name__)

TEXTS = ("prompt", "scene", "degradation", "plan")


class Interrupted(Exception):
    """SIGTERM or SIGINT arrived; the state has been saved."""


def run_training(config: ml_collections.ConfigDict, workdir: Path, data_dir: Path) -> dict:
    """Trains, or continues the run in `workdir`, and writes the best weights to `workdir/model`.

    Args:
      config: see `configs/default.py`.
      workdir: checkpoints, event files and the resulting model.
      data_dir: a CoTIR-Bench folder.

    Returns:
      The last step's metrics, with `step` and `samples_per_second`.

    Raises:
      ValueError: for a config, workdir or data that do not fit together.
      FloatingPointError: when a loss is not finite; the last good checkpoint is kept.
      Interrupted: after a signal.
    """
    model_config = presets.preset(config.model.name, config.model.overrides)
    run_config.check_workdir(config, workdir)
    mesh = partitioning.make_mesh(dict(config.mesh))
    index, held_out = ShardIndex.build(data_dir).split(config.data.validation)
    settings = run_config.train_settings(config, len(index.degradations))
    stages = run_config.make_stages(config)
    text = text_lib.load_text_encoders(
        run_config.init_folder(config), model_config, mesh, config.sharding_rules,
        config.data.text_cache_gb,
    )  # fmt: skip
    with jax.set_mesh(mesh):
        frozen, state, placement = create_state(config, model_config, settings, mesh)
        checkpoints = TrainingCheckpoints(workdir / "checkpoints", config.checkpoint.keep)
        first = checkpoints.latest_step()
        if first is not None:
            state = _restored(checkpoints, first, state, placement)
            _log.info("continuing from step %d", first)
        loop = Loop(config, workdir, mesh, text, checkpoints)
        trained = nnx.to_pure_dict(state.trainable)
        _log.info("%d weights train", parameter_overview.count_parameters(trained))
        overview = parameter_overview.get_parameter_overview(trained, include_stats=False)
        loop.writer.write_texts(0, {"trainable weights": f"```\n{overview}\n```"})
        if held_out is not None:
            loop.validation_count = config.data.validation * len(held_out.degradations)
            loop.validation = validation_batches(
                held_out, loop.validation_count, config, model_config, stages[-1], text
            )
        try:
            state, metrics = loop.run(frozen, state, placement, index, stages, first)
            write_model(workdir, config, checkpoints, frozen, state, placement)
        finally:
            loop.writer.close()
            checkpoints.close()
    return metrics


class Loop:
    """What the loop holds on to while it runs, and its hooks."""

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        workdir: Path,
        mesh: Mesh,
        text: text_lib.TextEncoders,
        checkpoints: TrainingCheckpoints,
    ):
        self.config, self.workdir, self.mesh, self.text = config, workdir, mesh, text
        self.checkpoints = checkpoints
        self.writer = create_writer(workdir / "events")
        self.corrupt = CorruptCounter()
        self.validation: list[dict[str, np.ndarray]] = []
        self.validation_count = 0
        self.signal: int | None = None
        self.validate = jax.jit(_validate)
        self.kind: type[clu_metrics.Collection] | None = None
        self.averages: clu_metrics.Collection | None = None
        self.since = (0.0, 0)

    def run(
        self,
        frozen: train.Frozen,
        state: train.TrainState,
        placement: train.TrainState,
        index: ShardIndex,
        stages: list[Stage],
        resumed: int | None,
    ) -> tuple[train.TrainState, dict]:
        """Runs all steps that are left; returns the final state and metrics."""
        step_fn = jax.jit(train.train_step, donate_argnums=1, out_shardings=(placement, None))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        step, last_metrics, result = int(state.step), None, {}
        total = stages[-1].last_step
        self.since = (time.monotonic(), 0)
        progress = tqdm(total=total, initial=step, unit="step", mininterval=1, disable=None)
        first_sample = 0
        for stage in stages:
            begin = stage.first_step
            if step < stage.last_step:
                iterator = self._iterator(index, stage, first_sample)
                if resumed is not None and begin < resumed:
                    self.checkpoints.restore_iterator(resumed, iterator)
                while step < stage.last_step:
                    batch = self._next_batch(iterator)
                    state, metrics = step_fn(frozen, state, batch)
                    # The device works on this step while the previous one's metrics are read.
                    if last_metrics is not None:
                        result = self._record(step - 1, last_metrics, stage, progress)
                    step, last_metrics = step + 1, metrics
                    progress.update()
                    due = step % self.config.checkpoint.every == 0 or step == total
                    if due or self.signal:
                        result = self._record(step - 1, metrics, stage, progress)
                        last_metrics = None
                        self._save(step, frozen, state, iterator, validated=due)
                    if self.signal:
                        self.checkpoints.wait()
                        progress.close()
                        raise Interrupted(f"signal {self.signal}: saved at step {step}")
                iterator.close()
            first_sample += (stage.last_step - begin) * stage.batch_size
        progress.close()
        self.checkpoints.wait()
        self.corrupt.finish()
        return state, {"step": step, **result}

    def _iterator(self, index: ShardIndex, stage: Stage, first_sample: int) -> Iterator:
        data = self.config.data
        return iter(
            stage_batches(
                index,
                stage,
                seed=self.config.seed,
                tokenizer=self.text.tokens.tokenizer,
                pooled_tokenizer=self.text.pooled and self.text.pooled.tokenizer,
                vague_schedule=tuple(data.vague),
                process_index=jax.process_index(),
                process_count=jax.process_count(),
                num_workers=data.workers,
                num_threads=data.threads,
                first_sample=first_sample,
            )
        )

    def _next_batch(self, iterator: Iterator) -> dict[str, jax.Array]:
        batch = next(iterator)
        self.corrupt.add(batch["corrupt"])
        return partitioning.global_batch(embed_texts(batch, self.text), self.mesh)

    def _record(
        self, step: int, metrics: Mapping[str, jax.Array], stage: Stage, progress: tqdm
    ) -> dict:
        """Checks a step's metrics, and writes their averages every `log.every` steps."""
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        train.check_finite(values, step)
        if self.kind is None:
            self.kind = clu_metrics.Collection.create(
                **{name: clu_metrics.Average.from_output(name) for name in values}
            )
        new = self.kind.single_from_model_output(
            **{name: jnp.asarray(value) for name, value in values.items()}
        )
        fresh = self.averages is None or not self.since[1]
        self.averages = new if fresh else self.averages.merge(new)
        start, count = self.since
        self.since = (start, count + 1)
        rate = (count + 1) * stage.batch_size / (time.monotonic() - start)
        progress.set_postfix_str(f"loss {values['loss']:.4f}, {rate:.1f} samples/s", refresh=False)
        if (step + 1) % self.config.log.every == 0:
            averages = {name: float(value) for name, value in self.averages.compute().items()}
            averages["samples_per_second"] = rate
            self.writer.write_scalars(step + 1, averages)
            with open(self.workdir / "metrics.jsonl", "a") as file:
                file.write(json.dumps({"step": step + 1, **averages}) + "\n")
            _log.info(
                "step %d: %s",
                step + 1,
                ", ".join(f"{name} {value:.4g}" for name, value in averages.items()),
            )
            self.since = (time.monotonic(), 0)
        return values | {"samples_per_second": rate}

    def _save(
        self,
        step: int,
        frozen: train.Frozen,
        state: train.TrainState,
        iterator: Iterator,
        validated: bool,
    ) -> None:
        metrics = {}
        if validated and self.validation:
            count = self.validation_count
            restored = np.concatenate(
                [np.asarray(self.validate(frozen, state, batch)) for batch in self.validation]
            )[:count]
            lq, hq = (
                np.concatenate([batch[name] for batch in self.validation])[:count]
                for name in ("lq", "hq")
            )
            metrics = {METRIC: _mean_psnr(restored, hq), "input_psnr": _mean_psnr(lq, hq)}
            _log.info("step %d validation %s", step, metrics)
            shown = min(self.config.log.pictures, len(hq))
            rows = [side_by_side([lq[i], restored[i], hq[i]]) for i in range(shown)]
            self.writer.write_scalars(step, metrics)
            self.writer.write_images(step, {"lq | restored | hq": np.stack(rows)})
            save_picture(np.concatenate(rows), self.workdir / "validation.png")
        self.writer.flush()
        self.checkpoints.save(step, _arrays(state), iterator, metrics)

    def _on_signal(self, number: int, frame: Any) -> None:
        self.signal = number


def create_state(
    config: ml_collections.ConfigDict,
    model_config: presets.CoTIRConfig,
    settings: train.TrainSettings,
    mesh: Mesh,
) -> tuple[train.Frozen, train.TrainState, train.TrainState]:
    """Builds frozen weights and training state straight onto the mesh.

    Returns:
      frozen weights, training state, and the state's shardings (same structure).
    """
    rules = config.sharding_rules

    def fresh() -> tuple[train.Frozen, train.TrainState]:
        rngs = nnx.Rngs(config.seed)
        model = make_transformer(model_config, rngs=rngs)
        autoencoder = pipeline.make_autoencoder(model_config, rngs=rngs)
        return train.init_state(model, autoencoder, settings, config.seed)

    folder = run_config.init_folder(config)
    if folder is None:
        placement = partitioning.shardings(jax.eval_shape(fresh), mesh, rules)
        frozen, state = jax.jit(fresh, out_shardings=placement)()
    else:
        autoencoder = model_folder.load_autoencoder(folder, mesh)
        model = model_folder.load_model(folder, mesh, rules, model_config)
        structure, weights = nnx.split((model, autoencoder))

        def continued(weights: nnx.State) -> tuple[train.Frozen, train.TrainState]:
            return train.init_state(*nnx.merge(structure, weights), settings, config.seed)

        placement = partitioning.shardings(jax.eval_shape(continued, weights), mesh, rules)
        frozen, state = jax.jit(continued, out_shardings=placement)(weights)
    return frozen, state, placement[1]


def write_model(
    workdir: Path,
    config: ml_collections.ConfigDict,
    checkpoints: TrainingCheckpoints,
    frozen: train.Frozen,
    state: train.TrainState,
    placement: train.TrainState,
) -> None:
    """Writes the best checkpoint's weights as a model folder, `workdir/model`.

    Where only LoRA and adapter train, the folder names the one that training started from instead
    of repeating it.
    """
    best = checkpoints.best_step()
    if best != checkpoints.latest_step():
        state = _restored(checkpoints, best, state, placement)
    model = nnx.merge(state.graphdef, train.restored_weights(state), frozen.transformer)
    base = None if config.train.trainable == "all" else run_config.init_folder(config)
    notes = {"step": int(state.step), "config": "config.json of the run"}
    model_folder.save_model(workdir / "model", model, notes, base=base)


def embed_texts(
    batch: Mapping[str, np.ndarray], text: text_lib.TextEncoders
) -> dict[str, np.ndarray]:
    """Replaces token ids by text embeddings; keeps what a training step reads."""
    ids = np.concatenate([batch[f"{name}_ids"] for name in TEXTS])
    masks = np.concatenate([batch[f"{name}_mask"] for name in TEXTS])
    embeddings = np.split(text.tokens(ids, masks), len(TEXTS))
    out = {name: part for name, part in zip(TEXTS, embeddings, strict=True)}
    out |= {f"{name}_mask": batch[f"{name}_mask"] for name in TEXTS}
    if text.pooled is not None:
        out["pooled"] = text.pooled(batch["pooled_ids"], batch["pooled_mask"])
    return out | {"lq": batch["lq"], "hq": batch["hq"], "group": batch["degradation"]}


def validation_batches(
    held_out: ShardIndex,
    count: int,
    config: ml_collections.ConfigDict,
    model_config: presets.CoTIRConfig,
    stage: Stage,
    text: text_lib.TextEncoders,
) -> list[dict[str, np.ndarray]]:
    """The `count` held-out samples at the last stage's patch size, in batches as large as its own.

    The last batch is filled up with samples of the beginning.
    """
    size = min(count, stage.batch_size)
    once = Stage(0, -(-count // size), stage.patch_size, size)
    batches = stage_batches(
        held_out,
        once,
        seed=config.seed,
        tokenizer=text.tokens.tokenizer,
        pooled_tokenizer=text.pooled and text.pooled.tokenizer,
        vague_schedule=((0, 0.0),),
        num_threads=config.data.threads,
    )
    embedded = [embed_texts(batch, text) for batch in batches]
    if model_config.guidance and not model_config.guidance_embed:
        empty = np.asarray(text_lib.encode_prompts(text, [""] * size).embeddings)
        embedded = [batch | {"empty": empty} for batch in embedded]
    return embedded


def _validate(
    frozen: train.Frozen, state: train.TrainState, batch: Mapping[str, jax.Array]
) -> jax.Array:
    return pipeline.restore_pictures(
        nnx.merge(state.graphdef, train.restored_weights(state), frozen.transformer),
        nnx.merge(state.autoencoder, frozen.autoencoder),
        batch["lq"],
        Text(batch["prompt"], batch.get("pooled")),
        jax.random.key(0),
        state.config.num_steps,
        Text(batch["empty"]) if "empty" in batch else None,
    )


def _mean_psnr(pictures: np.ndarray, reference: np.ndarray) -> float:
    """Mean over pictures of the PSNR over all RGB values, range 255."""
    difference = pictures.astype(np.float64) - reference.astype(np.float64)
    error = np.square(difference / 255).mean((1, 2, 3))
    return float((10 * np.log10(1 / (error + 1e-8))).mean())


def _arrays(state: train.TrainState) -> dict[str, Any]:
    """The part of the state that a checkpoint holds."""
    return {name: getattr(state, name) for name in _SAVED}


def _restored(
    checkpoints: TrainingCheckpoints,
    step: int,
    state: train.TrainState,
    placement: train.TrainState,
) -> train.TrainState:
    abstract = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        _arrays(state),
        _arrays(placement),
    )
    return state.replace(**checkpoints.restore(step, abstract))


_SAVED = ("step", "trainable", "opt_state", "multipliers", "dual_state", "key", "ema")
