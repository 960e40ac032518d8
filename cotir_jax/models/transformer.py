"""A transformer's velocity on grids of latents, with the standard position ids."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from cotir_jax.models.flux import (
    Output,
    Reference,
    Transformer,
    image_position_ids,
    text_position_ids,
)

# Below this timestep a clean-picture estimate no longer fixes the velocity: (x_t - x) / t.
MIN_TIMESTEP = 0.05


class Text(NamedTuple):
    """The prompt as a transformer reads it.

    Attributes:
      embeddings: `[batch, text_tokens, text_channels]`.
      pooled: `[batch, pooled_channels]`, or None for models without one.
    """

    embeddings: jax.Array
    pooled: jax.Array | None = None


def condition_reference(model: Transformer, condition: jax.Array) -> Reference:
    """The condition's keys and values, for a model with `reference_cache`.

    Args:
      model: the transformer.
      condition: `[batch, height, width, in_channels]`, latents of the degraded picture.
    """
    batch, height, width, _ = condition.shape
    _, ids = image_position_ids(model.config.family, height, width)
    return model.reference(
        rearrange(condition, "b h w c -> b (h w) c"), jnp.broadcast_to(ids, (batch, *ids.shape))
    )


def predict(
    model: Transformer,
    noisy_latents: jax.Array,
    condition: jax.Array,
    text: Text,
    timestep: jax.Array,
    guidance: jax.Array | None = None,
    *,
    with_thoughts: bool = True,
    reference: Reference | None = None,
) -> Output:
    """Velocity at `timestep` for a grid of latents, with the standard position ids.

    With `prediction="correction"` the clean estimate is `x = condition + output` and the velocity
    is `(x_t - x) / t`. The output is summed over the target row and the condition row of the same
    place: at t = 1 a target row holds only noise, while the condition row holds what is to be
    corrected, so nothing has to be copied by attention first. With `detail_channels` the tokens'
    sum steers the convolutions that compute the correction.

    Args:
      model: the transformer.
      noisy_latents: `[batch, height, width, in_channels]`, x_t.
      condition: `[batch, height, width, in_channels]`, latents of the degraded picture.
      text: of the prompt.
      timestep: `[batch]`.
      guidance: `[batch]`, for models with a guidance embedding.
      with_thoughts: whether the thoughts are predicted too.
      reference: from `condition_reference`; computed here by default.

    Returns:
      `Output`; its velocity is `[batch, height, width, in_channels]`, float32.

    Raises:
      ValueError: for shapes that do not fit the model.
    """
    config = model.config
    batch, height, width, _ = noisy_latents.shape
    if condition.shape != noisy_latents.shape:
        raise ValueError(
            f"condition {condition.shape} and latents {noisy_latents.shape} must be equal"
        )
    target_ids, condition_ids = image_position_ids(config.family, height, width)
    tokens = rearrange(noisy_latents, "b h w c -> b (h w) c")
    if config.reference_cache:
        reference, ids = reference or condition_reference(model, condition), target_ids
    else:
        tokens = jnp.concatenate([tokens, rearrange(condition, "b h w c -> b (h w) c")], axis=1)
        ids = jnp.concatenate([target_ids, condition_ids])
    text_ids = text_position_ids(config.family, text.embeddings.shape[1])
    corrects, count = config.prediction == "correction", height * width
    out = model(
        tokens,
        jnp.broadcast_to(ids, (batch, *ids.shape)),
        text.embeddings,
        jnp.broadcast_to(text_ids, (batch, *text_ids.shape)),
        timestep,
        guidance,
        text.pooled,
        output_rows=None if corrects else count,
        with_thoughts=with_thoughts,
        reference=reference,
    )
    velocity = out.velocity.astype(jnp.float32)
    if corrects:
        velocity = velocity[:, :count] + velocity[:, count:]
    velocity = rearrange(velocity, "b (h w) c -> b h w c", h=height)
    if model.detail is not None:
        velocity = model.detail(condition, velocity, text.embeddings.mean(axis=1))
    if corrects:
        time = jnp.maximum(timestep.astype(jnp.float32), MIN_TIMESTEP)[:, None, None, None]
        velocity = (noisy_latents - condition - velocity) / time
    return out._replace(velocity=velocity)
