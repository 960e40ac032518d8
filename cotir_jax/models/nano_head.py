"""Nano's head: a small convolutional network, steered by the tokens, that corrects the pixels.

The published models leave fine detail to their autoencoder's decoder. Nano's latents are pixels and
its tokens are coarse, so this head takes the decoder's place: it reads the degraded picture `p` at
full resolution and returns a correction of it. Below, `e` is the mean of the prompt's embeddings,
`up` interpolates linearly from the tokens' grid to the pixels', so that no border between tokens
shows, and each `W` is a linear layer of its own.

1. Prompt: `u = tokens + 0.1 W e`. The prompt names what is wrong, and so what must not change; this
   is a second way for it to the tokens, besides attention.
2. Gates: `g_fine, g_colour = 2 sigmoid(up(W u / 16))`, factors from 0 to 2. That a request to
   sharpen leaves the light as it is is then one linear layer to learn.
3. Colour: `c = g_colour (M p + b)` with `M, b = up(W u)`, a 3x3 matrix and a shift for each place
   (arXiv 1707.02880).
4. Detail: `f`, by convolutions over `p` and `c` at a quarter, an eighth and again a quarter of the
   resolution. Each block is `x + conv(silu(conv((1 + scale) x + shift)))` with
   `scale, shift = up(W u)` (FiLM, arXiv 1709.07871). The network sees `c`, so that it can take it
   back where it harms, as trained weights do on nearly clean pictures (by 5 to 10 of 255).
5. Sharpening: a level at half the resolution sees `p`, `c` and `f`, and adds to `f`. A quarter's 96
   channels hold little more than the 48 values of their 4x4 pixels.
6. Floors: `c + g_fine f` is split into luma and colour, and each part is multiplied by
   `(E + r) / (E + F**2)`. `E` is its mean square over 9x9 pixels, `F = exp(W e)` its floor in grey
   levels, and `r = 0.05 min(F**2, 1)`. As in Wiener's filter, most of a part below its floor is
   taken back: who asks for a watermark's removal wants the grain of everything else left as it is,
   who asks for less noise does not, and who asks for lost colours wants no other light.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from cotir_jax.models import products
from cotir_jax.models.lora import Linear
from cotir_jax.models.presets import CoTIRConfig
from cotir_jax.parallel.sharding import keep_samples_whole

# Residual blocks at a quarter of the resolution, at an eighth with twice the channels, again at a
# quarter, and at a half with two thirds of the channels.
BLOCKS = (1, 8, 3, 4)
# Pixels of a side that the quarter level takes as channels. On a CPU, XLA reaches twice the FLOPs a
# second with 128 channels at a quarter of the resolution than with 64 at a half of it.
CELL = 4
# Adam moves every weight of a row by the learning rate: without this factor, one step at 8e-4 moves
# a token by 0.1 through the 384 channels of a prompt, and training diverges.
TEXT_SCALE = 0.1
# Likewise: without this factor, training at 1e-3 closes both gates for ever within 100 steps.
GATE_SCALE = 1 / 16
# Side in pixels of the surroundings whose correction is compared with the floor, and what is left
# of one far below a floor of one grey level; higher floors leave less, in proportion to their
# squares. With 0, both gradients vanish at initialisation and the floors never move.
FLOOR_WINDOW = 9
FLOOR_REST = 0.05
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


class SteeredBlock(nnx.Module):
    """Adds two 3x3 convolutions to its input, steered by the tokens (part 4)."""

    def __init__(self, channels: int, steering: int, *, rngs: nnx.Rngs, **linear: str):
        self.steer = Linear(steering, 2 * channels, axes=("embed", None), rngs=rngs, **linear)
        self.conv_in = _conv(channels, channels, rngs, **linear)
        # Zero start: the block begins as the identity.
        self.conv_out = _conv(channels, channels, rngs, zero_init=True, **linear)

    def __call__(self, x: jax.Array, tokens: jax.Array) -> jax.Array:
        """`[batch, height, width, channels]`, tokens `[batch, h, w, steering]`, to the same."""
        scale, shift = jnp.split(_spread(self.steer(tokens), x), 2, axis=-1)
        x = x + self.conv_out(jax.nn.silu(self.conv_in(x * (1 + scale) + shift)))
        return keep_samples_whole(x)


class NanoHead(nnx.Module):
    """Computes the correction from the picture's pixels and the transformer's image tokens.

    Args:
      config: `detail_channels` at a quarter of the resolution; tokens of `in_channels`, patches of
        `patch`.
    """

    def __init__(self, config: CoTIRConfig, *, rngs: nnx.Rngs):
        channels, steering = config.detail_channels, config.in_channels
        linear = dict(param_dtype=config.base_dtype, dtype=config.dtype)
        self.patch = config.patch
        pixels = 3 * CELL**2
        self.text = Linear(
            config.text_channels,
            steering,
            axes=("embed", None),
            zero_init=True,
            rngs=rngs,
            **linear,
        )
        self.gates = Linear(steering, 2, axes=("embed", None), zero_init=True, rngs=rngs, **linear)
        # The tokens start at zero (`FinalLayer`), so nothing is steered at first.
        self.colour = Linear(steering, 12, axes=("embed", None), rngs=rngs, **linear)
        self.conv_in = _conv(2 * pixels, channels, rngs, **linear)
        self.before = self._blocks(BLOCKS[0], channels, steering, rngs, linear)
        self.down = Linear(4 * channels, 2 * channels, axes=(None, None), rngs=rngs, **linear)
        self.within = self._blocks(BLOCKS[1], 2 * channels, steering, rngs, linear)
        self.up = Linear(2 * channels, 4 * channels, axes=(None, None), rngs=rngs, **linear)
        self.after = self._blocks(BLOCKS[2], channels, steering, rngs, linear)
        self.steer = Linear(steering, 2 * channels, axes=("embed", None), rngs=rngs, **linear)
        self.conv_out = _conv(channels, pixels, rngs, zero_init=True, **linear)
        sharp = 2 * channels // 3
        self.sharp_up = Linear(channels, 4 * sharp, axes=(None, None), rngs=rngs, **linear)
        self.sharp_in = _conv(3 * pixels // 4, sharp, rngs, **linear)
        self.sharp = self._blocks(BLOCKS[3], sharp, steering, rngs, linear)
        self.sharp_out = _conv(sharp, pixels // 4, rngs, zero_init=True, **linear)
        # Of luma and colour, one grey level at the start.
        self.floor = Linear(
            config.text_channels,
            2,
            axes=("embed", None),
            use_bias=True,
            zero_init=True,
            rngs=rngs,
            **linear,
        )

    @staticmethod
    def _blocks(count: int, channels: int, steering: int, rngs: nnx.Rngs, linear: dict) -> nnx.List:
        return nnx.List(
            [SteeredBlock(channels, steering, rngs=rngs, **linear) for _ in range(count)]
        )

    def __call__(self, condition: jax.Array, tokens: jax.Array, text: jax.Array) -> jax.Array:
        """Computes the correction, as latents.

        Args:
          condition: `[batch, h, w, 3 * patch**2]`, pixels of the degraded picture in [-1, 1].
          tokens: `[batch, h, w, in_channels]`, the transformer's output for each patch.
          text: `[batch, text_channels]`, mean of the prompt's embeddings.

        Returns:
          `[batch, h, w, 3 * patch**2]`, float32.
        """
        sides = dict(p=self.patch // CELL, q=self.patch // CELL, c=3, i=CELL, j=CELL)
        pixels = rearrange(condition, "b h w (p i q j c) -> b (h p) (w q) (i j c)", **sides)
        tokens = keep_samples_whole(tokens + TEXT_SCALE * self.text(text)[:, None, None])
        gates = _spread(self.gates(GATE_SCALE * tokens), pixels).astype(jnp.float32)
        fine_gate, colour_gate = jnp.split(2 * jax.nn.sigmoid(gates), 2, axis=-1)
        colour = colour_gate * self._colour(pixels, tokens)
        x = self.conv_in(jnp.concatenate([pixels, colour.astype(pixels.dtype)], axis=-1))
        for block in self.before:
            x = block(x, tokens)
        y = self.down(rearrange(x, "b (h p) (w q) c -> b h w (p q c)", p=2, q=2))
        for block in self.within:
            y = block(y, tokens)
        x = x + rearrange(self.up(y), "b h w (p q c) -> b (h p) (w q) c", p=2, q=2)
        for block in self.after:
            x = block(x, tokens)
        scale, shift = jnp.split(_spread(self.steer(tokens), x), 2, axis=-1)
        fine = self.conv_out(x * (1 + scale) + shift).astype(jnp.float32)
        fine = fine + self._sharpen(pixels, colour, fine, x, tokens)
        both = self._above_floor(colour + fine_gate * fine, text)
        return rearrange(both, "b (h p) (w q) (i j c) -> b h w (p i q j c)", **sides)

    def _sharpen(
        self, pixels: jax.Array, colour: jax.Array, fine: jax.Array, x: jax.Array, tokens: jax.Array
    ) -> jax.Array:
        """Returns what half the resolution adds to the fine correction (part 5)."""
        seen = jnp.concatenate([pixels, colour.astype(x.dtype), fine.astype(x.dtype)], axis=-1)
        cells = "b h w (k p i q j c) -> b (h p) (w q) (k i j c)"
        halves = dict(p=2, q=2, i=CELL // 2, j=CELL // 2)
        z = self.sharp_in(rearrange(seen, cells, k=3, **halves))
        z = z + rearrange(self.sharp_up(x), "b h w (p q c) -> b (h p) (w q) c", p=2, q=2)
        for block in self.sharp:
            z = block(z, tokens)
        added = self.sharp_out(z).astype(jnp.float32)
        return rearrange(added, "b (h p) (w q) (i j c) -> b h w (p i q j c)", **halves)

    def _above_floor(self, correction: jax.Array, text: jax.Array) -> jax.Array:
        """Scales luma and colour by `(energy + rest) / (energy + floor**2)` (part 6)."""
        sides = dict(i=CELL, j=CELL, c=3)
        values = rearrange(correction, "b h w (i j c) -> b (h i) (w j) c", **sides)
        luma = (values * jnp.array(LUMA)).sum(axis=-1, keepdims=True)
        colour = values - luma
        energy = jnp.square(colour).mean(axis=-1, keepdims=True)
        energy = jnp.concatenate([jnp.square(luma), energy], axis=-1)
        around = (FLOOR_WINDOW // 2, FLOOR_WINDOW // 2)
        energy = jnp.pad(energy, ((0, 0), around, around, (0, 0)), mode="edge")
        energy = nnx.avg_pool(nnx.avg_pool(energy, (FLOOR_WINDOW, 1)), (1, FLOOR_WINDOW))
        # A grey level is 2 / 255 of [-1, 1].
        level = 2 / 255
        floor = jnp.square(level * jnp.exp(self.floor(text).astype(jnp.float32)))[:, None, None]
        rest = FLOOR_REST * jnp.minimum(floor, level**2)
        kept = (energy + rest) / (energy + floor)
        values = kept[..., :1] * luma + kept[..., 1:] * colour
        return rearrange(values, "b (h i) (w j) c -> b h w (i j c)", **sides)

    def _colour(self, pixels: jax.Array, tokens: jax.Array) -> jax.Array:
        """Changes light and colour by a matrix and a shift for each place (part 3)."""
        matrix = _spread(self.colour(tokens), pixels).astype(jnp.float32)
        matrix = rearrange(matrix, "b h w (c d) -> b h w c d", d=4)
        colours = rearrange(pixels, "b h w (cell d) -> b h w cell d", d=3)
        changed = jnp.einsum("bhwxd,bhwcd->bhwxc", colours, matrix[..., :3])
        changed = changed + matrix[..., None, :, 3]
        return rearrange(changed, "b h w cell c -> b h w (cell c)")


def _conv(
    into: int,
    out: int,
    rngs: nnx.Rngs,
    *,
    zero_init: bool = False,
    param_dtype: str,
    dtype: str,
) -> nnx.Conv:
    init = nnx.initializers.zeros if zero_init else nnx.initializers.lecun_normal()
    return nnx.Conv(
        into,
        out,
        (3, 3),
        kernel_init=init,
        param_dtype=param_dtype,
        dtype=dtype,
        conv_general_dilated=_convolve,
        rngs=rngs,
    )


def _convolve(x: jax.Array, kernel: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
    if products.in_bfloat16():
        return products.convolution(x, kernel)
    return jax.lax.conv_general_dilated(x, kernel, *args, **kwargs)


def _spread(tokens: jax.Array, like: jax.Array) -> jax.Array:
    """Interpolates `[batch, h, w, channels]` linearly to the height and width of `like`."""
    batch, _, _, channels = tokens.shape
    return jax.image.resize(tokens, (batch, *like.shape[1:3], channels), "linear")
