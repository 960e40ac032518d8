"""The FLUX.1-family editing transformer with the CoT adapter between its halves.

All linears have biases, MLPs use GELU (tanh), every block has its own modulation, and a pooled text
vector joins timestep and guidance (docs/design.md, section 3). Blocks of a kind are stacked and
scanned.
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from cotir_jax.models.adapter import CoTAdapter
from cotir_jax.models.blocks import DoubleBlock, SingleBlock, base_linear
from cotir_jax.models.layers import (
    FinalLayer,
    MLPEmbedder,
    Output,
    check_inputs,
    rotary_angles,
    scan_blocks,
    stack_blocks,
    timestep_embedding,
)
from cotir_jax.models.lora import Linear, lora_fields
from cotir_jax.models.presets import CoTIRConfig


class Flux1(nnx.Module):
    """FLUX.1-family transformer with CoT adapter and LoRA on single blocks and final layer."""

    def __init__(self, config: CoTIRConfig, *, rngs: nnx.Rngs):
        hidden, linear = config.hidden_size, base_linear(config)
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
            (vector, vector),
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
