"""The training loop: the only place of training with disk, clocks, signals and logging."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Generator, Iterator, Mapping
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

from cotir_jax.checkpoints import model_folder
from cotir_jax.checkpoints.text_encoders import load_text_encoders
from cotir_jax.checkpoints.training import TrainingCheckpoints
from cotir_jax.data.batches import CorruptCounter, Stage, stage_batches
from cotir_jax.data.fresh_samples import FreshSamples
from cotir_jax.data.shard_index import ShardIndex
from cotir_jax.images.pictures import save_picture
from cotir_jax.models import flops, pipeline, presets
from cotir_jax.models.transformer import make_transformer
from cotir_jax.parallel import processes
from cotir_jax.parallel.sharding import batch_sharding, make_mesh, replicated, shardings
from cotir_jax.text.encoders import (
    TextEncoders,
    embed_ahead,
    encoder_weights,
    in_step,
    token_ids,
)
from cotir_jax.training.config import check_workdir, init_folder, make_stages, train_settings
from cotir_jax.training.metric_files import MetricFiles
from cotir_jax.training.settings import TrainSettings
from cotir_jax.training.state import Frozen, TrainState, init_state, restored_weights
from cotir_jax.training.step import check_finite, train_step
from cotir_jax.training.throughput import Profile, Throughput
from cotir_jax.training.validation import Validation

_log = logging.getLogger(__name__)


class Interrupted(Exception):
    """SIGTERM or SIGINT arrived; the state has been saved."""


def run_training(
    config: ml_collections.ConfigDict,
    workdir: Path,
    data_dir: Path,
    fresh: FreshSamples | None = None,
) -> dict:
    """Trains, or continues the run in `workdir`, and writes the best weights to `workdir/model`.

    Every process of a job calls it; they share the file system.

    Args:
      config: see `configs/default.py`.
      workdir: checkpoints, event files and the resulting model.
      data_dir: a CoTIR-Bench folder.
      fresh: samples to train on in place of those in `data_dir`, which then serve validation.

    Returns:
      The last step's metrics, with `step` and what `Throughput.report` measured.

    Raises:
      ValueError: for a config, workdir or data that do not fit together.
      FloatingPointError: when a loss is not finite; the last good checkpoint is kept.
      Interrupted: after a signal.
    """
    model_config = presets.preset(config.model.name, config.model.overrides)
    check_workdir(config, workdir)
    mesh = make_mesh(dict(config.mesh))
    index, held_out = ShardIndex.build(data_dir).split(config.data.validation)
    if fresh is not None and fresh.degradations != index.degradations:
        raise ValueError(
            f"{data_dir}: its degradations are not those of config.bench; remove it, or set "
            "config.data.dir to a benchmark of the same ones"
        )
    settings = train_settings(config, len(index.degradations))
    stages = make_stages(config)
    text = load_text_encoders(
        init_folder(config), model_config, mesh, config.sharding_rules,
        config.data.text_cache_gb,
    )  # fmt: skip
    with jax.set_mesh(mesh):
        frozen, state, placement = create_state(config, model_config, settings, mesh)
        checkpoints = TrainingCheckpoints(workdir / "checkpoints", config.checkpoint.keep)
        loop = Loop(config, model_config, workdir, mesh, text, checkpoints)
        first = checkpoints.latest_step()
        if first is not None:
            state = _restored(checkpoints, first, state, placement)
            loop.samples = checkpoints.restore_samples(first)
            _log.info("continuing from step %d", first)
        trained = nnx.to_pure_dict(state.trainable)
        _log.info("%d weights train", parameter_overview.count_parameters(trained))
        overview = parameter_overview.get_parameter_overview(trained, include_stats=False)
        loop.files.write_texts(0, {"trainable weights": f"```\n{overview}\n```"})
        if held_out is not None:
            loop.validation = Validation(held_out, config, model_config, stages[-1], text, mesh)
        try:
            state, metrics = loop.run(frozen, state, placement, fresh or index, stages)
            write_model(workdir, config, checkpoints, frozen, state, placement)
        finally:
            loop.close()
            checkpoints.close()
    return metrics


class Loop:
    """What the loop holds on to while it runs, and its hooks."""

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        model_config: presets.CoTIRConfig,
        workdir: Path,
        mesh: Mesh,
        text: TextEncoders,
        checkpoints: TrainingCheckpoints,
    ):
        self.config, self.workdir, self.mesh, self.text = config, workdir, mesh, text
        self.checkpoints = checkpoints
        self.model = model_config
        self.sharding = batch_sharding(mesh)
        self.files = MetricFiles(workdir, processes.is_first())
        self.validation: Validation | None = None
        # Looked at before this process began, by all processes of then.
        self.samples = {"seen": 0, "corrupt": 0}
        self.stop = processes.StopRequest()
        self.speed = Throughput(list(mesh.devices.flat))
        self.progress = tqdm(
            unit="step", mininterval=1, disable=None if processes.is_first() else True
        )
        self.profile = Profile(
            workdir / "profile",
            config.profile.at if processes.is_first() else 0,
            config.profile.steps,
        )
        self.kind: type[clu_metrics.Collection] | None = None
        self.averages: clu_metrics.Collection | None = None

    def run(
        self,
        frozen: Frozen,
        state: TrainState,
        placement: TrainState,
        index: ShardIndex | FreshSamples,
        stages: list[Stage],
    ) -> tuple[TrainState, dict]:
        """Runs all steps that are left; returns the final state and metrics."""
        scalars = replicated(self.mesh)
        step_fn: Any = train_step
        if self.config.train.text_encoders == "in_step":
            step_fn = in_step(step_fn, self.text)
            frozen = frozen._replace(text=encoder_weights(self.text, self.mesh))
        step_fn = jax.jit(step_fn, donate_argnums=1, out_shardings=(placement, scalars))
        self.corrupt = CorruptCounter(**self.samples)
        result: dict[str, float] = {}
        step, first_sample = int(state.step), 0
        self.last_step = stages[-1].last_step
        self.progress.total, self.progress.initial, self.progress.n = self.last_step, step, step
        for stage in stages:
            if step < stage.last_step:
                batches = self._batches(index, stage, first_sample, step)
                state, result = self._run_stage(step_fn, frozen, state, stage, batches, step)
                batches.close()
                step = stage.last_step
            first_sample += (stage.last_step - stage.first_step) * stage.batch_size
        self.progress.close()
        self.checkpoints.wait()
        self.corrupt.finish()
        return state, {"step": step, **result}

    def _run_stage(
        self,
        step_fn: Any,
        frozen: Frozen,
        state: TrainState,
        stage: Stage,
        batches: Iterator[dict[str, jax.Array]],
        step: int,
    ) -> tuple[TrainState, dict]:
        """Runs the stage from `step` on."""
        last_metrics, result = None, {}
        batch = next(batches)
        compiled = self._compile(step_fn, frozen, state, batch, stage)
        self.speed.begin()
        while True:
            state, metrics = compiled(frozen, state, batch)
            self.speed.dispatched(metrics)
            # The device works on this step while the previous one's metrics are read.
            if last_metrics is not None:
                result = self._record(step - 1, last_metrics, stage)
            step, last_metrics = step + 1, metrics
            self.progress.update()
            self.profile.after(step, metrics)
            stop = self.stop.at(step)
            due = step % self.config.checkpoint.every == 0 or step == self.last_step
            if due or stop:
                result = self._record(step - 1, metrics, stage)
                last_metrics = None
                with self.speed.paused():
                    self._save(step, frozen, state, validated=due)
            if stop:
                self.checkpoints.wait()
                raise Interrupted(f"asked to stop: saved at step {step}")
            if step == stage.last_step:
                break
            with self.speed.waiting():
                batch = next(batches)
        if last_metrics is not None:
            result = self._record(step - 1, last_metrics, stage)
        return state, result

    def _batches(
        self, index: ShardIndex | FreshSamples, stage: Stage, first_sample: int, step: int
    ) -> Generator[dict[str, jax.Array]]:
        """Batches from `step` on, over the whole mesh; each process reads its devices' rows."""
        data = self.config.data
        rows = processes.own_rows(stage.batch_size, self.sharding)
        iterator = iter(
            stage_batches(
                index,
                stage,
                seed=self.config.seed,
                tokenizer=self.text.tokens.tokenizer,
                pooled_tokenizer=self.text.pooled and self.text.pooled.tokenizer,
                vague_schedule=tuple(data.vague),
                shares=tuple(data.shares),
                rows=rows,
                num_workers=data.workers,
                num_threads=data.threads,
                first_sample=first_sample,
                first_step=step,
            )
        )
        with contextlib.closing(iterator):
            for batch in iterator:
                self.corrupt.add(batch["corrupt"])
                inputs = (
                    token_ids(batch)
                    if self.config.train.text_encoders == "in_step"
                    else embed_ahead(batch, self.text)
                )
                yield processes.place_rows(inputs, rows, stage.batch_size, self.sharding)

    def _compile(
        self,
        step_fn: Any,
        frozen: Frozen,
        state: TrainState,
        batch: Mapping[str, jax.Array],
        stage: Stage,
    ) -> Any:
        start = time.monotonic()
        compiled = processes.compile_together(step_fn, frozen, state, batch)
        _log.info(
            "step for %d samples of %d pixels compiled in %.1f s",
            stage.batch_size, stage.patch_size, time.monotonic() - start,
        )  # fmt: skip
        return compiled

    def _record(self, step: int, metrics: Mapping[str, jax.Array], stage: Stage) -> dict:
        """Checks a step's metrics, and writes their averages every `log.every` steps."""
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        check_finite(values, step)
        if self.kind is None:
            self.kind = clu_metrics.Collection.create(
                **{name: clu_metrics.Average.from_output(name) for name in values}
            )
        new = self.kind.single_from_model_output(
            **{name: jnp.asarray(value) for name, value in values.items()}
        )
        self.averages = new if self.averages is None else self.averages.merge(new)
        self.speed.ended()
        size = stage.batch_size, stage.patch_size
        settings = self.config.train
        parts = flops.training_step(
            self.model, *size, trainable=settings.trainable,
            text_encoders=settings.text_encoders == "in_step",
        )  # fmt: skip
        speed = self.speed.report(stage.batch_size, flops.total(parts))
        self.progress.set_postfix_str(
            f"loss {values['loss']:.4f}, {speed['samples_per_second']:.1f} samples/s", refresh=False
        )
        if (step + 1) % self.config.log.every == 0:
            averages = {name: float(value) for name, value in self.averages.compute().items()}
            averages |= speed
            self.files.write_line(step + 1, averages)
            if processes.is_first():
                listed = ", ".join(f"{name} {value:.4g}" for name, value in averages.items())
                _log.info("step %d: %s", step + 1, listed)
            self.averages = None
            self.speed.restart()
        return values | speed

    def _save(self, step: int, frozen: Frozen, state: TrainState, validated: bool) -> None:
        metrics = {}
        if validated and self.validation is not None:
            found = self.validation(frozen, state, self.config.log.pictures)
            metrics = found.metrics
            self.files.write_scalars(step, metrics)
            if processes.is_first():
                _log.info("step %d validation %s", step, metrics)
            if len(found.rows) and processes.is_first():
                self.files.write_images(step, {"lq | restored | hq": found.rows})
                save_picture(np.concatenate(found.rows), self.workdir / "validation.png")
        self.files.flush()
        before = self.samples["seen"], self.samples["corrupt"]
        new = np.subtract((self.corrupt.seen, self.corrupt.corrupt), before)
        seen, corrupt = map(int, before + processes.sum_over_processes(new))
        samples = {"seen": seen, "corrupt": corrupt}
        self.checkpoints.save(step, _arrays(state), samples, metrics)

    def close(self) -> None:
        self.progress.close()
        self.profile.close()
        self.speed.close()
        self.files.close()


