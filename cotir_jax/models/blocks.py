"""The blocks of both transformer families.

FLUX.1's linears have biases, its MLPs use GELU (tanh), and every block has its own modulation.
FLUX.2's linears have no biases, its MLPs use SwiGLU, and all blocks of a kind share one modulation
(docs/design.md, section 3). So FLUX.1's blocks are called with the conditioning vector
`[batch, hidden]`, FLUX.2's with the shifts, scales and gates that the shared modulation returns.
"""

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from cotir_jax.models.attention import attention
from cotir_jax.models.layers import Modulation, QKNorm, apply_rotary, modulate
from cotir_jax.models.lora import Linear, lora_fields
from cotir_jax.models.presets import CoTIRConfig

Angles = tuple[jax.Array, jax.Array]
Modulations = tuple[jax.Array, ...]
# Of FLUX.1's blocks the conditioning vector, of FLUX.2's the shared modulation.
Conditioning = jax.Array | Modulations
# Keys and values `[batch, tokens, heads, head_dim]`, of stacked blocks with a leading layers axis.
KeyValue = tuple[jax.Array, jax.Array]


def base_linear(config: CoTIRConfig) -> dict[str, Any]:
    """The arguments of `Linear` that the family and the dtypes fix."""
    biases = config.family == "flux1"
    return dict(use_bias=biases, param_dtype=config.base_dtype, dtype=config.dtype)


def modulated(modulation: Modulation | None, conditioning: Any) -> Any:
    """The modulation's vectors, or the argument where the modulation is elsewhere."""
    return conditioning if modulation is None else modulation(conditioning)


def _activate(x: jax.Array, gated: bool) -> jax.Array:
    """GELU, or SwiGLU of gate and value side by side."""
    if not gated:
        return jax.nn.gelu(x)
    gate, value = jnp.split(x, 2, axis=-1)
    return jax.nn.silu(gate) * value


def keys_values(norm: QKNorm, projected: jax.Array, heads: int, angles: Angles) -> KeyValue:
    """Keys, normalised and turned, and values of `[batch, tokens, 2 * hidden]`."""
    key, value = rearrange(projected, "b n (kv h d) -> kv b n h d", kv=2, h=heads)
    return apply_rotary(norm.key(key), angles), value


def joined(*parts: KeyValue) -> KeyValue:
    """Rows of several key-value pairs, one after the other."""
    keys, values = zip(*parts, strict=True)
    return jnp.concatenate(keys, axis=1), jnp.concatenate(values, axis=1)


class Stream(nnx.Module):
    """The weights of one stream (text or image) of a double block."""

    def __init__(self, config: CoTIRConfig, *, rngs: nnx.Rngs):
        hidden, linear = config.hidden_size, base_linear(config)
        mlp = int(hidden * config.mlp_ratio)
        self.num_heads, self.gated = config.num_heads, config.family == "flux2"
        self.modulation = None if self.gated else Modulation(hidden, 6, rngs=rngs, **linear)
        self.qkv = Linear(hidden, 3 * hidden, rngs=rngs, **linear)
        self.norm = QKNorm(config.head_dim, param_type=nnx.Param, param_dtype=config.base_dtype)
        self.proj = Linear(hidden, hidden, axes=("mlp", "embed"), rngs=rngs, **linear)
        self.mlp_in = Linear(hidden, mlp * (1 + self.gated), rngs=rngs, **linear)
        self.mlp_out = Linear(mlp, hidden, axes=("mlp", "embed"), rngs=rngs, **linear)

    def project(
        self, x: jax.Array, modulation: Modulations, angles: Angles
    ) -> tuple[jax.Array, KeyValue]:
        """Queries, and keys and values, of `[batch, tokens, hidden]`."""
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
        """Adds attention's output and the MLP to `[batch, tokens, hidden]`."""
        _, _, attention_gate, shift, scale, mlp_gate = modulation
        x = x + attention_gate * self.proj(attended)
        hidden = _activate(self.mlp_in(modulate(x, shift, scale)), self.gated)
        return x + mlp_gate * self.mlp_out(hidden)


class DoubleBlock(nnx.Module):
    """Text and image streams with their own weights and joint attention, text rows first."""

    def __init__(self, config: CoTIRConfig, *, rngs: nnx.Rngs):
        self.image = Stream(config, rngs=rngs)
        self.text = Stream(config, rngs=rngs)

    def __call__(
        self,
        streams: tuple[jax.Array, jax.Array],
        conditioning: tuple[Conditioning, Conditioning],
        angles: tuple[Angles, Angles],
        *cached: KeyValue,
    ) -> tuple[jax.Array, jax.Array]:
        """Runs the block.

        Args:
          streams: text and image rows, each `[batch, tokens, hidden]`.
          conditioning: of text and of image.
          angles: of text and of image.
          *cached: further keys and values that all rows attend to.
        """
        text, image = streams
        text_modulation = modulated(self.text.modulation, conditioning[0])
        image_modulation = modulated(self.image.modulation, conditioning[1])
        text_query, text_kv = self.text.project(text, text_modulation, angles[0])
        image_query, image_kv = self.image.project(image, image_modulation, angles[1])
        query = jnp.concatenate([text_query, image_query], axis=1)
        attended = attention(query, *joined(text_kv, image_kv, *cached))
        count = text.shape[1]
        return (
            self.text.finish(text, attended[:, :count], text_modulation),
            self.image.finish(image, attended[:, count:], image_modulation),
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
        linear = lora_fields(config) | base_linear(config)
        self.hidden_size, self.num_heads = hidden, config.num_heads
        self.gated = config.family == "flux2"
        self.modulation = None if self.gated else Modulation(hidden, 3, rngs=rngs, **linear)
        self.linear1 = Linear(hidden, 3 * hidden + mlp * (1 + self.gated), rngs=rngs, **linear)
        self.linear2 = Linear(hidden + mlp, hidden, axes=("mlp", "embed"), rngs=rngs, **linear)
        self.norm = QKNorm(config.head_dim, param_type=nnx.Param, param_dtype=config.base_dtype)

    def __call__(
        self,
        x: jax.Array,
        conditioning: Conditioning,
        angles: Angles,
        *cached: KeyValue,
        rows: slice = slice(None),
    ) -> jax.Array:
        """The block's output for some rows of `[batch, tokens, hidden]`.

        Keys and values are computed for all of them.
        """
        hidden = self.hidden_size
        shift, scale, gate = modulated(self.modulation, conditioning)
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
        own = keys_values(self.norm, key_value, self.num_heads, angles)
        attended = attention(query, *joined(own, *cached))
        update = self.linear2(jnp.concatenate([attended, _activate(mlp, self.gated)], axis=-1))
        return x[:, rows] + gate * update

    def reference(
        self, x: jax.Array, modulation: Modulations, angles: Angles
    ) -> tuple[jax.Array, KeyValue]:
        """Runs rows that see only themselves; returns them, and their keys and values."""
        return self(x, modulation, angles), self.key_value(x, modulation, angles)

    def key_value(self, x: jax.Array, modulation: Modulations, angles: Angles) -> KeyValue:
        """Keys and values of all rows."""
        shift, scale, _ = modulation
        columns = slice(self.hidden_size, 3 * self.hidden_size)
        projected = self.linear1(modulate(x, shift, scale), columns)
        return keys_values(self.norm, projected, self.num_heads, angles)
