"""What the three published text encoders share: their `config.json`, a norm, embedding tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

Config = TypeVar("Config")


def check_field(encoder: str, name: str, found: Any, *accepted: Any) -> None:
    """Raises `ValueError` where a setting of `config.json` has a value that is not implemented.

    Args:
      encoder: what is read, for the message.
      name: of the setting.
      found: its value.
      *accepted: values that are implemented.
    """
    if found not in accepted:
        known = " or ".join(repr(value) for value in accepted)
        raise ValueError(
            f"config.json of the {encoder} text encoder has {name} {found!r}, expected {known}: "
            "point to the text encoder folder that belongs to the model"
        )


def read_sizes(encoder: str, fields: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Positive numbers of `config.json` under our names.

    Args:
      encoder: what is read, for the message.
      fields: the file's content.
      names: name in our config -> name in the file.

    Raises:
      ValueError: where one is missing or no positive number.
    """
    for name in names.values():
        value = fields.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise ValueError(
                f"config.json of the {encoder} text encoder has {name} {value!r}, expected a "
                "positive number: is the file complete?"
            )
    return {ours: fields[theirs] for ours, theirs in names.items()}


def read_precision(encoder: str, fields: Mapping[str, Any]) -> dict[str, str]:
    """`param_dtype` and `dtype` for a `config.json`: float32 where it says so, else bfloat16.

    float16 becomes bfloat16, because T5 overflows in float16.

    Raises:
      ValueError: for quantized weights.
    """
    check_field(encoder, "quantization_config", fields.get("quantization_config"), None)
    # transformers before 5 writes torch_dtype.
    dtype = fields.get("dtype", fields.get("torch_dtype"))
    chosen = "float32" if dtype == "float32" else "bfloat16"
    return {"param_dtype": chosen, "dtype": chosen}


def rebuild(kind: type[Config], fields: Mapping[str, Any]) -> Config:
    """Rebuilds a config dataclass from JSON of `dataclasses.asdict`.

    Raises:
      ValueError: for a field that the config does not have.
    """
    known = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if set(fields) - known:
        raise ValueError(
            f"unknown fields {sorted(set(fields) - known)} of {kind.__name__}: "
            f"known are {sorted(known)}"
        )
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    return kind(**values)


def check_ids(ids: jax.Array, mask: jax.Array | None = None) -> None:
    """Raises `ValueError` unless ids (and mask, where given) are `[batch, tokens]`."""
    if ids.ndim != 2 or not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(f"token ids {ids.shape} {ids.dtype}: expected [batch, tokens], int32")
    if mask is not None and (mask.shape != ids.shape or mask.dtype != bool):
        raise ValueError(f"mask {mask.shape} {mask.dtype}: expected {ids.shape}, bool, as the ids")


def embedding_table(
    rows: int, width: int, *, axes: tuple[str | None, str | None], dtype: str, rngs: nnx.Rngs
) -> nnx.Param:
    """A table `[rows, width]` of normal numbers with deviation 0.02.

    Args:
      rows, width: sizes.
      axes: logical names of the two axes, for sharding.
      dtype: of the table.
      rngs: source of the numbers.
    """
    values = 0.02 * jax.random.normal(rngs.params(), (rows, width), dtype)
    # Placement is decided in one place (`partitioning`), not when the parameter is made.
    return nnx.Param(values, out_sharding=axes, eager_sharding=False)


class RMSNorm(nnx.Module):
    """`scale * x / rms(x)` over channels, the division in float32."""

    def __init__(self, width: int, *, eps: float, param_dtype: str):
        self.scale = nnx.Param(jnp.ones((width,), param_dtype))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises `[..., width]`; the result has the dtype of `x`."""
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps)
        return y.astype(x.dtype) * self.scale[...].astype(x.dtype)
