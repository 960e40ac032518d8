"""The FLUX.2-family editing transformer with the CoT adapter between its halves.

Linears have no biases, MLPs use SwiGLU, and all blocks of a kind share one modulation
(docs/design.md, section 3). Blocks of a kind are stacked and scanned, so compile time does not grow
with depth.

In klein-9b-kv (`reference_cache`) condition rows attend only to themselves and are modulated for
timestep 0, so nothing about them depends on text, target or sampling step. `Flux2.reference`
computes their keys and values once; the blocks then run only on text and target rows.
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
    Output,
    QKNorm,
    apply_rotary,
    check_inputs,
    collect_blocks,
    modulate,
    rotary_angles,
    scan_blocks,
    stack_blocks,
    timestep_embedding,
)
from cotir_jax.models.lora import Linear, lora_fields
from cotir_jax.models.nano_head import NanoHead
from cotir_jax.models.presets import CoTIRConfig

Angles = tuple[jax.Array, jax.Array]
Modulations = tuple[jax.Array, ...]
# Keys and values `[batch, tokens, heads, head_dim]`, of stacked blocks with a leading layers axis.
KeyValue = tuple[jax.Array, jax.Array]

# Time coordinate of the condition's tokens; target tokens are at 0 (docs/design.md, section 3).
CONDITION_TIME = 10


class Reference(NamedTuple):
    """Keys and values of the condition's rows in every kind of block."""

    double: KeyValue
    adapter: KeyValue
    single: KeyValue
    last: KeyValue


def _linear(config: CoTIRConfig) -> dict[str, Any]:
    return dict(param_dtype=config.base_dtype, dtype=config.dtype)


def _swiglu(x: jax.Array) -> jax.Array:
    gate, value = jnp.split(x, 2, axis=-1)
    return jax.nn.silu(gate) * value


def _joined(*parts: KeyValue) -> KeyValue:
    """Rows of several key-value pairs, one after the other."""
    keys, values = zip(*parts, strict=True)
    return jnp.concatenate(keys, axis=1), jnp.concatenate(values, axis=1)


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

    def project(
        self, x: jax.Array, modulation: Modulations, angles: Angles
    ) -> tuple[jax.Array, KeyValue]:
        shift, scale, _ = modulation[:3]
        query, key, value = rearrange(
            self.qkv(modulate(x, shift, scale)),
            "b n (qkv h d) -> qkv b n h d",
            qkv=3,
            h=self.num_heads,
        )
        query = apply_rotary(self.norm.query(query), angles)
        return query, (apply_rotary(self.norm.key(key), angles), value)

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
        *cached: KeyValue,
    ) -> tuple[jax.Array, jax.Array]:
        text, image = streams
        text_query, text_kv = self.text.project(text, modulations[0], angles[0])
        image_query, image_kv = self.image.project(image, modulations[1], angles[1])
        query = jnp.concatenate([text_query, image_query], axis=1)
        attended = attention(query, *_joined(text_kv, image_kv, *cached))
        count = text.shape[1]
        return (
            self.text.finish(text, attended[:, :count], modulations[0]),
            self.image.finish(image, attended[:, count:], modulations[1]),
        )

    def reference(
        self, image: jax.Array, modulation: Modulations, angles: Angles
    ) -> tuple[jax.Array, KeyValue]:
        """Runs image rows that see only themselves; returns them, and their keys and values."""
        query, key_value = self.image.project(image, modulation, angles)
        return self.image.finish(image, attention(query, *key_value), modulation), key_value


class SingleBlock(nnx.Module):
    """Attention and MLP side by side on all rows; linear1 packs q, k, v, MLP input."""

    def __init__(self, config: CoTIRConfig, *, rngs: nnx.Rngs):
        hidden = config.hidden_size
        mlp = int(hidden * config.mlp_ratio)
        linear = lora_fields(config) | _linear(config)
        self.hidden_size, self.num_heads = hidden, config.num_heads
        self.linear1 = Linear(hidden, 3 * hidden + 2 * mlp, rngs=rngs, **linear)
        self.linear2 = Linear(hidden + mlp, hidden, axes=("mlp", "embed"), rngs=rngs, **linear)
        self.norm = QKNorm(config.head_dim, param_type=nnx.Param, param_dtype=config.base_dtype)

    def __call__(
        self, x: jax.Array, modulation: Modulations, angles: Angles, *cached: KeyValue
    ) -> jax.Array:
        return self.rows(x, modulation, angles, slice(None), *cached)

    def rows(
        self,
        x: jax.Array,
        modulation: Modulations,
        angles: Angles,
        rows: slice,
        *cached: KeyValue,
    ) -> jax.Array:
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
        query = apply_rotary(self.norm.query(query), (cos[:, rows], sin[:, rows]))
        attended = attention(query, *_joined(self._key_value(key_value, angles), *cached))
        update = self.linear2(jnp.concatenate([attended, _swiglu(mlp)], axis=-1))
        return x[:, rows] + gate * update

    def _key_value(self, projected: jax.Array, angles: Angles) -> KeyValue:
        key, value = rearrange(projected, "b n (kv h d) -> kv b n h d", kv=2, h=self.num_heads)
        return apply_rotary(self.norm.key(key), angles), value

    def reference(
        self, x: jax.Array, modulation: Modulations, angles: Angles
    ) -> tuple[jax.Array, KeyValue]:
        """Runs rows that attend only to themselves; returns them, and their keys and values."""
        return self(x, modulation, angles), self.key_value(x, modulation, angles)

    def key_value(self, x: jax.Array, modulation: Modulations, angles: Angles) -> KeyValue:
        """Keys and values of all rows."""
        shift, scale, _ = modulation
        columns = slice(self.hidden_size, 3 * self.hidden_size)
        return self._key_value(self.linear1(modulate(x, shift, scale), columns), angles)


