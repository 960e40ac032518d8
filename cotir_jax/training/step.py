"""The training step: loss, gradients, primal and dual update."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from einops import rearrange
from flax import nnx

from cotir_jax.models.pipeline import to_unit_range
from cotir_jax.models.transformer import Text, Transformer, predict
from cotir_jax.parallel.sharding import in_rounds
from cotir_jax.training import objective
from cotir_jax.training.optimizer import learning_rate, make_optimizer
from cotir_jax.training.state import Frozen, TrainState

# Pixels that one device encodes at a time: a picture of 512 x 512. Its activations take 0.6 GB.
PIXELS_PER_ENCODING = 512 * 512


def loss_fn(
    trainable: nnx.State,
    frozen: Frozen,
    state: TrainState,
    inputs: Mapping[str, Any],
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The Lagrangian of one (micro-)batch.

    Args:
      trainable: the weights to differentiate.
      frozen: the other weights.
      state: gives structure, settings and multipliers.
      inputs: `latents`, `condition`, `noise` `[batch, height, width, channels]`; `timestep`
        `[batch]`; `prompt`, `scene`, `degradation`, `plan`, `Embedded` texts
        `[batch, text_tokens, text_channels]`; `group` `[batch]`; `pooled`
        `[batch, pooled_channels]` for the flux1 family.

    Returns:
      The scalar Lagrangian; `velocity_loss` (scalar) and per-sample `constraint_losses`
      `[batch, 3]`.
    """
    settings = state.settings
    model: Transformer = nnx.merge(state.graphdef, trainable, frozen.transformer)
    noisy = objective.noisy_latents(inputs["latents"], inputs["noise"], inputs["timestep"])
    guidance = None
    if model.config.guidance_embed:
        guidance = jnp.full_like(inputs["timestep"], settings.guidance)
    text = Text(inputs["prompt"].embeddings, inputs.get("pooled"))
    out = predict(model, noisy, inputs["condition"], text, inputs["timestep"], guidance)
    velocity_loss = objective.velocity_loss(out.velocity, inputs["noise"], inputs["latents"])
    if out.scene is None:  # no adapter: nothing that a thought could be compared with
        losses = jnp.zeros((len(inputs["timestep"]), len(objective.THOUGHTS)))
    else:
        written = [inputs[name] for name in objective.THOUGHTS]
        losses = objective.constraint_losses(
            (out.scene, out.degradation, out.plan),
            tuple(text.embeddings for text in written),
            tuple(text.mask for text in written) if settings.mask_padding else None,
        )
    violation, share = _violations(state, losses, inputs["group"])
    loss = objective.lagrangian(velocity_loss, violation, share, state.multipliers)
    return loss, {"velocity_loss": velocity_loss, "constraint_losses": losses}


def update(
    frozen: Frozen, state: TrainState, inputs: Mapping[str, Any]
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
    violation, _ = _violations(state, losses, inputs["group"])
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
    frozen: Frozen, state: TrainState, batch: Mapping[str, Any]
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Encodes a batch, draws noise and timesteps, and updates; the function that is jitted.

    Args:
      frozen: weights that do not train.
      state: the training state; donated by the loop.
      batch: `lq`, `hq` uint8 `[batch, size, size, 3]`; `prompt`, `scene`, `degradation`, `plan`,
        `group` and `pooled` as in `loss_fn`.

    Returns:
      The new state and scalar metrics.
    """
    return update(frozen, state, draw_inputs(frozen, state, batch))


def draw_inputs(frozen: Frozen, state: TrainState, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Draws noise and timesteps and encodes pictures, a function of (run key, step, batch)."""
    settings = state.settings
    autoencoder = nnx.merge(state.autoencoder, frozen.autoencoder)
    # One copy of the encoder compiles in half the time of two; and at full resolution its
    # activations are larger than the transformer's, so a device takes few pictures at a time.
    pictures = jnp.stack([batch["hq"], batch["lq"]])
    latents, condition = in_rounds(
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


def _gradients(frozen: Frozen, state: TrainState, inputs: Mapping[str, Any]):
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


def _violations(
    state: TrainState, losses: jax.Array, group: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Violations per group, and the groups' shares of the batch; see `objective.violations`."""
    count = len(state.multipliers)
    groups = group if count > 1 else jnp.zeros_like(group)
    return objective.violations(losses, jnp.asarray(state.settings.tolerances), groups, count)


def check_finite(metrics: Mapping[str, Any], step: int) -> None:
    """Raises `FloatingPointError` naming the step and the first quantity that is not finite."""
    for name, value in metrics.items():
        if not np.isfinite(value):
            raise FloatingPointError(f"{name} is {value} at step {step}")
