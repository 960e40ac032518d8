"""The CoT adapter: text features between the double and the single blocks (paper section 3).

Its text rows go through FLUX.1-style single blocks together with the image rows, which enter every
block unchanged. Only text rows are kept, so queries, MLP and output projection are computed for
text rows, and for image rows only keys and values; the result is the same (docs/design.md,
section 3).
"""

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from cotir_jax.models.attention import attention
from cotir_jax.models.blocks import Angles, KeyValue, joined, keys_values
from cotir_jax.models.layers import (
    FinalLayer,
    Modulation,
    QKNorm,
    apply_rotary,
    collect_blocks,
    layer_norm,
    scan_blocks,
    stack_blocks,
)
from cotir_jax.models.lora import AdapterParam, Linear
from cotir_jax.models.presets import CoTIRConfig


class AdapterBlock(nnx.Module):
    """One block: text rows attend to text and image rows. Biases, GELU (tanh), own modulation."""

    def __init__(self, config: CoTIRConfig, *, rngs: nnx.Rngs):
        hidden = config.hidden_size
        mlp = int(hidden * config.adapter_mlp_ratio)
        linear: dict[str, Any] = dict(param_type=AdapterParam, dtype=config.dtype)
        self.hidden_size, self.num_heads = hidden, config.num_heads
        # Columns of linear1: queries, keys, values, MLP input.
        self.linear1 = Linear(hidden, 3 * hidden + mlp, use_bias=True, rngs=rngs, **linear)
        self.linear2 = Linear(
            hidden + mlp, hidden, axes=("mlp", "embed"), use_bias=True, rngs=rngs, **linear
        )
        self.norm = QKNorm(config.head_dim, param_type=AdapterParam, param_dtype="float32")
        self.modulation = Modulation(hidden, 3, use_bias=True, rngs=rngs, **linear)

    def __call__(
        self,
        text: jax.Array,
        normed_image: jax.Array,
        conditioning_vector: jax.Array,
        angles: Angles,
        *cached: KeyValue,
    ) -> jax.Array:
        """Runs the block.

        Args:
          text: `[batch, text_tokens, hidden]`.
          normed_image: image rows after their LayerNorm, `[batch, image_tokens, hidden]`.
          conditioning_vector: `[batch, hidden]`.
          angles: of text rows, then image rows.
          *cached: further keys and values that the text rows attend to.

        Returns:
          The new text rows.
        """
        hidden, count = self.hidden_size, text.shape[1]
        shift, scale, gate = self.modulation(conditioning_vector)
        text_in = layer_norm(text) * (1 + scale) + shift
        image_in = normed_image * (1 + scale) + shift

        text_out = self.linear1(text_in)
        query, text_kv, mlp = jnp.split(text_out, [hidden, 3 * hidden], axis=-1)
        image_kv = self.linear1(image_in, columns=slice(hidden, 3 * hidden))
        rows = jnp.concatenate([text_kv, image_kv], axis=1)
        key_value = keys_values(self.norm, rows, self.num_heads, angles)
        query = rearrange(query, "b n (h d) -> b n h d", h=self.num_heads)
        cos, sin = angles
        query = apply_rotary(self.norm.query(query), (cos[:, :count], sin[:, :count]))
        attended = attention(query, *joined(key_value, *cached))
        update = self.linear2(jnp.concatenate([attended, jax.nn.gelu(mlp)], axis=-1))
        return text + gate * update

    def reference(
        self, normed_image: jax.Array, conditioning_vector: jax.Array, angles: Angles
    ) -> tuple[jax.Array, KeyValue]:
        """Keys and values of image rows; the rows are returned as they came."""
        hidden = self.hidden_size
        shift, scale, _ = self.modulation(conditioning_vector)
        image_in = normed_image * (1 + scale) + shift
        projected = self.linear1(image_in, columns=slice(hidden, 3 * hidden))
        return normed_image, keys_values(self.norm, projected, self.num_heads, angles)


class CoTAdapter(nnx.Module):
    """Stacked adapter blocks, then the heads for scene, degradation and plan."""

    def __init__(self, config: CoTIRConfig, *, rngs: nnx.Rngs):
        hidden = config.hidden_size
        linear: dict[str, Any] = dict(use_bias=True, param_type=AdapterParam, dtype=config.dtype)
        self.remat = config.remat
        self.blocks = stack_blocks(
            lambda rngs: AdapterBlock(config, rngs=rngs), config.adapter_depth, rngs
        )
        square = ("embed", None)
        self.scene = Linear(hidden, hidden, axes=square, rngs=rngs, **linear)
        self.degradation = Linear(hidden, hidden, axes=square, rngs=rngs, **linear)
        self.plan = Linear(2 * hidden, hidden, axes=square, rngs=rngs, **linear)
        self.final_scene, self.final_degradation, self.final_plan = (
            FinalLayer(hidden, config.text_channels, rngs=rngs, **linear) for _ in range(3)
        )
        # Zero start: the adapter leaves the pretrained model as it is until it has learned.
        self.scale_scene, self.scale_degradation, self.scale_plan = (
            AdapterParam(jnp.zeros((1,), jnp.float32)) for _ in range(3)
        )

    def __call__(
        self,
        text: jax.Array,
        image: jax.Array,
        conditioning_vector: jax.Array,
        angles: Angles,
        with_thoughts: bool = True,
        cached: KeyValue | None = None,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array] | None]:
        """Computes the residual for the text stream, and the three predicted thoughts.

        Args:
          text: `[batch, text_tokens, hidden]`.
          image: `[batch, image_tokens, hidden]`, target rows then condition rows.
          conditioning_vector: `[batch, hidden]`.
          angles: rotary angles of text rows, then image rows.
          with_thoughts: whether the text-supervision outputs are computed; sampling needs none.
          cached: further keys and values, from `reference`, that the text rows attend to.

        Returns:
          residual `[batch, text_tokens, hidden]`, and (scene, degradation, plan), each
          `[batch, text_tokens, text_channels]`, or None.
        """
        # The image rows' LayerNorm has no weights, so one serves every block.
        text = scan_blocks(
            self.blocks,
            text,
            layer_norm(image),
            conditioning_vector,
            angles,
            remat=self.remat,
            per_layer=cached,
        )
        degradation = self.degradation(text)
        scene = self.scene(text)
        plan = self.plan(jnp.concatenate([degradation, scene], axis=-1))
        dtype = text.dtype
        residual = (
            degradation * self.scale_degradation[...].astype(dtype)
            + scene * self.scale_scene[...].astype(dtype)
            + plan * self.scale_plan[...].astype(dtype)
        )
        if not with_thoughts:
            return residual, None
        thoughts = (
            self.final_scene(jax.nn.gelu(scene), conditioning_vector),
            self.final_degradation(jax.nn.gelu(degradation), conditioning_vector),
            self.final_plan(jax.nn.gelu(plan), conditioning_vector),
        )
        return residual, thoughts

    def reference(
        self, image: jax.Array, conditioning_vector: jax.Array, angles: Angles
    ) -> KeyValue:
        """Keys and values of image rows, `[layers, batch, image_tokens, heads, head_dim]`."""
        return collect_blocks(self.blocks, layer_norm(image), conditioning_vector, angles)[1]