class Flux2(nnx.Module):
    """FLUX.2-family transformer with CoT adapter and LoRA on single blocks and final layer."""

    def __init__(self, config: CoTIRConfig, *, rngs: nnx.Rngs):
        hidden, linear = config.hidden_size, _linear(config)
        lora = lora_fields(config)
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
        self.cot_adapter = CoTAdapter(config, rngs=rngs) if config.adapter_depth else None
        self.single_blocks = stack_blocks(
            lambda rngs: SingleBlock(config, rngs=rngs), config.num_single_blocks - 1, rngs
        )
        # Not in the stack, because it computes only the rows that are used.
        self.last_single_block = SingleBlock(config, rngs=rngs)
        self.final_layer = FinalLayer(
            hidden, config.in_channels, zero_init=True, rngs=rngs, **linear, **lora
        )
        # Not part of a forward pass over rows: `transformer.predict` calls it.
        self.detail = NanoHead(config, rngs=rngs) if config.detail_channels else None

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
        reference: Reference | None = None,
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
          reference: the condition's keys and values; the image tokens are then only the target's.

        Returns:
          `Output`; `image` is `[batch, output_rows, in_channels]`, thoughts
          `[batch, text_tokens, text_channels]`, in the compute dtype.

        Raises:
          ValueError: for shapes that do not fit the model.
        """
        check_inputs(config := self.config, image_tokens, text_embeddings, guidance)
        dtype = config.dtype
        vector = self._conditioning_vector(timestep, guidance)
        text_angles, image_angles = self._angles(text_ids), self._angles(image_ids)
        angles = jax.tree.map(
            lambda a, b: jnp.concatenate([a, b], axis=1), text_angles, image_angles
        )
        cached = reference or Reference(None, None, None, None)
        text, image = scan_blocks(
            self.double_blocks,
            (self.txt_in(text_embeddings.astype(dtype)), self.img_in(image_tokens.astype(dtype))),
            (self.text_modulation(vector), self.image_modulation(vector)),
            (text_angles, image_angles),
            remat=config.remat,
            per_layer=cached.double,
        )
        thoughts = None
        if self.cot_adapter is not None:
            residual, thoughts = self.cot_adapter(
                text, image, vector, angles, with_thoughts, cached.adapter
            )
            text = text + residual
        modulation = self.single_modulation(vector)
        x = jnp.concatenate([text, image], axis=1)
        x = scan_blocks(
            self.single_blocks, x, modulation, angles, remat=config.remat, per_layer=cached.single
        )
        first = text.shape[1]
        last = x.shape[1] if output_rows is None else first + output_rows
        rest = () if reference is None else (reference.last,)
        x = self.last_single_block.rows(x, modulation, angles, slice(first, last), *rest)
        return Output(self.final_layer(x, vector), *(thoughts or (None, None, None)))

    def reference(
        self, image_tokens: jax.Array, image_ids: jax.Array, guidance: jax.Array | None = None
    ) -> Reference:
        """Keys and values of condition rows that see only themselves, at timestep 0.

        Args:
          image_tokens: the condition's, `[batch, tokens, in_channels]`.
          image_ids: `[batch, tokens, 4]`.
          guidance: as for a forward pass.
        """
        vector = self._conditioning_vector(jnp.zeros(image_tokens.shape[:1]), guidance)
        angles = self._angles(image_ids)
        x = self.img_in(image_tokens.astype(self.config.dtype))
        x, double = collect_blocks(self.double_blocks, x, self.image_modulation(vector), angles)
        adapter = self.cot_adapter and self.cot_adapter.reference(x, vector, angles)
        modulation = self.single_modulation(vector)
        x, single = collect_blocks(self.single_blocks, x, modulation, angles)
        last = self.last_single_block.key_value(x, modulation, angles)
        return Reference(double, adapter, single, last)

    def _conditioning_vector(self, timestep: jax.Array, guidance: jax.Array | None) -> jax.Array:
        vector = self.time_in(timestep_embedding(timestep))
        if self.guidance_in is not None:
            vector = vector + self.guidance_in(timestep_embedding(guidance))
        return vector

    def _angles(self, ids: jax.Array) -> Angles:
        config = self.config
        return rotary_angles(ids, config.axes_dim, config.theta, config.position_dtype)


def image_position_ids(height: int, width: int) -> tuple[jax.Array, jax.Array]:
    """Ids (t, y, x, l) of target tokens and of condition tokens, each `[height * width, 4]`."""
    y, x = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")
    zero = jnp.zeros_like(y)
    target, condition = (
        rearrange(jnp.stack([zero + time, y, x, zero], axis=-1), "h w axes -> (h w) axes")
        for time in (0, CONDITION_TIME)
    )
    return target, condition


def text_position_ids(tokens: int) -> jax.Array:
    """Ids (0, 0, 0, l) of text tokens: `[tokens, 4]`."""
    return jnp.zeros((tokens, 4), jnp.int32).at[:, 3].set(jnp.arange(tokens))
