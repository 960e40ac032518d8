"""Training: the state, the loss, the step; `training_loop.py` runs them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from einops import rearrange
from flax import nnx

from cotir_jax import objective, partitioning
from cotir_jax.models.autoencoder import Autoencoder, PatchAutoencoder
from cotir_jax.models.lora import trainable_filter
from cotir_jax.models.pipeline import to_unit_range
from cotir_jax.models.presets import CoTIRConfig
from cotir_jax.models.transformer import Text, Transformer, predict

# Pixels that one device encodes at a time: a picture of 512 x 512. Its activations take 0.6 GB.
PIXELS_PER_ENCODING = 512 * 512


class TrainSettings(NamedTuple):
    """What a training step needs beside arrays; part of the compiled program.

    Attributes:
      learning_rate, warmup_steps, total_steps, learning_rate_floor: linear warm-up from 0, cosine
        to 0 at `total_steps`, never below the floor after step 0.
      optimizer: "adamw" or "muon"; see `make_optimizer`.
      weight_decay, b1, b2, clip_norm: AdamW and the clip of the global gradient norm.
      tolerances: delta of scene, degradation, plan.
      dual_learning_rate: of the multipliers' Adam ascent.
      initial_multiplier: value that all multipliers start from.
      multiplier_groups: 1, or the number of degradations for a multiplier each.
      mask_padding: leave padding out of the constraint losses.
      timestep_mean, timestep_std: t = sigmoid(mean + std * N(0, 1)).
      full_noise: probability that a sample trains at t = 1, where one-step sampling starts.
      guidance: value given to models with a guidance embedding.
      accumulate: micro-batches per step.
      ema_decay: of the average of the weights; 0 keeps none.
      trainable: "lora_and_adapter" or "all".
    """

    learning_rate: float = 5e-4
    warmup_steps: int = 2000
    total_steps: int = 120_001
    learning_rate_floor: float = 5e-5
    optimizer: str = "adamw"
    weight_decay: float = 0.01
    b1: float = 0.9
    b2: float = 0.999
    clip_norm: float = 1.0
    tolerances: tuple[float, float, float] = (1e-4, 1e-4, 1e-4)
    dual_learning_rate: float = 1e-4
    initial_multiplier: float = 0.0
    multiplier_groups: int = 1
    mask_padding: bool = False
    timestep_mean: float = 0.0
    timestep_std: float = 1.0
    full_noise: float = 0.0
    guidance: float = 4.0
    accumulate: int = 1
    ema_decay: float = 0.0
    trainable: str = "lora_and_adapter"


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


def loss_fn(
    trainable: nnx.State,
    frozen: Frozen,
    state: TrainState,
    inputs: Mapping[str, jax.Array],
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The Lagrangian of one (micro-)batch.

    Args:
      trainable: the weights to differentiate.
      frozen: the other weights.
      state: gives structure, settings and multipliers.
      inputs: `latents`, `condition`, `noise` `[batch, height, width, channels]`; `timestep`
        `[batch]`; `prompt`, `scene`, `degradation`, `plan` `[batch, text_tokens, text_channels]`;
        `group` `[batch]`; `pooled` `[batch, pooled_channels]` for the flux1 family; with
        `mask_padding` also `*_mask` `[batch, text_tokens]`.

    Returns:
      The scalar Lagrangian; `velocity_loss` (scalar) and per-sample `constraint_losses`
      `[batch, 3]`.
    """
    settings = state.settings
    model: Transformer = nnx.merge(state.graphdef, trainable, frozen.transformer)
    noisy = objective.noisy_latents(inputs["latents"], inputs["noise"], inputs["timestep"])
    guidance = (
        jnp.full_like(inputs["timestep"], settings.guidance)
        if model.config.guidance_embed
        else None
    )
    text = Text(inputs["prompt"], inputs.get("pooled"))
    out = predict(model, noisy, inputs["condition"], text, inputs["timestep"], guidance)
    velocity_loss = objective.velocity_loss(out.image, inputs["noise"], inputs["latents"])
    if out.scene is None:  # no adapter: nothing that a thought could be compared with
        losses = jnp.zeros((len(inputs["timestep"]), len(objective.THOUGHTS)))
    else:
        written = tuple(inputs[name] for name in objective.THOUGHTS)
        masks = None
        if settings.mask_padding:
            masks = tuple(inputs[f"{name}_mask"] for name in objective.THOUGHTS)
        losses = objective.constraint_losses((out.scene, out.degradation, out.plan), written, masks)
    violation, share = _violations(settings, losses, inputs["group"])
    loss = objective.lagrangian(velocity_loss, violation, share, state.multipliers)
    return loss, {"velocity_loss": velocity_loss, "constraint_losses": losses}


