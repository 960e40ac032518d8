"""The training objective as pure functions (docs/design.md, section 1; paper, section 3).

    min_theta max_{lambda >= 0}  L_velocity + sum_k lambda_k (L_k - delta_k),
    k in {scene, degradation, plan}

`L_k - delta_k` is the violation of constraint k. The gradient reaches theta through the velocity
and the constraint losses; the multipliers are constants there, and follow by their own ascent step.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

THOUGHTS = ("scene", "degradation", "plan")


def noisy_latents(latents: jax.Array, noise: jax.Array, timestep: jax.Array) -> jax.Array:
    """`x_t = (1 - t) x_1 + t x_0`, float32.

    Args:
      latents: x_1, the clean latents, `[batch, ...]`.
      noise: x_0, standard normal, same shape.
      timestep: `[batch]` in [0, 1].
    """
    if latents.shape != noise.shape or timestep.shape != latents.shape[:1]:
        raise ValueError(
            f"latents {latents.shape}, noise {noise.shape} and timestep {timestep.shape} do not fit"
        )
    time = timestep.reshape(-1, *[1] * (latents.ndim - 1)).astype(jnp.float32)
    return (1 - time) * latents + time * noise


def velocity_loss(velocity: jax.Array, noise: jax.Array, latents: jax.Array) -> jax.Array:
    """Mean squared error to the target velocity `x_0 - x_1`, float32, scalar.

    Args:
      velocity: `[batch, ...]`.
      noise: x_0, same shape.
      latents: x_1, same shape.
    """
    target = noise.astype(jnp.float32) - latents.astype(jnp.float32)
    return jnp.square(velocity.astype(jnp.float32) - target).mean()


def constraint_losses(
    predicted: tuple[jax.Array, ...],
    written: tuple[jax.Array, ...],
    masks: tuple[jax.Array, ...] | None = None,
) -> jax.Array:
    """Match of predicted and written thoughts, per sample.

    L_k is the mean squared difference of the two L2-normalised features (last axis, eps 1e-6), over
    all positions, padding included, as published.

    Args:
      predicted: per thought `[batch, tokens, channels]`, the adapter's outputs.
      written: per thought `[batch, tokens, channels]`, text embeddings; no gradient flows to them.
      masks: per thought `[batch, tokens]`, true at real tokens; averages over only those.

    Returns:
      `[batch, thoughts]`, float32.
    """
    if [x.shape for x in predicted] != [x.shape for x in written]:
        raise ValueError(
            f"predicted thoughts {[x.shape for x in predicted]} and written ones "
            f"{[x.shape for x in written]} differ in shape"
        )
    losses = []
    for index, (prediction, text) in enumerate(zip(predicted, written, strict=True)):
        difference = _normalised(prediction) - _normalised(jax.lax.stop_gradient(text))
        per_token = jnp.square(difference).mean(-1)
        if masks is None:
            losses.append(per_token.mean(-1))
        else:
            mask = masks[index].astype(jnp.float32)
            losses.append((per_token * mask).sum(-1) / jnp.maximum(mask.sum(-1), 1.0))
    return jnp.stack(losses, axis=-1)


def _normalised(x: jax.Array) -> jax.Array:
    x = x.astype(jnp.float32)
    # Clamped under the root: the norm's own gradient is undefined at zero.
    squared = jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-12)
    return x / jnp.sqrt(squared)


def violations(
    losses: jax.Array, tolerances: jax.Array, groups: jax.Array, num_groups: int
) -> tuple[jax.Array, jax.Array]:
    """Violations `L_k - delta_k` per group of samples (one group: the complete batch).

    Args:
      losses: `[batch, thoughts]` from `constraint_losses`.
      tolerances: `[thoughts]`, delta.
      groups: `[batch]` int, group of each sample: zeros, or its degradation.
      num_groups: number of groups.

    Returns:
      violations `[groups, thoughts]`, zero for a group without samples; and the share of the batch
      in each group, `[groups]`.
    """
    member = jax.nn.one_hot(groups, num_groups, dtype=jnp.float32)
    count = member.sum(0)
    mean = (member.T @ losses) / jnp.maximum(count, 1.0)[:, None]
    present = (count > 0)[:, None]
    return jnp.where(present, mean - tolerances, 0.0), count / losses.shape[0]


def lagrangian(
    loss: jax.Array, violation: jax.Array, share: jax.Array, multipliers: jax.Array
) -> jax.Array:
    """`L + sum_g share_g sum_k lambda_gk c_gk`; no gradient flows to the multipliers.

    Args:
      loss: scalar velocity loss.
      violation: `[groups, thoughts]`.
      share: `[groups]`.
      multipliers: `[groups, thoughts]`, not negative.
    """
    weighted = jax.lax.stop_gradient(multipliers) * violation
    return loss + (share[:, None] * weighted).sum()


def dual_ascent(learning_rate: float, b1: float = 0.9, b2: float = 0.999):
    """Adam ascent on the violations, projected to multipliers >= 0.

    docs/design.md, section 5, has the published values.

    Returns:
      An optax transformation: `update(-violation, state, multipliers)` gives the step.
    """
    return optax.chain(optax.adam(learning_rate, b1, b2), optax.keep_params_nonnegative())


def dual_step(
    transform: optax.GradientTransformation,
    violation: jax.Array,
    state: optax.OptState,
    multipliers: jax.Array,
) -> tuple[jax.Array, optax.OptState]:
    """One projected ascent step: multipliers `[groups, thoughts]` and the new state."""
    updates, state = transform.update(-violation, state, multipliers)
    return optax.apply_updates(multipliers, updates), state
