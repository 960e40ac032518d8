"""The editing transformer of both families, with the CoT adapter between its halves.

`blocks` says how the families' blocks differ. Besides that, FLUX.1 adds a pooled text vector to
timestep and guidance, and FLUX.2 computes the modulations that its blocks share (docs/design.md,
section 3). Blocks of a kind are stacked and scanned, so compile time does not grow with depth.

In klein-9b-kv (`reference_cache`) condition rows attend only to themselves and are modulated for
timestep 0, so nothing about them depends on text, target or sampling step. `Transformer.reference`
computes their keys and values once; the blocks then run only on text and target rows.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from cotir_jax.models.adapter import CoTAdapter
from cotir_jax.models.blocks import (
    Angles,
    DoubleBlock,
    KeyValue,
    SingleBlock,
    base_linear,
    modulated,
)
from cotir_jax.models.layers import (
    FinalLayer,
    MLPEmbedder,
    Modulation,
    collect_blocks,
    rotary_angles,
    scan_blocks,
    stack_blocks,
    timestep_embedding,
)
from cotir_jax.models.lora import Linear, lora_fields
from cotir_jax.models.nano_head import NanoHead
from cotir_jax.models.presets import CoTIRConfig

# First coordinate of the condition's tokens; target tokens are at 0 (docs/design.md, section 3).
CONDITION_INDEX = {"flux1": 1, "flux2": 10}


class Output(NamedTuple):
    """What a transformer computes: the velocity and the three predicted thoughts (or None)."""

    velocity: jax.Array
    scene: jax.Array | None
    degradation: jax.Array | None
    plan: jax.Array | None


class Reference(NamedTuple):
    """Keys and values of the condition's rows in every kind of block."""

    double: KeyValue
    adapter: KeyValue
    single: KeyValue
    last: KeyValue


