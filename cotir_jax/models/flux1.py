"""The FLUX.1-family editing transformer with the CoT adapter between its halves.

All linears have biases, MLPs use GELU (tanh), every block has its own modulation, and a pooled text
vector joins timestep and guidance (docs/design.md, section 3). Blocks of a kind are stacked and
scanned.
"""

from __future__ import annotations

from typing import Any

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
    Output,
    QKNorm,
    apply_rotary,
    check_inputs,
    modulate,
    rotary_angles,
    scan_blocks,
    stack_blocks,
    timestep_embedding,
)
from cotir_jax.models.lora import Linear, lora_fields
from cotir_jax.models.presets import CoTIRConfig

Angles = tuple[jax.Array, jax.Array]


def _linear(config: CoTIRConfig) -> dict[str, Any]:
    return dict(use_bias=True, param_dtype=config.base_dtype, dtype=config.dtype)


class Stream(nnx.Module):
    """The weights of one stream (text or image) of a double block."""

    def __init__(self, config: CoTIRConfig, *, rngs: nnx.Rngs):
        hidden, linear = config.hidden_size, _linear(config)
        mlp = int(hidden * config.mlp_ratio)
        self.num_heads = config.num_heads
        self.modulation = Modulation(hidden, 6, rngs=rngs, **linear)
        self.qkv = Linear(hidden, 3 * hidden, rngs=rngs, **linear)
        self.norm = QKNorm(config.head_dim, param_type=nnx.Param, param_dtype=config.base_dtype)
        self.proj = Linear(hidden, hidden, axes=("mlp", "embed"), rngs=rngs, **linear)
        self.mlp_in = Linear(hidden, mlp, rngs=rngs, **linear)
        self.mlp_out = Linear(mlp, hidden, axes=("mlp", "embed"), rngs=rngs, **linear)

    def project(self, x: jax.Array, modulation: tuple[jax.Array, ...], angles: Angles) -> tuple:
        shift, scale, _ = modulation[:3]
        query, key, value = rearrange(
            self.qkv(modulate(x, shift, scale)),
            "b n (qkv h d) -> qkv b n h d",
            qkv=3,
            h=self.num_heads,
        )
        query = apply_rotary(self.norm.query(query), angles)
        return query, apply_rotary(self.norm.key(key), angles), value

    def finish(
        self, x: jax.Array, attended: jax.Array, modulation: tuple[jax.Array, ...]
    ) -> jax.Array:
        _, _, attention_gate, shift, scale, mlp_gate = modulation
        x = x + attention_gate * self.proj(attended)
        return x + mlp_gate * self.mlp_out(jax.nn.gelu(self.mlp_in(modulate(x, shift, scale))))


class DoubleBlock(nnx.Module):
    """Text and image streams with their own weights and joint attention, text rows first."""

    def __init__(self, config: CoTIRConfig, *, rngs: nnx.Rngs):
        self.image = Stream(config, rngs=rngs)
        self.text = Stream(config, rngs=rngs)

    def __call__(
        self,
        streams: tuple[jax.Array, jax.Array],
        conditioning_vector: jax.Array,
        angles: tuple[Angles, Angles],
    ) -> tuple[jax.Array, jax.Array]:
        text, image = streams
        text_modulation = self.text.modulation(conditioning_vector)
        image_modulation = self.image.modulation(conditioning_vector)
        from_text = self.text.project(text, text_modulation, angles[0])
        from_image = self.image.project(image, image_modulation, angles[1])
        attended = attention(
            *(jnp.concatenate(pair, axis=1) for pair in zip(from_text, from_image, strict=True))
        )
        count = text.shape[1]
        return (
            self.text.finish(text, attended[:, :count], text_modulation),
            self.image.finish(image, attended[:, count:], image_modulation),
        )


class SingleBlock(nnx.Module):
    """Attention and MLP side by side on all rows; linear1 packs q, k, v, MLP input."""

    def __init__(self, config: CoTIRConfig, *, rngs: nnx.Rngs):
        hidden = config.hidden_size
        mlp = int(hidden * config.mlp_ratio)
        linear = lora_fields(config) | _linear(config)
        self.hidden_size, self.num_heads = hidden, config.num_heads
        self.modulation = Modulation(hidden, 3, rngs=rngs, **linear)
        self.linear1 = Linear(hidden, 3 * hidden + mlp, rngs=rngs, **linear)
        self.linear2 = Linear(hidden + mlp, hidden, axes=("mlp", "embed"), rngs=rngs, **linear)
        self.norm = QKNorm(config.head_dim, param_type=nnx.Param, param_dtype=config.base_dtype)

    def __call__(self, x: jax.Array, conditioning_vector: jax.Array, angles: Angles) -> jax.Array:
        return self.rows(x, conditioning_vector, angles, slice(None))

    def rows(
        self, x: jax.Array, conditioning_vector: jax.Array, angles: Angles, rows: slice
    ) -> jax.Array:
        """The block's output for some rows: keys and values are computed for all of them."""
        hidden = self.hidden_size
        shift, scale, gate = self.modulation(conditioning_vector)
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
        update = self.linear2(jnp.concatenate([attended, jax.nn.gelu(mlp)], axis=-1))
        return x[:, rows] + gate * update


