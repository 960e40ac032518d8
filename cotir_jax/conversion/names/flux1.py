"""Names of the FLUX.1-family transformer, native and in diffusers."""

from __future__ import annotations

from cotir_jax.conversion.name_tables import Source, Table, one, per_layer
from cotir_jax.conversion.names.single import single_rows
from cotir_jax.models.presets import CoTIRConfig

# Linears, each a kernel and a bias: ours -> native, diffusers.
_WHOLE = {
    "img_in": ("img_in", "x_embedder"),
    "txt_in": ("txt_in", "context_embedder"),
    "time_in.in_layer": ("time_in.in_layer", "time_text_embed.timestep_embedder.linear_1"),
    "time_in.out_layer": ("time_in.out_layer", "time_text_embed.timestep_embedder.linear_2"),
    "vector_in.in_layer": ("vector_in.in_layer", "time_text_embed.text_embedder.linear_1"),
    "vector_in.out_layer": ("vector_in.out_layer", "time_text_embed.text_embedder.linear_2"),
    "final_layer.linear": ("final_layer.linear", "proj_out"),
}
_GUIDANCE = {
    f"guidance_in.{ours}": (f"guidance_in.{ours}", f"time_text_embed.guidance_embedder.{theirs}")
    for ours, theirs in (("in_layer", "linear_1"), ("out_layer", "linear_2"))
}
# Ours -> native below img_ or txt_; diffusers of the image stream; of the text stream.
_STREAM = {
    "modulation.lin": (("mod.lin",), ("norm1.linear",), ("norm1_context.linear",)),
    "qkv": (
        ("attn.qkv",),
        ("attn.to_q", "attn.to_k", "attn.to_v"),
        ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    ),
    "proj": (("attn.proj",), ("attn.to_out.0",), ("attn.to_add_out",)),
    "mlp_in": (("mlp.0",), ("ff.net.0.proj",), ("ff_context.net.0.proj",)),
    "mlp_out": (("mlp.2",), ("ff.net.2",), ("ff_context.net.2",)),
}
_SINGLE = {
    "modulation.lin": (("modulation.lin",), ("norm.linear",)),
    "linear1": (("linear1",), ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")),
    "linear2": (("linear2",), ("proj_out",)),
}
# Scales of the query and key norms, one tensor each.
_STREAM_NORM = {
    "norm.query_scale": ("attn.norm.query_norm.scale", "attn.norm_q.weight",
                         "attn.norm_added_q.weight"),
    "norm.key_scale": ("attn.norm.key_norm.scale", "attn.norm_k.weight",
                       "attn.norm_added_k.weight"),
}  # fmt: skip
_SINGLE_NORM = {
    "norm.query_scale": ("norm.query_norm.scale", "attn.norm_q.weight"),
    "norm.key_scale": ("norm.key_norm.scale", "attn.norm_k.weight"),
}
_KINDS = {"kernel": "weight", "bias": "bias"}


def native(config: CoTIRConfig) -> Table:
    """Names of black-forest-labs' own file, which the release uses too."""
    rows = _whole(config, 0)
    rows += [
        one(f"final_layer.modulation.lin.{ours}", f"final_layer.adaLN_modulation.1.{theirs}")
        for ours, theirs in _KINDS.items()
    ]
    for stream, short in (("image", "img"), ("text", "txt")):
        rows += _stream_rows(config, stream, 0, f"double_blocks.{{}}.{short}_")
    return Table(rows + _single(config, 0, "single_blocks.{}."))


def diffusers(config: CoTIRConfig) -> Table:
    """Names in a diffusers folder: fused layers apart; scale before shift in the final layer."""
    rows = _whole(config, 1)
    rows += [
        one(f"final_layer.modulation.lin.{ours}", f"norm_out.linear.{theirs}", layout="swapped")
        for ours, theirs in _KINDS.items()
    ]
    for column, stream in ((1, "image"), (2, "text")):
        rows += _stream_rows(config, stream, column, "transformer_blocks.{}.")
    return Table(rows + _single(config, 1, "single_transformer_blocks.{}."))


def _whole(config: CoTIRConfig, column: int) -> list[Source]:
    table = _WHOLE | (_GUIDANCE if config.guidance_embed else {})
    return [
        one(f"{path}.{ours}", f"{names[column]}.{theirs}")
        for path, names in table.items()
        for ours, theirs in _KINDS.items()
    ]


def _stream_rows(config: CoTIRConfig, stream: str, column: int, prefix: str) -> list[Source]:
    count = config.num_double_blocks
    rows = [
        per_layer(
            f"double_blocks.{stream}.{path}.{ours}",
            count,
            *(f"{prefix}{name}.{theirs}" for name in names[column]),
        )
        for path, names in _STREAM.items()
        for ours, theirs in _KINDS.items()
    ]
    return rows + [
        per_layer(f"double_blocks.{stream}.{path}", count, prefix + names[column])
        for path, names in _STREAM_NORM.items()
    ]


def _single(config: CoTIRConfig, column: int, prefix: str) -> list[Source]:
    rows = []
    for path, names in _SINGLE.items():
        for ours, theirs in _KINDS.items():
            tensors = (f"{prefix}{name}.{theirs}" for name in names[column])
            rows += single_rows(config, f"{path}.{ours}", *tensors)
    for path, scales in _SINGLE_NORM.items():
        rows += single_rows(config, path, prefix + scales[column])
    return rows
