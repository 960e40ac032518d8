"""Restores pictures: encode, sample and decode as one function to jit."""

import jax
import jax.numpy as jnp
from flax import nnx

from cotir_jax.models import sampling
from cotir_jax.models.autoencoder import AUTOENCODERS, Autoencoder, PatchAutoencoder
from cotir_jax.models.presets import CoTIRConfig
from cotir_jax.models.transformer import Text, Transformer, condition_reference, predict


def make_autoencoder(config: CoTIRConfig, *, rngs: nnx.Rngs) -> Autoencoder | PatchAutoencoder:
    """The autoencoder that the model's latents come from, with fresh weights where it has any."""
    if config.autoencoder == "patch":
        return PatchAutoencoder(config.patch)
    return Autoencoder(AUTOENCODERS[config.autoencoder], rngs=rngs)


def to_unit_range(pictures: jax.Array) -> jax.Array:
    """uint8 `[..., 3]` to float32 in [-1, 1]."""
    return pictures.astype(jnp.float32) / 127.5 - 1.0


def to_uint8(pictures: jax.Array) -> jax.Array:
    """[-1, 1] to uint8, rounded (the release truncates; docs/design.md, section 6)."""
    return jnp.round(jnp.clip(pictures * 127.5 + 127.5, 0.0, 255.0)).astype(jnp.uint8)


def restore_range(
    model: Transformer,
    autoencoder: Autoencoder | PatchAutoencoder,
    pictures: jax.Array,
    text: Text,
    noise_key: jax.Array,
    num_steps: int,
    empty_text: Text | None = None,
    corners: jax.Array | None = None,
) -> jax.Array:
    """Restores a batch of pictures, or of crops of one picture (docs/design.md, section 6).

    Args:
      model: the transformer.
      autoencoder: of pictures and latents.
      pictures: degraded, float32 `[batch, height, width, 3]` in [-1, 1], sides multiples of the
        patch.
      text: of the prompts.
      noise_key: one key: all pictures of the batch start from the same noise, so that a picture's
        result does not depend on its place in the batch.
      num_steps: Euler steps.
      empty_text: of empty prompts, for models with two-pass guidance.
      corners: int32 `[batch, 2]`, y and x in pixels, multiples of the patch, of crops of one
        picture. The noise is then one field under the entire picture, repeating after the size of
        a crop, so that overlapping crops start from the same noise where they overlap.

    Returns:
      float32 `[batch, height, width, 3]` in [-1, 1].

    Raises:
      ValueError: for shapes that do not fit the model.
    """
    config = model.config
    if config.two_passes and empty_text is None:
        raise ValueError(f"{config.name} is guided by two passes: pass empty_text too")
    condition = autoencoder.encode(pictures)
    noise = jax.random.normal(noise_key, condition.shape[1:], jnp.float32)
    noise = jnp.broadcast_to(noise, condition.shape)
    if corners is not None:
        shift = -(corners // config.patch)
        noise = jax.vmap(lambda field, by: jnp.roll(field, by, (0, 1)))(noise, shift)
    tokens = condition.shape[1] * condition.shape[2]
    schedule = sampling.schedule(config.family, num_steps, tokens)
    reference = condition_reference(model, condition) if config.reference_cache else None

    def velocity(latents: jax.Array, timestep: jax.Array) -> jax.Array:
        def run(text: Text) -> jax.Array:
            guidance = jnp.full_like(timestep, config.guidance) if config.guidance_embed else None
            arguments = model, latents, condition, text, timestep, guidance
            return predict(*arguments, with_thoughts=False, reference=reference).velocity

        if not config.two_passes:
            return run(text)
        unguided = run(empty_text)
        return unguided + config.guidance * (run(text) - unguided)

    restored = autoencoder.decode(sampling.euler(velocity, noise, schedule))
    return jnp.clip(restored.astype(jnp.float32), -1.0, 1.0)
