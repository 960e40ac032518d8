"""Where a run's weights come from, and where they go."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from cotir_jax.checkpoints import model_folder
from cotir_jax.checkpoints.training import TrainingCheckpoints
from cotir_jax.models import pipeline
from cotir_jax.models.transformer import Transformer
from cotir_jax.parallel import processes
from cotir_jax.parallel.sharding import shardings
from cotir_jax.training.config import Run
from cotir_jax.training.state import Frozen, TrainState, evaluation_weights, init_state

# The fields of the state that a checkpoint holds.
_SAVED = ("step", "trainable", "opt_state", "multipliers", "dual_state", "key", "ema")


def draw_state(run: Run, groups: int) -> tuple[Frozen, TrainState]:
    """Draws all weights with the run's seed; see `init_state`."""
    rngs = nnx.Rngs(run.seed)
    model = Transformer(run.model, rngs=rngs)
    autoencoder = pipeline.make_autoencoder(run.model, rngs=rngs)
    return init_state(model, autoencoder, run.settings, run.seed, groups)


def create_state(run: Run, groups: int) -> tuple[Frozen, TrainState]:
    """Builds frozen weights and training state directly on the mesh.

    Weights are those of `run.init`, or drawn with the run's seed; `groups` as in `init_state`.
    """
    build: Any = partial(draw_state, run, groups)
    arguments: tuple[Any, ...] = ()
    if run.init is not None:
        autoencoder = model_folder.load_autoencoder(run.init, run.mesh)
        model = model_folder.load_model(run.init, run.mesh, run.rules, run.model)
        structure, weights = nnx.split((model, autoencoder))

        def loaded(weights: nnx.State) -> tuple[Frozen, TrainState]:
            return init_state(*nnx.merge(structure, weights), run.settings, run.seed, groups)

        build, arguments = loaded, (weights,)
    placement = shardings(jax.eval_shape(build, *arguments), run.mesh, run.rules)
    program = jax.jit(build, out_shardings=placement)
    return processes.compile_together(program, *arguments)(*arguments)


def saved_arrays(state: TrainState) -> dict[str, Any]:
    """The part of the state that a checkpoint holds."""
    return {name: getattr(state, name) for name in _SAVED}


def restore_state(checkpoints: TrainingCheckpoints, step: int, state: TrainState) -> TrainState:
    """Replaces a state's arrays by those of a checkpoint; shapes, dtypes and shardings stay."""
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
        saved_arrays(state),
    )
    return state.replace(**checkpoints.restore(step, abstract))


def write_model(
    run: Run, workdir: Path, checkpoints: TrainingCheckpoints, frozen: Frozen, state: TrainState
) -> None:
    """Writes the best checkpoint's weights as a model folder, `workdir/model`.

    Where only LoRA and adapter train, the folder names the one that training started from instead
    of repeating it.
    """
    best = checkpoints.best_step()
    if best is not None and best != checkpoints.latest_step():
        state = restore_state(checkpoints, best, state)
    model = nnx.merge(state.graphdef, evaluation_weights(state), frozen.transformer)
    base = None if run.settings.trainable == "all" else run.init
    notes = {"step": int(state.step), "config": "config.json of the run"}
    model_folder.save_model(workdir / "model", model, notes, base=base)
