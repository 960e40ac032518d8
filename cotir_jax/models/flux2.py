"""The FLUX.2-family editing transformer with the CoT adapter between its halves.

Linears have no biases, MLPs use SwiGLU, and all blocks of a kind share one modulation
(docs/design.md, section 3). Blocks of a kind are stacked and scanned, so compile time does not grow
with depth.

In klein-9b-kv (`reference_cache`) condition rows attend only to themselves and are modulated for
timestep 0, so nothing about them depends on text, target or sampling step. `Flux2.reference`
computes their keys and values once; the blocks then run only on text and target rows.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from cotir_jax.models.adapter import CoTAdapter
from cotir_jax.models.blocks import Angles, DoubleBlock, KeyValue, SingleBlock, base_linear
from cotir_jax.models.layers import (
    FinalLayer,
    MLPEmbedder,
    Modulation,
    Output,
    check_inputs,
    collect_blocks,
    rotary_angles,
    scan_blocks,
    stack_blocks,
    timestep_embedding,
)
from cotir_jax.models.lora import Linear, lora_fields
from cotir_jax.models.nano_head import NanoHead
from cotir_jax.models.presets import CoTIRConfig

# Time coordinate of the condition's tokens; target tokens are at 0 (docs/design.md, section 3).
CONDITION_TIME = 10


class Reference(NamedTuple):
    """Keys and values of the condition's rows in every kind of block."""

    double: KeyValue
    adapter: KeyValue
    single: KeyValue
    last: KeyValue


class Flux2(nnx.Module):
    """FLUX.2-family transformer with CoT adapter and LoRA on single blocks and final layer."""

    def __init__(self, config: CoTIRConfig, *, rngs: nnx.Rngs):
        hidden, linear = config.hidden_size, base_linear(config)
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