def create_state(
    config: ml_collections.ConfigDict,
    model_config: presets.CoTIRConfig,
    settings: TrainSettings,
    mesh: Mesh,
) -> tuple[Frozen, TrainState, TrainState]:
    """Builds frozen weights and training state straight onto the mesh.

    Returns:
      frozen weights, training state, and the state's shardings (same structure).
    """
    rules = config.sharding_rules

    def fresh() -> tuple[Frozen, TrainState]:
        rngs = nnx.Rngs(config.seed)
        model = make_transformer(model_config, rngs=rngs)
        autoencoder = pipeline.make_autoencoder(model_config, rngs=rngs)
        return init_state(model, autoencoder, settings, config.seed)

    folder = init_folder(config)
    if folder is None:
        placement = shardings(jax.eval_shape(fresh), mesh, rules)
        frozen, state = processes.compile_together(jax.jit(fresh, out_shardings=placement))()
    else:
        autoencoder = model_folder.load_autoencoder(folder, mesh)
        model = model_folder.load_model(folder, mesh, rules, model_config)
        structure, weights = nnx.split((model, autoencoder))

        def continued(weights: nnx.State) -> tuple[Frozen, TrainState]:
            return init_state(*nnx.merge(structure, weights), settings, config.seed)

        placement = shardings(jax.eval_shape(continued, weights), mesh, rules)
        program = jax.jit(continued, out_shardings=placement)
        frozen, state = processes.compile_together(program, weights)(weights)
    return frozen, state, placement[1]


