"""From pictures to latents and back: the two FLUX autoencoders, and nano's patches."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from cotir_jax.models.autoencoder_layers import GROUPS, Coder
from cotir_jax.models.lora import Linear
from cotir_jax.models.tiles import in_tiles

KINDS = ("flux1", "flux2")


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
    """Sizes of a FLUX autoencoder.

    Attributes:
      kind: "flux1" (scale and shift) or "flux2" (quantisation convolutions, batch-norm latents).
      channels: of the highest resolution.
      multipliers: of the channels, for each level; every level but the last halves the sides.
      num_res_blocks: of each level of the encoder; the decoder has one more.
      latent_channels: before 2x2 patches become channels.
      scale, shift: `latents = scale * (mean - shift)`, flux1 only.
      batch_norm_eps: added to the stored variance, flux2 only.
      param_dtype: of the weights.
      dtype: of the computation; norms and softmax are float32 always.
      tile: side in pixels; larger pictures are processed in overlapping tiles at most this large,
        with less memory and not quite the same result: norms and attention see one tile. 0: never.

    Raises:
      ValueError: for sizes that cannot be built.
    """

    kind: str
    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    latent_channels: int = 16
    scale: float = 0.3611
    shift: float = 0.1159
    batch_norm_eps: float = 1e-4
    param_dtype: str = "float32"
    dtype: str = "float32"
    tile: int = 1024

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"autoencoder kind={self.kind!r}: accepted are {list(KINDS)}")
        widths = [self.channels * multiplier for multiplier in self.multipliers]
        if not widths or any(width % GROUPS or width <= 0 for width in widths):
            raise ValueError(f"autoencoder widths {widths}: must be multiples of {GROUPS}")
        if self.tile and (self.tile % self.patch or self.tile < 4 * self.patch):
            raise ValueError(
                f"autoencoder tile={self.tile}: must be 0 or a multiple of {self.patch}, "
                f"at least {4 * self.patch}"
            )

    @property
    def patch(self) -> int:
        """Pixels of a side for each position of the packed latents."""
        return 2 ** len(self.multipliers)


# black-forest-labs: FLUX.1-Kontext-dev and FLUX.2, ae.safetensors.
AUTOENCODERS = {
    "flux1": AutoencoderConfig("flux1", latent_channels=16),
    "flux2": AutoencoderConfig("flux2", latent_channels=32),
}


class Autoencoder(nnx.Module):
    """The autoencoder of FLUX.1 or FLUX.2 (docs/design.md, section 4).

    Encoding takes the posterior's mean. 2x2 latents become channels, `(c ph pw)`: FLUX.1 scales and
    shifts the mean; FLUX.2 packs it, then normalises with stored batch-norm statistics.

    Args:
      config: sizes.
      rngs: for random initial weights.
    """

    def __init__(self, config: AutoencoderConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.patch = config.patch
        latents, count = config.latent_channels, config.num_res_blocks
        widths = [config.channels * multiplier for multiplier in config.multipliers]
        dtypes: dict[str, Any] = dict(param_dtype=config.param_dtype, dtype=config.dtype)
        self.encoder = Coder("down", 3, widths, count, 2 * latents, dtypes, rngs=rngs)
        self.decoder = Coder("up", latents, widths[::-1], count + 1, 3, dtypes, rngs=rngs)
        if config.kind == "flux2":
            linear: dict[str, Any] = dict(axes=(None, None), use_bias=True, rngs=rngs, **dtypes)
            self.quant = Linear(2 * latents, 2 * latents, **linear)
            self.post_quant = Linear(latents, latents, **linear)
            # Statistics of the training set, read from the files like weights.
            self.running_mean = nnx.Param(jnp.zeros((4 * latents,), jnp.float32))
            self.running_var = nnx.Param(jnp.ones((4 * latents,), jnp.float32))

    def encode(self, pictures: jax.Array) -> jax.Array:
        """Pictures to normalised, packed latents.

        Args:
          pictures: float32 `[batch, height, width, 3]` in [-1, 1].

        Returns:
          float32 `[batch, height/patch, width/patch, 4 * latent_channels]`.

        Raises:
          ValueError: for another shape, or a side that is not a multiple of the patch.
        """
        _check(pictures, 3, self.patch, "pictures", "pad them")
        return in_tiles(
            self._encode,
            pictures,
            largest=self.config.tile // self.patch,
            scale_in=self.patch,
            scale_out=1,
            channels=4 * self.config.latent_channels,
        )

    def decode(self, latents: jax.Array) -> jax.Array:
        """Inverse direction of `encode`; pictures are float32 and may leave [-1, 1] a little.

        Raises:
          ValueError: for another shape.
        """
        _check(latents, 4 * self.config.latent_channels, 1, "latents", "encode gives them so")
        return in_tiles(
            self._decode,
            latents,
            largest=self.config.tile // self.patch,
            scale_in=1,
            scale_out=self.patch,
            channels=3,
        )

    def _encode(self, pictures: jax.Array) -> jax.Array:
        channels = self.config.latent_channels
        moments = self.encoder(pictures.astype(self.config.dtype))
        if self.config.kind == "flux1":
            mean = moments[..., :channels].astype(jnp.float32)
            return _pack(self.config.scale * (mean - self.config.shift))
        mean = self.quant(moments, slice(0, channels)).astype(jnp.float32)
        return (_pack(mean) - self.running_mean[...]) / self._deviation()

    def _decode(self, latents: jax.Array) -> jax.Array:
        latents = latents.astype(jnp.float32)
        if self.config.kind == "flux1":
            mean = _unpack(latents) / self.config.scale + self.config.shift
        else:
            mean = self.post_quant(_unpack(latents * self._deviation() + self.running_mean[...]))
        return self.decoder(mean.astype(self.config.dtype)).astype(jnp.float32)

    def _deviation(self) -> jax.Array:
        return jnp.sqrt(self.running_var[...] + self.config.batch_norm_eps)


def _pack(latents: jax.Array) -> jax.Array:
    return rearrange(latents, "b (h p) (w q) c -> b h w (c p q)", p=2, q=2)


def _unpack(latents: jax.Array) -> jax.Array:
    return rearrange(latents, "b h w (c p q) -> b (h p) (w q) c", p=2, q=2)


def _check(array: jax.Array, channels: int, multiple: int, what: str, fix: str) -> None:
    shape = array.shape
    if len(shape) != 4 or shape[3] != channels or shape[1] % multiple or shape[2] % multiple:
        raise ValueError(
            f"{what} {shape}: expected [batch, height, width, {channels}] with sides that are "
            f"multiples of {multiple}; {fix}"
        )


class PatchAutoencoder(nnx.Module):
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
        _check(pictures, 3, self.patch, "pictures", "pad them")
        return rearrange(pictures, "b (h p) (w q) c -> b h w (p q c)", p=self.patch, q=self.patch)

    def decode(self, latents: jax.Array) -> jax.Array:
        """Inverse of `encode`."""
        return rearrange(latents, "b h w (p q c) -> b (h p) (w q) c", p=self.patch, q=self.patch)
