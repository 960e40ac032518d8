"""Names of the transformer's tensors: black-forest-labs' own files, and diffusers folders.

The release uses black-forest-labs' names ("native") too. Diffusers splits fused layers, and has
scale before shift in the final layer.
"""

from collections.abc import Iterator, Mapping

from cotir_jax.conversion.name_tables import Row, Table, one, per_layer
from cotir_jax.conversion.names import TABLES
from cotir_jax.models.presets import CoTIRConfig


def native(config: CoTIRConfig) -> Table:
    """Names of black-forest-labs' own file."""
    streams = {"image": ("double_blocks.{}.img_", 0), "text": ("double_blocks.{}.txt_", 0)}
    return Table(_rows(config, 0, streams, "single_blocks.{}."))


def diffusers(config: CoTIRConfig) -> Table:
    """Names in a diffusers folder."""
    streams = {"image": ("transformer_blocks.{}.", 1), "text": ("transformer_blocks.{}.", 2)}
    return Table(_rows(config, 1, streams, "single_transformer_blocks.{}."))


def single_rows(config: CoTIRConfig, ours: str, *names: str) -> list[Row]:
    """Two rows for a parameter of the single blocks, the last of which is not in the stack.

    Args:
      config: sizes.
      ours: the parameter's path in a block.
      *names: of the tensors that are joined; `{}` is the block's number.
    """
    last = config.num_single_blocks - 1
    return [
        per_layer(f"single_blocks.{ours}", last, *names),
        one(f"last_single_block.{ours}", *(name.replace("{}", str(last)) for name in names)),
    ]


def _rows(
    config: CoTIRConfig, column: int, streams: Mapping[str, tuple[str, int]], single: str
) -> list[Row]:
    """All rows: from a column of the tables, with prefixes (and columns) in each kind of block."""
    tables, rows = TABLES[config.family], []
    for ours, names in _parameters(config, tables["once"], column):
        if config.guidance_embed or not ours.startswith("guidance_in"):
            swapped = column == 1 and ours.startswith("final_layer.modulation")
            rows.append(one(ours, *names, layout="swapped" if swapped else "linear"))
    for stream, (prefix, at) in streams.items():
        for ours, names in _parameters(config, tables["stream"], at, prefix):
            path = f"double_blocks.{stream}.{ours}"
            rows.append(per_layer(path, config.num_double_blocks, *names))
    for ours, names in _parameters(config, tables["single"], column, single):
        rows += single_rows(config, ours, *names)
    return rows


def _parameters(
    config: CoTIRConfig, table: Mapping[str, list[str]], column: int, prefix: str = ""
) -> Iterator[tuple[str, list[str]]]:
    """Our parameters of a table, each with the names of its tensors."""
    kinds = {"kernel": "weight"} | ({"bias": "bias"} if config.family == "flux1" else {})
    for ours, columns in table.items():
        names = [prefix + name for name in columns[column].split()]
        if ours.endswith("_scale"):
            yield ours, names
            continue
        for kind, suffix in kinds.items():
            yield f"{ours}.{kind}", [f"{name}.{suffix}" for name in names]
