"""LoRA folded into the weights that it adds to."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from cotir_jax.conversion.name_tables import Row
from cotir_jax.conversion.names import adapter
from cotir_jax.models.presets import CoTIRConfig

# Stands in the metadata of a transformer file that has its LoRA in it.
MERGED = {"lora": "merged"}


def merged_config(config: CoTIRConfig) -> CoTIRConfig:
    """The config of the model that a merged LoRA leaves.

    The FLUX.2 family's linears have no bias, so LoRA's stays a variable of its own.
    """
    return dataclasses.replace(config, lora_rank=0, lora_bias=config.family == "flux2")


def bias_rows(config: CoTIRConfig) -> list[Row]:
    """Names of LoRA's biases in a merged transformer file: those of the linears' own biases.

    Empty where the linears have biases, which LoRA's are added to.
    """
    if not merged_config(config).lora_bias:
        return []
    rows = []
    for row in adapter.lora(config).rows:
        if row.path.endswith(".lora_bias"):
            names = tuple(
                tuple(name.replace("lora_B.bias", "bias") for name in layer) for layer in row.names
            )
            rows.append(dataclasses.replace(row, names=names))
    return rows


def lora_parts(path: str, lora_paths: set[str]) -> tuple[str, ...] | None:
    """The LoRA arrays that fold into the base array at `path`; None where there are none."""
    linear, _, kind = path.rpartition(".")
    if kind == "kernel" and f"{linear}.lora_a" in lora_paths:
        return f"{linear}.lora_a", f"{linear}.lora_b"
    if kind == "bias" and f"{linear}.lora_bias" in lora_paths:
        return (f"{linear}.lora_bias",)
    return None


def merged_layer(base: np.ndarray, scale: float, updates: Sequence[np.ndarray]) -> np.ndarray:
    """`W + scale * A B`, or `b + scale * b_B`, in float32.

    Args:
      base: kernel `[in, out]` or bias `[out]`, float32; changed in place.
      scale: of the update.
      updates: A `[in, rank]` and B `[rank, out]`, or b_B `[out]`, float32.
    """
    update = updates[0] @ updates[1] if len(updates) == 2 else updates[0]
    base += np.float32(scale) * update
    return base
