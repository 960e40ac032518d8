"""The FLUX.2-family editing transformer with the CoT adapter between its halves (SPEC section 3).

No biases, SwiGLU MLPs, one modulation per kind of block shared by all blocks of that kind. Blocks
of a kind are stacked and scanned, so compile time does not grow with depth.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from cotir_jax.models.adapter import CoTAdapter
from cotir_jax.models.attention import attention
from cotir_jax.models.layers import (
    FinalLayer,
    MLPEmbedder,
    Modulation,
    QKNorm,
    apply_rotary,
    modulate,
    rotary_angles,
    scan_blocks,
    stack_blocks,
    timestep_embedding,
)
from cotir_jax.models.lora import Linear
from cotir_jax.models.presets import CoTIRConfig

Angles = tuple[jax.Array, jax.Array]
Modulations = tuple[jax.Array, ...]

# Time coordinate of the condition's tokens; target tokens are at 0 (SPEC section 3).
CONDITION_TIME = 10

# Below this timestep a clean-picture estimate no longer fixes the velocity: (x_t - x) / t.
MIN_TIMESTEP = 0.05


class Output(NamedTuple):
    """What the transformer computes: image output and the three predicted thoughts (or None)."""

    image: jax.Array
    scene: jax.Array | None
    degradation: jax.Array | None
    plan: jax.Array | None


def _linear(config: CoTIRConfig) -> dict[str, Any]:
    return dict(param_dtype=config.base_dtype, dtype=config.dtype)


def _swiglu(x: jax.Array) -> jax.Array:
    gate, value = jnp.split(x, 2, axis=-1)
    return jax.nn.silu(gate) * value


class Stream(nnx.Module):
    """The weights of one stream (text or image) of a double block."""

    def __init__(self, config: CoTIRConfig, *, rngs: nnx.Rngs):
        hidden, linear = config.hidden_size, _linear(config)
        mlp = int(hidden * config.mlp_ratio)
        self.num_heads = config.num_heads
        self.qkv = Linear(hidden, 3 * hidden, rngs=rngs, **linear)
        self.norm = QKNorm(config.head_dim, param_type=nnx.Param, param_dtype=config.base_dtype)
        self.proj = Linear(hidden, hidden, axes=("mlp", "embed"), rngs=rngs, **linear)
        self.mlp_in = Linear(hidden, 2 * mlp, rngs=rngs, **linear)
        self.mlp_out = Linear(mlp, hidden, axes=("mlp", "embed"), rngs=rngs, **linear)

    def project(self, x: jax.Array, modulation: Modulations, angles: Angles) -> tuple:
        shift, scale, _ = modulation[:3]
        query, key, value = rearrange(
            self.qkv(modulate(x, shift, scale)),
            "b n (qkv h d) -> qkv b n h d",
            qkv=3,
            h=self.num_heads,
        )
        query = apply_rotary(self.norm.query(query), angles)
        return query, apply_rotary(self.norm.key(key), angles), value

    def finish(self, x: jax.Array, attended: jax.Array, modulation: Modulations) -> jax.Array:
        _, _, attention_gate, shift, scale, mlp_gate = modulation
        x = x + attention_gate * self.proj(attended)
        return x + mlp_gate * self.mlp_out(_swiglu(self.mlp_in(modulate(x, shift, scale))))


class DoubleBlock(nnx.Module):
    """Text and image streams with their own weights and joint attention, text rows first."""

    def __init__(self, config: CoTIRConfig, *, rngs: nnx.Rngs):
        self.image = Stream(config, rngs=rngs)
        self.text = Stream(config, rngs=rngs)

    def __call__(
        self,
        streams: tuple[jax.Array, jax.Array],
        modulations: tuple[Modulations, Modulations],
        angles: tuple[Angles, Angles],
    ) -> tuple[jax.Array, jax.Array]:
        text, image = streams
        from_text = self.text.project(text, modulations[0], angles[0])
        from_image = self.image.project(image, modulations[1], angles[1])
        attended = attention(
            *(jnp.concatenate(pair, axis=1) for pair in zip(from_text, from_image, strict=True))
        )
        count = text.shape[1]
        return (
            self.text.finish(text, attended[:, :count], modulations[0]),
            self.image.finish(image, attended[:, count:], modulations[1]),
        )


class SingleBlock(nnx.Module):
    """Attention and MLP side by side on all rows; linear1 packs q, k, v, MLP input."""

    def __init__(self, config: CoTIRConfig, *, rngs: nnx.Rngs):
        hidden = config.hidden_size
        mlp = int(hidden * config.mlp_ratio)
        linear = dict(rank=config.lora_rank, scale=config.lora_scale, **_linear(config))
        self.hidden_size, self.num_heads = hidden, config.num_heads
        self.linear1 = Linear(hidden, 3 * hidden + 2 * mlp, rngs=rngs, **linear)
        self.linear2 = Linear(hidden + mlp, hidden, axes=("mlp", "embed"), rngs=rngs, **linear)
        self.norm = QKNorm(config.head_dim, param_type=nnx.Param, param_dtype=config.base_dtype)

    def __call__(self, x: jax.Array, modulation: Modulations, angles: Angles) -> jax.Array:
        return self.rows(x, modulation, angles, slice(None))

    def rows(self, x: jax.Array, modulation: Modulations, angles: Angles, rows: slice) -> jax.Array:
        """The block's output for some rows: keys and values are computed for all of them."""
        hidden = self.hidden_size
        shift, scale, gate = modulation
        x_in = modulate(x, shift, scale)
        cos, sin = angles
        if rows == slice(None):
            query, key_value, mlp = jnp.split(self.linear1(x_in), [hidden, 3 * hidden], axis=-1)
        else:
            key_value = self.linear1(x_in, columns=slice(hidden, 3 * hidden))
            query = self.linear1(x_in[:, rows], columns=slice(0, hidden))
            mlp = self.linear1(x_in[:, rows], columns=slice(3 * hidden, None))
        query = rearrange(query, "b n (h d) -> b n h d", h=self.num_heads)
        key, value = rearrange(key_value, "b n (kv h d) -> kv b n h d", kv=2, h=self.num_heads)
        query = apply_rotary(self.norm.query(query), (cos[:, rows], sin[:, rows]))
        attended = attention(query, apply_rotary(self.norm.key(key), angles), value)
        update = self.linear2(jnp.concatenate([attended, _swiglu(mlp)], axis=-1))
        return x[:, rows] + gate * update