class Transformer(nnx.Module):
    """A FLUX transformer with CoT adapter and LoRA on single blocks and final layer."""

    def __init__(self, config: CoTIRConfig, *, rngs: nnx.Rngs):
        hidden, linear = config.hidden_size, base_linear(config) | {"rngs": rngs}
        inward: dict[str, Any] = linear | {"axes": (None, "embed")}
        flux1 = config.family == "flux1"
        self.config = config
        self.img_in = Linear(config.in_channels, hidden, **inward)
        self.txt_in = Linear(config.text_channels, hidden, **inward)
        self.time_in = MLPEmbedder(256, hidden, **linear)
        self.vector_in = MLPEmbedder(config.pooled_channels, hidden, **linear) if flux1 else None
        self.guidance_in = MLPEmbedder(256, hidden, **linear) if config.guidance_embed else None
        self.image_modulation, self.text_modulation, self.single_modulation = (
            None if flux1 else Modulation(hidden, count, **linear) for count in (6, 6, 3)
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
            hidden, config.in_channels, zero_init=True, **linear, **lora_fields(config)
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
        pooled_text: jax.Array | None = None,
        *,
        output_rows: int | None = None,
        with_thoughts: bool = True,
        reference: Reference | None = None,
    ) -> Output:
        """One forward pass over [target, condition] image tokens.

        Args:
          image_tokens: `[batch, image_tokens, in_channels]`.
          image_ids: `[batch, image_tokens, axes]`, from `image_position_ids`.
          text_embeddings: `[batch, text_tokens, text_channels]`.
          text_ids: `[batch, text_tokens, axes]`, from `text_position_ids`.
          timestep: `[batch]`, in [0, 1], 1 = noise.
          guidance: `[batch]`, for models with a guidance embedding.
          pooled_text: of CLIP, `[batch, pooled_channels]`, for FLUX.1.
          output_rows: leading image rows to compute the output for; None is all of them.
          with_thoughts: whether the thoughts are predicted too.
          reference: the condition's keys and values; the image tokens are then only the target's.

        Returns:
          `Output`; the velocity is `[batch, output_rows, in_channels]`, thoughts
          `[batch, text_tokens, text_channels]`, in the compute dtype.

        Raises:
          ValueError: for shapes that do not fit the model.
        """
        config, dtype = self.config, self.config.dtype
        _check_inputs(config, image_tokens, text_embeddings, guidance, pooled_text)
        vector = self._conditioning_vector(timestep, guidance, pooled_text)
        text_angles, image_angles = self._angles(text_ids), self._angles(image_ids)
        angles = jax.tree.map(
            lambda a, b: jnp.concatenate([a, b], axis=1), text_angles, image_angles
        )
        cached = reference or Reference(None, None, None, None)
        text, image = scan_blocks(
            self.double_blocks,
            (self.txt_in(text_embeddings.astype(dtype)), self.img_in(image_tokens.astype(dtype))),
            tuple(modulated(own, vector) for own in (self.text_modulation, self.image_modulation)),
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
        conditioning = modulated(self.single_modulation, vector)
        x = jnp.concatenate([text, image], axis=1)
        x = scan_blocks(
            self.single_blocks, x, conditioning, angles, remat=config.remat, per_layer=cached.single
        )
        first = text.shape[1]
        last = x.shape[1] if output_rows is None else first + output_rows
        rest = () if reference is None else (reference.last,)
        x = self.last_single_block(x, conditioning, angles, *rest, rows=slice(first, last))
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
        modulation = modulated(self.image_modulation, vector)
        x, double = collect_blocks(self.double_blocks, x, modulation, angles)
        adapter = self.cot_adapter and self.cot_adapter.reference(x, vector, angles)
        modulation = modulated(self.single_modulation, vector)
        x, single = collect_blocks(self.single_blocks, x, modulation, angles)
        last = self.last_single_block.key_value(x, modulation, angles)
        return Reference(double, adapter, single, last)

    def _conditioning_vector(
        self, timestep: jax.Array, guidance: jax.Array | None, pooled_text: jax.Array | None = None
    ) -> jax.Array:
        vector = self.time_in(timestep_embedding(timestep))
        if self.guidance_in is not None:
            vector = vector + self.guidance_in(timestep_embedding(guidance))
        if self.vector_in is not None:
            vector = vector + self.vector_in(pooled_text.astype(self.config.dtype))
        return vector

    def _angles(self, ids: jax.Array) -> Angles:
        config = self.config
        return rotary_angles(ids, config.axes_dim, config.theta, config.position_dtype)


def _check_inputs(
    config: CoTIRConfig,
    image_tokens: jax.Array,
    text: jax.Array,
    guidance: jax.Array | None,
    pooled: jax.Array | None,
) -> None:
    """Raises `ValueError` for inputs of a forward pass that do not fit the model."""
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
    got = None if pooled is None else pooled.shape
    if config.family == "flux1" and (got is None or got[1:] != (config.pooled_channels,)):
        raise ValueError(f"pooled text {got}: expected [batch, {config.pooled_channels}]")


def image_position_ids(family: str, height: int, width: int) -> tuple[jax.Array, jax.Array]:
    """Ids of target tokens and of condition tokens.

    Returns:
      Two arrays `[height * width, axes]`: (index, y, x) in FLUX.1, (t, y, x, 0) in FLUX.2.
    """
    y, x = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")
    zero = jnp.zeros_like(y)
    last = [zero] * (family == "flux2")
    target, condition = (
        rearrange(jnp.stack([zero + first, y, x, *last], axis=-1), "h w axes -> (h w) axes")
        for first in (0, CONDITION_INDEX[family])
    )
    return target, condition


def text_position_ids(family: str, tokens: int) -> jax.Array:
    """Ids of text tokens: `[tokens, 4]`, (0, 0, 0, l), in FLUX.2; `[tokens, 3]` in FLUX.1.

    FLUX.1's are all zero: T5's embeddings carry the order.
    """
    if family == "flux1":
        return jnp.zeros((tokens, 3), jnp.int32)
    return jnp.zeros((tokens, 4), jnp.int32).at[:, 3].set(jnp.arange(tokens))
