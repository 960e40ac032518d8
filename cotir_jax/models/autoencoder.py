"""From pictures to latents and back."""

from __future__ import annotations

import jax
from einops import rearrange


class PatchAutoencoder:
    """Nano's autoencoder: patches of pixels as channels; nothing learned, exactly invertible.

    Args:
      patch: pixels of a side; the latents have `3 * patch**2` channels.
    """

    def __init__(self, patch: int):
        self.patch = patch

    def encode(self, pictures: jax.Array) -> jax.Array:
        """`[batch, height, width, 3]` in [-1, 1] to `[batch, height/p, width/p, 3 p p]`.

        Raises:
          ValueError: when a side is not a multiple of the patch.
        """
        if pictures.shape[1] % self.patch or pictures.shape[2] % self.patch:
            raise ValueError(
                f"pictures {pictures.shape}: sides must be multiples of {self.patch}; pad them"
            )
        return rearrange(pictures, "b (h p) (w q) c -> b h w (p q c)", p=self.patch, q=self.patch)

    def decode(self, latents: jax.Array) -> jax.Array:
        """Inverse of `encode`."""
        return rearrange(latents, "b h w (p q c) -> b (h p) (w q) c", p=self.patch, q=self.patch)
