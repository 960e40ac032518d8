"""Names of the transformer's tensors: black-forest-labs' own files, and diffusers folders.

The release uses black-forest-labs' names ("native") too. Diffusers splits fused layers, and has
scale before shift in the final layer.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from cotir_jax.conversion.name_tables import Row, Table, one, per_layer
from cotir_jax.models.presets import CoTIRConfig

# Every table: ours -> native, diffusers. Names of tensors that are joined have spaces between them.
_ENDS = {
    "img_in": ("img_in", "x_embedder"),
    "txt_in": ("txt_in", "context_embedder"),
    "final_layer.linear": ("final_layer.linear", "proj_out"),
}
_SHARED_MODULATIONS = {
    "image_modulation.lin": (
        "double_stream_modulation_img.lin",
        "double_stream_modulation_img.linear",
    ),
    "text_modulation.lin": (
        "double_stream_modulation_txt.lin",
        "double_stream_modulation_txt.linear",
    ),
    "single_modulation.lin": ("single_stream_modulation.lin", "single_stream_modulation.linear"),
}
# Ours (and native) -> diffusers.
_EMBEDDERS = {
    "time_in": "timestep_embedder",
    "guidance_in": "guidance_embedder",
    "vector_in": "text_embedder",
}
# Native below img_ or txt_; then diffusers of the image stream, and of the text stream.
_STREAM = {
    "qkv": (
        "attn.qkv",
        "attn.to_q attn.to_k attn.to_v",
        "attn.add_q_proj attn.add_k_proj attn.add_v_proj",
    ),
    "proj": ("attn.proj", "attn.to_out.0", "attn.to_add_out"),
}
_STREAM_OF_FAMILY = {
    "flux1": {
        "modulation.lin": ("mod.lin", "norm1.linear", "norm1_context.linear"),
        "mlp_in": ("mlp.0", "ff.net.0.proj", "ff_context.net.0.proj"),
        "mlp_out": ("mlp.2", "ff.net.2", "ff_context.net.2"),
    },
    "flux2": {
        "mlp_in": ("mlp.0", "ff.linear_in", "ff_context.linear_in"),
        "mlp_out": ("mlp.2", "ff.linear_out", "ff_context.linear_out"),
    },
}
_STREAM_NORMS = {
    "norm.query_scale": (
        "attn.norm.query_norm.scale",
        "attn.norm_q.weight",
        "attn.norm_added_q.weight",
    ),
    "norm.key_scale": (
        "attn.norm.key_norm.scale",
        "attn.norm_k.weight",
        "attn.norm_added_k.weight",
    ),
}
_SINGLE_OF_FAMILY = {
    "flux1": {
        "modulation.lin": ("modulation.lin", "norm.linear"),
        "linear1": ("linear1", "attn.to_q attn.to_k attn.to_v proj_mlp"),
        "linear2": ("linear2", "proj_out"),
    },
    "flux2": {
        "linear1": ("linear1", "attn.to_qkv_mlp_proj"),
        "linear2": ("linear2", "attn.to_out"),
    },
}
_SINGLE_NORMS = {
    "norm.query_scale": ("norm.query_norm.scale", "attn.norm_q.weight"),
    "norm.key_scale": ("norm.key_norm.scale", "attn.norm_k.weight"),
}


def native(config: CoTIRConfig) -> Table:
    """Names of black-forest-labs' own file."""
    rows = _once(config, 0)
    rows += _linears(
        config, one, {"final_layer.modulation.lin": ("final_layer.adaLN_modulation.1",)}, 0
    )
    for stream, short in (("image", "img"), ("text", "txt")):
        rows += _doubles(config, stream, f"double_blocks.{{}}.{short}_", 0)
    return Table(rows + _singles(config, "single_blocks.{}.", 0))


def diffusers(config: CoTIRConfig) -> Table:
    """Names in a diffusers folder."""
    rows = _once(config, 1)
    swapped = partial(one, layout="swapped")
    rows += _linears(config, swapped, {"final_layer.modulation.lin": ("norm_out.linear",)}, 0)
    for column, stream in ((1, "image"), (2, "text")):
        rows += _doubles(config, stream, "transformer_blocks.{}.", column)
    return Table(rows + _singles(config, "single_transformer_blocks.{}.", 1))


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


def _once(config: CoTIRConfig, column: int) -> list[Row]:
    """Linears that the model has once."""
    flux1 = config.family == "flux1"
    group = "time_text_embed" if flux1 else "time_guidance_embed"
    absent = {"guidance_in"} if not config.guidance_embed else set()
    absent |= set() if flux1 else {"vector_in"}
    embedders = {
        f"{ours}.{layer}": (f"{ours}.{layer}", f"{group}.{theirs}.{number}")
        for ours, theirs in _EMBEDDERS.items()
        for layer, number in (("in_layer", "linear_1"), ("out_layer", "linear_2"))
        if ours not in absent
    }
    table = _ENDS | embedders | ({} if flux1 else _SHARED_MODULATIONS)
    return list(_linears(config, one, table, column))


def _doubles(config: CoTIRConfig, stream: str, prefix: str, column: int) -> list[Row]:
    def make(ours: str, *names: str) -> Row:
        path = f"double_blocks.{stream}.{ours}"
        return per_layer(path, config.num_double_blocks, *(prefix + name for name in names))

    linears = _STREAM | _STREAM_OF_FAMILY[config.family]
    norms = [make(ours, names[column]) for ours, names in _STREAM_NORMS.items()]
    return [*_linears(config, make, linears, column), *norms]


def _singles(config: CoTIRConfig, prefix: str, column: int) -> list[Row]:
    def make(ours: str, *names: str) -> list[Row]:
        return single_rows(config, ours, *(prefix + name for name in names))

    pairs = [*_linears(config, make, _SINGLE_OF_FAMILY[config.family], column)]
    pairs += [make(ours, names[column]) for ours, names in _SINGLE_NORMS.items()]
    return [row for pair in pairs for row in pair]


def _linears(
    config: CoTIRConfig, make: Callable[..., Any], table: Mapping[str, tuple[str, ...]], column: int
) -> Iterator[Any]:
    """Kernel and, in the FLUX.1 family, bias of each linear of a table."""
    kinds = {"kernel": "weight", "bias": "bias"}
    if config.family == "flux2":
        del kinds["bias"]
    for ours, names in table.items():
        for kind, suffix in kinds.items():
            yield make(f"{ours}.{kind}", *(f"{n}.{suffix}" for n in names[column].split()))