def write_model(
    workdir: Path,
    config: ml_collections.ConfigDict,
    checkpoints: TrainingCheckpoints,
    frozen: Frozen,
    state: TrainState,
    placement: TrainState,
) -> None:
    """Writes the best checkpoint's weights as a model folder, `workdir/model`.

    Where only LoRA and adapter train, the folder names the one that training started from instead
    of repeating it.
    """
    best = checkpoints.best_step()
    if best != checkpoints.latest_step():
        state = _restored(checkpoints, best, state, placement)
    model = nnx.merge(state.graphdef, restored_weights(state), frozen.transformer)
    base = None if config.train.trainable == "all" else init_folder(config)
    notes = {"step": int(state.step), "config": "config.json of the run"}
    model_folder.save_model(workdir / "model", model, notes, base=base)


def _arrays(state: TrainState) -> dict[str, Any]:
    """The part of the state that a checkpoint holds."""
    return {name: getattr(state, name) for name in _SAVED}


def _restored(
    checkpoints: TrainingCheckpoints,
    step: int,
    state: TrainState,
    placement: TrainState,
) -> TrainState:
    abstract = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        _arrays(state),
        _arrays(placement),
    )
    return state.replace(**checkpoints.restore(step, abstract))


_SAVED = ("step", "trainable", "opt_state", "multipliers", "dual_state", "key", "ema")
