"""From degraded to restored pictures: encode, sample and decode as one function to jit."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from cotir_jax.models.autoencoder import PatchAutoencoder
from cotir_jax.models.flux2 import Flux2
from cotir_jax.models.presets import CoTIRConfig
from cotir_jax.sampling import euler, flux2_schedule


def make_autoencoder(config: CoTIRConfig) -> PatchAutoencoder:
    """The autoencoder that the model's latents come from.

    Raises:
      ValueError: where it is not there yet.
    """
    if config.autoencoder != "patch":
        raise ValueError(
            f"{config.name} needs the {config.autoencoder} autoencoder, which this version "
            "does not have; use the nano model"
        )
    return PatchAutoencoder(config.patch)


def to_unit_range(pictures: jax.Array) -> jax.Array:
    """uint8 `[..., 3]` to float32 in [-1, 1]."""
    return pictures.astype(jnp.float32) / 127.5 - 1.0


def to_uint8(pictures: jax.Array) -> jax.Array:
    """[-1, 1] to uint8, rounded (the release truncates; SPEC section 6)."""
    return jnp.round(jnp.clip(pictures * 127.5 + 127.5, 0.0, 255.0)).astype(jnp.uint8)


def restore_pictures(
    model: Flux2,
    pictures: jax.Array,
    text_embeddings: jax.Array,
    noise_key: jax.Array,
    num_steps: int,
) -> jax.Array:
    """Restores a batch of pictures.

    Args:
      model: the transformer.
      pictures: degraded, uint8 `[batch, height, width, 3]`, sides multiples of the patch.
      text_embeddings: `[batch, text_tokens, text_channels]`, of the prompts.
      noise_key: one key: all pictures of the batch start from the same noise, so that a picture's
        result does not depend on its place in the batch.
      num_steps: Euler steps.

    Returns:
      uint8 `[batch, height, width, 3]`.
    """
    autoencoder = make_autoencoder(model.config)
    condition = autoencoder.encode(to_unit_range(pictures))
    noise = jax.random.normal(noise_key, condition.shape[1:], jnp.float32)
    schedule = flux2_schedule(num_steps, condition.shape[1] * condition.shape[2])

    def velocity(latents: jax.Array, timestep: jax.Array) -> jax.Array:
        return model.predict(
            latents, condition, text_embeddings, timestep, with_thoughts=False
        ).image

    latents = euler(velocity, jnp.broadcast_to(noise, condition.shape), schedule)
    return to_uint8(autoencoder.decode(latents))
