"""The training loop: stages of steps, with hooks after each step."""

import logging
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import jax
from clu import parameter_overview
from flax import nnx

from cotir_jax.checkpoints.model_folder import load_text_encoders
from cotir_jax.checkpoints.training import TrainingCheckpoints
from cotir_jax.data.batches import CorruptCounter, Samples, Stage, stage_batches
from cotir_jax.data.fresh_samples import FreshSamples
from cotir_jax.data.shard_index import ShardIndex
from cotir_jax.parallel import processes
from cotir_jax.parallel.sharding import batch_sharding, replicated
from cotir_jax.text.encoders import TextEncoders, embed_texts, encoder_weights, with_texts_embedded
from cotir_jax.training.config import Run, check_workdir
from cotir_jax.training.hooks import Checkpoints, Finished, Hook, Profile, Progress, StepMetrics
from cotir_jax.training.metric_files import MetricFiles
from cotir_jax.training.state import Frozen, TrainState
from cotir_jax.training.step import train_step
from cotir_jax.training.throughput import Throughput
from cotir_jax.training.validation import Validation
from cotir_jax.training.weights import create_state, restore_state, write_model

_log = logging.getLogger(__name__)


def train(
    run: Run, workdir: Path, data_dir: Path, fresh: FreshSamples | None = None
) -> dict[str, Any]:
    """Trains, or continues the run in `workdir`, and writes the best weights to `workdir/model`.

    Every process of a job calls it; they share the file system.

    Args:
      run: from `Run.read`.
      workdir: checkpoints, event files and the resulting model.
      data_dir: a CoTIR-Bench folder.
      fresh: samples to train on in place of those in `data_dir`, which then serve validation.

    Returns:
      The last step's metrics, with `step` and what `Throughput.report` measured.

    Raises:
      ValueError: for a workdir or data that do not fit the run.
      FloatingPointError: when a loss is not finite; the last good checkpoint is kept.
      Interrupted: after a signal.
    """
    check_workdir(run, workdir)
    index, held_out = ShardIndex.build(data_dir).split(run.data.validation)
    if fresh is not None and fresh.degradations != index.degradations:
        raise ValueError(
            f"{data_dir}: its degradations are not those of config.bench; remove it, or set "
            "config.data.dir to a benchmark of the same ones"
        )
    text = load_text_encoders(run.init, run.model, run.mesh, run.rules, run.data.text_cache_gb)
    with jax.set_mesh(run.mesh), ExitStack() as stack:
        frozen, state = create_state(run, run.groups(len(index.degradations)))
        closed = lambda opened: stack.enter_context(closing(opened))  # noqa: E731
        checkpoints = closed(TrainingCheckpoints(workdir / "checkpoints", run.checkpoint.keep))
        corrupt = CorruptCounter()
        first = checkpoints.latest_step()
        if first is not None:
            state = restore_state(checkpoints, first, state)
            corrupt = CorruptCounter(**checkpoints.restore_samples(first))
            _log.info("continuing from step %d", first)
        stop = processes.StopRequest()
        speed = closed(Throughput(list(run.mesh.devices.flat)))
        progress = closed(Progress(first or 0, run.steps, run.log.every))
        files = closed(MetricFiles(workdir, processes.is_first()))
        at = run.profile.at if processes.is_first() else 0
        profile = closed(Profile(workdir / "profile", at, run.profile.steps))
        _describe(state, files)
        metrics = StepMetrics(run, files, speed, progress)
        validation = held_out and Validation(held_out, run, text, frozen, files)
        saving = Checkpoints(run, checkpoints, metrics, validation, speed, corrupt, stop)
        hooks = [metrics, profile, saving]
        if run.texts_in_step:
            frozen = frozen._replace(text=encoder_weights(text, run.mesh))
        batches = partial(_batches, run, fresh or index, text, corrupt)
        state = _run_stages(run, text, frozen, state, batches, speed, hooks)
        checkpoints.wait()
        corrupt.finish()
        write_model(run, workdir, checkpoints, frozen, state)
    return {"step": run.steps, **metrics.last}


def _run_stages(
    run: Run,
    text: TextEncoders,
    frozen: Frozen,
    state: TrainState,
    batches: Callable[[Stage, int], Generator[dict[str, jax.Array]]],
    speed: Throughput,
    hooks: Sequence[Hook],
) -> TrainState:
    """Runs all steps that are left and returns the final state."""
    program = step_program(run, text, state)
    begin = int(state.step)
    for stage in [each for each in run.stages if begin < each.end_step]:
        begin = max(begin, stage.first_step)
        with closing(batches(stage, begin)) as source:
            batch = next(source)
            start = time.monotonic()
            compiled = processes.compile_together(program, frozen, state, batch)
            _log.info(
                "step for %d samples of %d pixels compiled in %.1f s",
                stage.batch_size, stage.patch_size, time.monotonic() - start,
            )  # fmt: skip
            speed.begin()
            for step in range(begin, stage.end_step):
                if step > begin:
                    with speed.waiting():
                        batch = next(source)
                state, metrics = compiled(frozen, state, batch)
                speed.dispatched(metrics)
                for hook in hooks:
                    hook(Finished(step + 1, stage, state, metrics))
    return state


def step_program(run: Run, text: TextEncoders, state: TrainState) -> Any:
    """Returns the jitted training step: (frozen, state, batch) -> (state, metrics).

    Args:
      run: from `Run.read`.
      text: the encoders that are part of the step, where the run has it so.
      state: with the shardings that the new one gets too; its arrays may be abstract.
    """
    step_fn: Any = with_texts_embedded(train_step, text) if run.texts_in_step else train_step
    placement = jax.tree.map(lambda leaf: leaf.sharding, state)
    return jax.jit(step_fn, donate_argnums=1, out_shardings=(placement, replicated(run.mesh)))


def _batches(
    run: Run, index: Samples, text: TextEncoders, corrupt: CorruptCounter, stage: Stage, step: int
) -> Generator[dict[str, jax.Array]]:
    """Yields a stage's batches from `step` on, over the mesh; each process reads its own rows."""
    sharding = batch_sharding(run.mesh)
    batches = stage_batches(
        index,
        stage,
        seed=run.seed,
        tokenizer=text.tokens.tokenizer,
        pooled_tokenizer=text.pooled and text.pooled.tokenizer,
        vague_schedule=run.data.vague,
        shares=run.data.shares,
        rows=processes.own_rows(stage.batch_size, sharding),
        num_workers=run.data.workers,
        num_threads=run.data.threads,
        first_step=step,
    )
    with closing(iter(batches)) as iterator:
        for batch in iterator:
            corrupt.add(batch.pop("corrupt"))
            if not run.texts_in_step:
                batch = embed_texts(batch, text)
            yield processes.place_rows(batch, stage.batch_size, sharding)


def _describe(state: TrainState, files: MetricFiles) -> None:
    """Says how many weights train, and lists them."""
    trained = nnx.to_pure_dict(state.trainable)
    _log.info("%d weights train", parameter_overview.count_parameters(trained))
    overview = parameter_overview.get_parameter_overview(trained, include_stats=False)
    files.write_text(0, "trainable weights", f"```\n{overview}\n```")