class Flux1(nnx.Module):
    """FLUX.1-family transformer with CoT adapter and LoRA on single blocks and final layer."""

    def __init__(self, config: CoTIRConfig, *, rngs: nnx.Rngs):
        hidden, linear = config.hidden_size, _linear(config)
        inward = dict(axes=(None, "embed"), rngs=rngs, **linear)
        self.config = config
        self.img_in = Linear(config.in_channels, hidden, **inward)
        self.txt_in = Linear(config.text_channels, hidden, **inward)
        self.time_in = MLPEmbedder(256, hidden, rngs=rngs, **linear)
        self.vector_in = MLPEmbedder(config.pooled_channels, hidden, rngs=rngs, **linear)
        self.guidance_in = (
            MLPEmbedder(256, hidden, rngs=rngs, **linear) if config.guidance_embed else None
        )
        self.double_blocks = stack_blocks(
            lambda rngs: DoubleBlock(config, rngs=rngs), config.num_double_blocks, rngs
        )
        self.cot_adapter = CoTAdapter(config, rngs=rngs) if config.adapter_depth else None
        self.single_blocks = stack_blocks(
            lambda rngs: SingleBlock(config, rngs=rngs), config.num_single_blocks - 1, rngs
        )
        # Not in the stack, because it computes only the rows that are used.
        self.last_single_block = SingleBlock(config, rngs=rngs)
        self.final_layer = FinalLayer(
            hidden, config.in_channels, zero_init=True, rngs=rngs, **linear, **lora_fields(config)
        )

    def __call__(
        self,
        image_tokens: jax.Array,
        image_ids: jax.Array,
        text_embeddings: jax.Array,
        text_ids: jax.Array,
        timestep: jax.Array,
        guidance: jax.Array | None = None,
        pooled_text: jax.Array | None = None,
        *,
        output_rows: int | None = None,
        with_thoughts: bool = True,
    ) -> Output:
        """One forward pass over [target, condition] image tokens.

        Args:
          image_tokens: `[batch, image_tokens, in_channels]`.
          image_ids: `[batch, image_tokens, 3]`.
          text_embeddings: of T5, `[batch, text_tokens, text_channels]`.
          text_ids: `[batch, text_tokens, 3]`.
          timestep: `[batch]`, in [0, 1], 1 = noise.
          guidance: `[batch]`, for models with a guidance embedding.
          pooled_text: of CLIP, `[batch, pooled_channels]`.
          output_rows: leading image rows to compute the output for; None is all of them.
          with_thoughts: whether the thoughts are predicted too.

        Returns:
          `Output`; `image` is `[batch, output_rows, in_channels]`, thoughts
          `[batch, text_tokens, text_channels]`, in the compute dtype.

        Raises:
          ValueError: for shapes that do not fit the model.
        """
        config, dtype = self.config, self.config.dtype
        check_inputs(config, image_tokens, text_embeddings, guidance)
        if pooled_text is None or pooled_text.shape[1:] != (config.pooled_channels,):
            got = None if pooled_text is None else pooled_text.shape
            raise ValueError(f"pooled text {got}: expected [batch, {config.pooled_channels}]")
        vector = self.time_in(timestep_embedding(timestep))
        if self.guidance_in is not None:
            vector = vector + self.guidance_in(timestep_embedding(guidance))
        vector = vector + self.vector_in(pooled_text.astype(dtype))
        text_angles, image_angles = (
            rotary_angles(ids, config.axes_dim, config.theta, config.position_dtype)
            for ids in (text_ids, image_ids)
        )
        angles = jax.tree.map(
            lambda a, b: jnp.concatenate([a, b], axis=1), text_angles, image_angles
        )
        text, image = scan_blocks(
            self.double_blocks,
            (self.txt_in(text_embeddings.astype(dtype)), self.img_in(image_tokens.astype(dtype))),
            vector,
            (text_angles, image_angles),
            remat=config.remat,
        )
        thoughts = None
        if self.cot_adapter is not None:
            residual, thoughts = self.cot_adapter(text, image, vector, angles, with_thoughts)
            text = text + residual
        x = jnp.concatenate([text, image], axis=1)
        x = scan_blocks(self.single_blocks, x, vector, angles, remat=config.remat)
        first = text.shape[1]
        last = x.shape[1] if output_rows is None else first + output_rows
        x = self.last_single_block.rows(x, vector, angles, slice(first, last))
        return Output(self.final_layer(x, vector), *(thoughts or (None, None, None)))


def image_position_ids(height: int, width: int) -> tuple[jax.Array, jax.Array]:
    """Ids (index, y, x) of target tokens and of condition tokens, each `[height * width, 3]`."""
    y, x = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")
    target, condition = (
        rearrange(jnp.stack([jnp.full_like(y, index), y, x], axis=-1), "h w axes -> (h w) axes")
        for index in (0, 1)
    )
    return target, condition


def text_position_ids(tokens: int) -> jax.Array:
    """Ids of text tokens, all zero: `[tokens, 3]`; T5's embeddings carry the order."""
    return jnp.zeros((tokens, 3), jnp.int32)
