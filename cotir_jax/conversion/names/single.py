"""Rows of the single blocks, whose last one lies apart from the stack."""

from __future__ import annotations

from cotir_jax.conversion.name_tables import Source, one, per_layer
from cotir_jax.models.presets import CoTIRConfig


def single_rows(
    config: CoTIRConfig, ours: str, *names: str, layout: str = "linear"
) -> list[Source]:
    """Two rows for a parameter of the single blocks; `{}` in the names is the block's number."""
    last = config.num_single_blocks - 1
    final = [name.replace("{}", str(last)) for name in names]
    return [
        per_layer(f"single_blocks.{ours}", last, *names, layout=layout),
        one(f"last_single_block.{ours}", *final, layout=layout),
    ]