class Flux2(nnx.Module):
    """FLUX.2-family transformer with CoT adapter and LoRA on single blocks and final layer."""

    def __init__(self, config: CoTIRConfig, *, rngs: nnx.Rngs):
        hidden, linear = config.hidden_size, _linear(config)
        lora = dict(rank=config.lora_rank, scale=config.lora_scale)
        self.config = config
        self.img_in = Linear(config.in_channels, hidden, axes=(None, "embed"), rngs=rngs, **linear)
        self.txt_in = Linear(
            config.text_channels, hidden, axes=(None, "embed"), rngs=rngs, **linear
        )
        self.time_in = MLPEmbedder(256, hidden, rngs=rngs, **linear)
        self.guidance_in = (
            MLPEmbedder(256, hidden, rngs=rngs, **linear) if config.guidance_embed else None
        )
        self.image_modulation = Modulation(hidden, 6, rngs=rngs, **linear)
        self.text_modulation = Modulation(hidden, 6, rngs=rngs, **linear)
        self.single_modulation = Modulation(hidden, 3, rngs=rngs, **linear)
        self.double_blocks = stack_blocks(
            lambda rngs: DoubleBlock(config, rngs=rngs), config.num_double_blocks, rngs
        )
        self.cot_adapter = CoTAdapter(config, rngs=rngs)
        self.single_blocks = stack_blocks(
            lambda rngs: SingleBlock(config, rngs=rngs), config.num_single_blocks - 1, rngs
        )
        # Apart from the stack, because it computes only the rows that are used.
        self.last_single_block = SingleBlock(config, rngs=rngs)
        self.final_layer = FinalLayer(
            hidden, config.in_channels, zero_init=True, rngs=rngs, **linear, **lora
        )

    def __call__(
        self,
        image_tokens: jax.Array,
        image_ids: jax.Array,
        text_embeddings: jax.Array,
        text_ids: jax.Array,
        timestep: jax.Array,
        guidance: jax.Array | None = None,
        *,
        output_rows: int | None = None,
        with_thoughts: bool = True,
    ) -> Output:
        """One forward pass over [target, condition] image tokens.

        Args:
          image_tokens: `[batch, image_tokens, in_channels]`.
          image_ids: `[batch, image_tokens, 4]`.
          text_embeddings: `[batch, text_tokens, text_channels]`.
          text_ids: `[batch, text_tokens, 4]`.
          timestep: `[batch]`, in [0, 1], 1 = noise.
          guidance: `[batch]`, for models with a guidance embedding.
          output_rows: leading image rows to compute the output for; None is all of them.
          with_thoughts: whether the thoughts are predicted too.

        Returns:
          `Output`; `image` is `[batch, output_rows, in_channels]`, thoughts
          `[batch, text_tokens, text_channels]`, in the compute dtype.

        Raises:
          ValueError: for shapes that do not fit the model.
        """
        self._check(image_tokens, text_embeddings, guidance)
        config, dtype = self.config, self.config.dtype
        vector = self.time_in(timestep_embedding(timestep))
        if self.guidance_in is not None:
            vector = vector + self.guidance_in(timestep_embedding(guidance))
        ids = (text_ids, image_ids)
        text_angles, image_angles = (
            rotary_angles(x, config.axes_dim, config.theta, config.position_dtype) for x in ids
        )
        angles = jax.tree.map(
            lambda a, b: jnp.concatenate([a, b], axis=1), text_angles, image_angles
        )
        text, image = scan_blocks(
            self.double_blocks,
            (self.txt_in(text_embeddings.astype(dtype)), self.img_in(image_tokens.astype(dtype))),
            (self.text_modulation(vector), self.image_modulation(vector)),
            (text_angles, image_angles),
            remat=config.remat,
        )
        residual, thoughts = self.cot_adapter(text, image, vector, angles, with_thoughts)
        modulation = self.single_modulation(vector)
        x = jnp.concatenate([text + residual, image], axis=1)
        x = scan_blocks(self.single_blocks, x, modulation, angles, remat=config.remat)
        first = text.shape[1]
        last = x.shape[1] if output_rows is None else first + output_rows
        x = self.last_single_block.rows(x, modulation, angles, slice(first, last))
        return Output(self.final_layer(x, vector), *(thoughts or (None, None, None)))

    def predict(
        self,
        noisy_latents: jax.Array,
        condition: jax.Array,
        text_embeddings: jax.Array,
        timestep: jax.Array,
        guidance: jax.Array | None = None,
        *,
        with_thoughts: bool = True,
    ) -> Output:
        """Velocity at `timestep` for a grid of latents, with the standard position ids.

        With `prediction="correction"` the clean estimate is `x = condition + output` and the
        velocity is `(x_t - x) / t`. The output is summed over the target row and the condition
        row of the same place: at t = 1 a target row holds noise alone, while the condition row
        holds what is to be corrected, so nothing has to be copied by attention first.

        Args:
          noisy_latents: `[batch, height, width, in_channels]`, x_t.
          condition: `[batch, height, width, in_channels]`, latents of the degraded picture.
          text_embeddings: `[batch, text_tokens, text_channels]`.
          timestep: `[batch]`.
          guidance: `[batch]` or None.
          with_thoughts: whether the thoughts are predicted too.

        Returns:
          `Output`; `image` is the velocity `[batch, height, width, in_channels]`, float32.
        """
        batch, height, width, _ = noisy_latents.shape
        if condition.shape != noisy_latents.shape:
            raise ValueError(
                f"condition {condition.shape} and latents {noisy_latents.shape} must be equal"
            )
        corrects = self.config.prediction == "correction"
        tokens = jnp.concatenate([noisy_latents, condition], axis=1)
        count = height * width
        out = self(
            rearrange(tokens, "b h w c -> b (h w) c"),
            jnp.broadcast_to(image_position_ids(height, width), (batch, 2 * count, 4)),
            text_embeddings,
            jnp.broadcast_to(
                text_position_ids(text_embeddings.shape[1]), (batch, text_embeddings.shape[1], 4)
            ),
            timestep,
            guidance,
            output_rows=None if corrects else count,
            with_thoughts=with_thoughts,
        )
        image = out.image.astype(jnp.float32)
        if corrects:
            image = image[:, :count] + image[:, count:]
        image = rearrange(image, "b (h w) c -> b h w c", h=height)
        if corrects:
            time = jnp.maximum(timestep.astype(jnp.float32), MIN_TIMESTEP)[:, None, None, None]
            image = (noisy_latents - condition - image) / time
        return out._replace(image=image)

    def _check(self, image_tokens: jax.Array, text: jax.Array, guidance: jax.Array | None) -> None:
        config = self.config
        if image_tokens.ndim != 3 or image_tokens.shape[-1] != config.in_channels:
            raise ValueError(
                f"image tokens {image_tokens.shape}: expected [batch, tokens, {config.in_channels}]"
            )
        if text.ndim != 3 or text.shape[-1] != config.text_channels:
            raise ValueError(
                f"text embeddings {text.shape}: expected [batch, tokens, {config.text_channels}]; "
                f"is this the text encoder of {config.name}?"
            )
        if config.guidance_embed and guidance is None:
            raise ValueError(f"{config.name} has a guidance embedding: pass guidance [batch]")


def image_position_ids(height: int, width: int) -> jax.Array:
    """Ids (t, y, x, l) of target tokens, then condition tokens: `[2 * height * width, 4]`."""
    y, x = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")
    zero = jnp.zeros_like(y)
    parts = [jnp.stack([zero + time, y, x, zero], axis=-1) for time in (0, CONDITION_TIME)]
    return rearrange(jnp.stack(parts), "part h w axes -> (part h w) axes")


def text_position_ids(tokens: int) -> jax.Array:
    """Ids (0, 0, 0, l) of text tokens: `[tokens, 4]`."""
    return jnp.zeros((tokens, 4), jnp.int32).at[:, 3].set(jnp.arange(tokens))