def update(
    frozen: Frozen, state: TrainState, inputs: Mapping[str, jax.Array]
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One primal step on the weights, then one dual step on the multipliers.

    The multipliers in the loss are those before the step. Arguments as `loss_fn`; returns the new
    state and scalar metrics.
    """
    settings = state.settings
    loss, velocity_loss, losses, gradients = _gradients(frozen, state, inputs)
    optimizer = make_optimizer(settings)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.trainable)
    trainable = optax.apply_updates(state.trainable, updates)
    violation, _ = _violations(settings, losses, inputs["group"])
    dual = objective.dual_ascent(settings.dual_learning_rate)
    multipliers, dual_state = objective.dual_step(
        dual, violation, state.dual_state, state.multipliers
    )
    ema = state.ema
    if ema is not None:
        # The first steps follow the weights closely, so that the start is soon forgotten.
        decay = jnp.minimum(settings.ema_decay, (1 + state.step) / (10 + state.step))
        ema = jax.tree.map(lambda a, b: a * decay + b * (1 - decay), ema, trainable)
    metrics = {
        "loss": loss,
        "velocity_loss": velocity_loss,
        "gradient_norm": optax.tree.norm(gradients),
        "learning_rate": learning_rate(settings)(state.step),
    }
    for index, name in enumerate(objective.THOUGHTS):
        metrics[f"constraint_loss_{name}"] = losses[:, index].mean()
        metrics[f"violation_{name}"] = losses[:, index].mean() - settings.tolerances[index]
        metrics[f"multiplier_{name}"] = multipliers[:, index].mean()
    new = state.replace(
        step=state.step + 1,
        trainable=trainable,
        opt_state=opt_state,
        multipliers=multipliers,
        dual_state=dual_state,
        ema=ema,
    )
    return new, metrics


def train_step(
    frozen: Frozen, state: TrainState, batch: Mapping[str, jax.Array]
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Encodes a batch, draws noise and timesteps, and updates; the function that is jitted.

    Args:
      frozen: weights that do not train.
      state: the training state; donated by the loop.
      batch: `lq`, `hq` uint8 `[batch, size, size, 3]`; `prompt`, `scene`, `degradation`, `plan`
        text embeddings; `pooled` for the flux1 family; `group` `[batch]`; `*_mask`.

    Returns:
      The new state and scalar metrics.
    """
    return update(frozen, state, draw_inputs(frozen, state, batch))


def draw_inputs(
    frozen: Frozen, state: TrainState, batch: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
    """Latents, noise and timesteps of this step, a function of (run key, step, batch)."""
    settings = state.settings
    autoencoder = nnx.merge(state.autoencoder, frozen.autoencoder)
    # One copy of the encoder compiles in half the time of two; and at full resolution its
    # activations are larger than the transformer's, so a device takes few pictures at a time.
    pictures = jnp.stack([batch["hq"], batch["lq"]])
    latents, condition = partitioning.in_rounds(
        lambda part: autoencoder.encode(to_unit_range(part)),
        pictures,
        max(1, PIXELS_PER_ENCODING // (pictures.shape[2] * pictures.shape[3])),
    )
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    noise_key, time_key, full_key = jax.random.split(key, 3)
    size = latents.shape[:1]
    logits = settings.timestep_mean + settings.timestep_std * jax.random.normal(time_key, size)
    full = jax.random.uniform(full_key, size) < settings.full_noise
    rest = {name: array for name, array in batch.items() if name not in ("hq", "lq")}
    return rest | {
        "latents": latents,
        "condition": condition,
        "noise": jax.random.normal(noise_key, latents.shape, jnp.float32),
        "timestep": jnp.where(full, 1.0, jax.nn.sigmoid(logits)),
    }


def _gradients(frozen: Frozen, state: TrainState, inputs: Mapping[str, jax.Array]):
    """Loss, velocity loss, per-sample constraint losses and gradients, over all micro-batches."""
    count = state.settings.accumulate
    gradient = jax.value_and_grad(loss_fn, has_aux=True)
    if count == 1:
        (loss, aux), gradients = gradient(state.trainable, frozen, state, inputs)
        return loss, aux["velocity_loss"], aux["constraint_losses"], gradients
    micro = jax.tree.map(lambda x: rearrange(x, "(b n) ... -> n b ...", n=count), dict(inputs))

    def add(total: Any, part: dict[str, jax.Array]) -> tuple[Any, jax.Array]:
        (loss, aux), gradients = gradient(state.trainable, frozen, state, part)
        scaled = jax.tree.map(lambda x: x / count, (loss, aux["velocity_loss"], gradients))
        return jax.tree.map(jnp.add, total, scaled), aux["constraint_losses"]

    zeros = (jnp.zeros(()), jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.trainable))
    (loss, velocity_loss, gradients), losses = jax.lax.scan(add, zeros, micro)
    return loss, velocity_loss, rearrange(losses, "n b k -> (b n) k"), gradients


def _violations(settings: TrainSettings, losses: jax.Array, group: jax.Array):
    groups = group if settings.multiplier_groups > 1 else jnp.zeros_like(group)
    return objective.violations(
        losses, jnp.asarray(settings.tolerances), groups, settings.multiplier_groups
    )


def learning_rate(settings: TrainSettings) -> optax.Schedule:
    """Linear warm-up from 0, cosine to 0, at least the floor after step 0 (SPEC section 5)."""
    cosine = optax.warmup_cosine_decay_schedule(
        0.0, settings.learning_rate, settings.warmup_steps, settings.total_steps
    )

    def schedule(step: jax.Array) -> jax.Array:
        floor = jnp.where(step > 0, settings.learning_rate_floor, 0.0)
        return jnp.maximum(cosine(step), floor)

    return schedule


def make_optimizer(settings: TrainSettings) -> optax.GradientTransformation:
    """Global-norm clip, then AdamW on the schedule of `learning_rate`, or Muon on the same.

    Muon (Jordan et al., 2024) makes the momentum of each matrix orthogonal; its steps are scaled to
    the size of AdamW's (arXiv 2502.16982), so that learning rates carry over. Kernels alone train
    with it, those of convolutions as matrices of `[height * width * in, out]`; all other weights,
    LoRA's too, and kernels of a few columns stay with AdamW (Nesterov's, as Optax has it there).
    """
    decay = settings.weight_decay
    rates = dict(learning_rate=learning_rate(settings), eps=1e-8, weight_decay=decay)
    if settings.optimizer == "adamw":
        step = optax.adamw(b1=settings.b1, b2=settings.b2, **rates)
    else:
        step = optax.contrib.muon(
            **rates,
            # Four Newton-Schulz steps do what five do without (arXiv 2512.04632).
            preconditioning="aol",
            ns_steps=4,
            consistent_rms=0.2,
            adam_b1=settings.b1,
            adam_b2=settings.b2,
            adam_weight_decay=decay,
            muon_weight_dimension_numbers=_matrices,
        )
    return optax.chain(optax.clip_by_global_norm(settings.clip_norm), step)


def _matrices(weights: nnx.State) -> Any:
    """How Muon sees each weight as a matrix; None: not at all."""

    def axes(path: tuple[Any, ...], weight: jax.Array) -> Any:
        if "kernel" not in jax.tree_util.keystr(path) or weight.shape[-1] < 12:
            return None
        stacked = weight.ndim == 3  # over the layers of a scan
        into = range(int(stacked), weight.ndim - 1)
        return optax.contrib.MuonDimensionNumbers(tuple(into), weight.ndim - 1)

    return jax.tree_util.tree_map_with_path(axes, weights)


def init_state(
    model: Transformer,
    autoencoder: Autoencoder | PatchAutoencoder,
    settings: TrainSettings,
    seed: int,
) -> tuple[Frozen, TrainState]:
    """Splits a model into frozen weights and a fresh training state.

    Works on real and on abstract models (under `jax.eval_shape`).

    Args:
      model: the transformer.
      autoencoder: gives the latents.
      settings: see `TrainSettings`.
      seed: of noise and timesteps.

    Returns:
      frozen weights, training state.
    """
    which = trainable_filter(settings.trainable)
    graphdef, trainable, base = nnx.split(model, which, ...)  # type: ignore[misc]
    autoencoder_graph, autoencoder_weights = nnx.split(autoencoder)
    trainable = jax.tree.map(lambda x: x.astype(jnp.float32), trainable)
    multipliers = jnp.full(
        (settings.multiplier_groups, len(objective.THOUGHTS)),
        settings.initial_multiplier,
        jnp.float32,
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


def restored_weights(state: TrainState) -> nnx.State:
    """The weights that are used outside training: the average where there is one."""
    return state.trainable if state.ema is None else state.ema


def check_finite(metrics: Mapping[str, Any], step: int) -> None:
    """Raises `FloatingPointError` naming the step and the first quantity that is not finite."""
    for name, value in metrics.items():
        if not np.isfinite(value):
            raise FloatingPointError(f"{name} is {value} at step {step}")
