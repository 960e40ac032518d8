"""The state of training: what changes with every step, and what is frozen."""

from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import optax
from flax import nnx

from cotir_jax.models.autoencoder import Autoencoder, PatchAutoencoder
from cotir_jax.models.lora import trainable_filter
from cotir_jax.models.presets import CoTIRConfig
from cotir_jax.models.transformer import Transformer
from cotir_jax.training import objective
from cotir_jax.training.optimizer import make_optimizer
from cotir_jax.training.settings import TrainSettings


class Frozen(NamedTuple):
    """Weights that a training step reads and never changes.

    Attributes:
      transformer: those of the transformer that do not train.
      autoencoder: all of the autoencoder's.
      text: the text encoders', where they are part of the step (`text.in_step`).
    """

    transformer: nnx.State
    autoencoder: nnx.State
    text: Any = ()


@flax.struct.dataclass
class TrainState:
    """All that changes while training, and the static description of the step.

    Attributes:
      step: number of finished steps, int32 scalar.
      trainable: weights that train, float32.
      opt_state: the optimizer's.
      multipliers: `[groups, 3]`, lambda of scene, degradation, plan.
      dual_state: of the dual ascent.
      key: random key of the run; step n draws from `fold_in(key, n)`.
      ema: average of the trainable weights, or None.
      graphdef: the transformer's structure.
      autoencoder: the autoencoder's structure.
      config: the transformer's sizes.
      settings: see `TrainSettings`.
    """

    step: jax.Array
    trainable: nnx.State
    opt_state: optax.OptState
    multipliers: jax.Array
    dual_state: optax.OptState
    key: jax.Array
    ema: nnx.State | None
    graphdef: nnx.GraphDef = flax.struct.field(pytree_node=False)
    autoencoder: nnx.GraphDef = flax.struct.field(pytree_node=False)
    config: CoTIRConfig = flax.struct.field(pytree_node=False)
    settings: TrainSettings = flax.struct.field(pytree_node=False)


def init_state(
    model: Transformer,
    autoencoder: Autoencoder | PatchAutoencoder,
    settings: TrainSettings,
    seed: int,
    groups: int = 1,
) -> tuple[Frozen, TrainState]:
    """Splits a model into frozen weights and a fresh training state.

    Works on real and on abstract models (under `jax.eval_shape`). The seed is that of noise and
    timesteps; groups are 1, or the number of degradations for multipliers of each.
    """
    which = trainable_filter(settings.trainable)
    graphdef, trainable, base = nnx.split(model, which, ...)  # type: ignore[misc]
    autoencoder_graph, autoencoder_weights = nnx.split(autoencoder)
    trainable = jax.tree.map(lambda x: x.astype(jnp.float32), trainable)
    multipliers = jnp.full(
        (groups, len(objective.THOUGHTS)), settings.initial_multiplier, jnp.float32
    )
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        trainable=trainable,
        opt_state=make_optimizer(settings).init(trainable),
        multipliers=multipliers,
        dual_state=objective.dual_ascent(settings.dual_learning_rate).init(multipliers),
        key=jax.random.key_data(jax.random.key(seed)),
        ema=jax.tree.map(jnp.copy, trainable) if settings.ema_decay else None,
        graphdef=graphdef,
        autoencoder=autoencoder_graph,
        config=model.config,
        settings=settings,
    )
    return Frozen(base, autoencoder_weights), state


def evaluation_weights(state: TrainState) -> nnx.State:
    """The weights that validation and the written model use: the average where there is one."""
    return state.trainable if state.ema is None else state.ema
