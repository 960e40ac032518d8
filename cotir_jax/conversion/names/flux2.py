"""Names of the FLUX.2-family transformer, native and in diffusers."""

from __future__ import annotations

from cotir_jax.conversion.name_tables import Source, Table, one, per_layer
from cotir_jax.conversion.names.single import single_rows
from cotir_jax.models.presets import CoTIRConfig

# Ours -> native, diffusers.
_WHOLE = {
    "img_in": ("img_in", "x_embedder"),
    "txt_in": ("txt_in", "context_embedder"),
    "time_in.in_layer": ("time_in.in_layer", "time_guidance_embed.timestep_embedder.linear_1"),
    "time_in.out_layer": ("time_in.out_layer", "time_guidance_embed.timestep_embedder.linear_2"),
    "image_modulation.lin": ("double_stream_modulation_img.lin",
                             "double_stream_modulation_img.linear"),
    "text_modulation.lin": ("double_stream_modulation_txt.lin",
                            "double_stream_modulation_txt.linear"),
    "single_modulation.lin": ("single_stream_modulation.lin", "single_stream_modulation.linear"),
    "final_layer.linear": ("final_layer.linear", "proj_out"),
}  # fmt: skip
_GUIDANCE = {
    f"guidance_in.{ours}": (
        f"guidance_in.{ours}",
        f"time_guidance_embed.guidance_embedder.{theirs}",
    )
    for ours, theirs in (("in_layer", "linear_1"), ("out_layer", "linear_2"))
}
# Ours -> native below img_ or txt_; diffusers of the image stream; of the text stream.
_STREAM = {
    "proj.kernel": ("attn.proj.weight", "attn.to_out.0.weight", "attn.to_add_out.weight"),
    "norm.query_scale": ("attn.norm.query_norm.scale", "attn.norm_q.weight",
                         "attn.norm_added_q.weight"),
    "norm.key_scale": ("attn.norm.key_norm.scale", "attn.norm_k.weight",
                       "attn.norm_added_k.weight"),
    "mlp_in.kernel": ("mlp.0.weight", "ff.linear_in.weight", "ff_context.linear_in.weight"),
    "mlp_out.kernel": ("mlp.2.weight", "ff.linear_out.weight", "ff_context.linear_out.weight"),
}  # fmt: skip
_QKV = {
    "image": [f"transformer_blocks.{{}}.attn.to_{part}.weight" for part in "qkv"],
    "text": [f"transformer_blocks.{{}}.attn.add_{part}_proj.weight" for part in "qkv"],
}
_SINGLE = {
    "linear1.kernel": ("linear1.weight", "attn.to_qkv_mlp_proj.weight"),
    "linear2.kernel": ("linear2.weight", "attn.to_out.weight"),
    "norm.query_scale": ("norm.query_norm.scale", "attn.norm_q.weight"),
    "norm.key_scale": ("norm.key_norm.scale", "attn.norm_k.weight"),
}


def native(config: CoTIRConfig) -> Table:
    """Names of black-forest-labs' own file, which the release uses too."""
    rows = _whole(config, 0)
    rows.append(one("final_layer.modulation.lin.kernel", "final_layer.adaLN_modulation.1.weight"))
    doubles = config.num_double_blocks
    for stream, short in (("image", "img"), ("text", "txt")):
        prefix = f"double_blocks.{{}}.{short}_"
        rows.append(
            per_layer(f"double_blocks.{stream}.qkv.kernel", doubles, f"{prefix}attn.qkv.weight")
        )
        rows += [
            per_layer(f"double_blocks.{stream}.{ours}", doubles, prefix + names[0])
            for ours, names in _STREAM.items()
        ]
    for ours, names in _SINGLE.items():
        rows += single_rows(config, ours, f"single_blocks.{{}}.{names[0]}")
    return Table(rows)


def diffusers(config: CoTIRConfig) -> Table:
    """Names in a diffusers folder: q, k and v apart; scale before shift in the final layer."""
    rows = _whole(config, 1)
    rows.append(
        one("final_layer.modulation.lin.kernel", "norm_out.linear.weight", layout="swapped")
    )
    doubles = config.num_double_blocks
    for column, stream in ((1, "image"), (2, "text")):
        rows.append(per_layer(f"double_blocks.{stream}.qkv.kernel", doubles, *_QKV[stream]))
        rows += [
            per_layer(
                f"double_blocks.{stream}.{ours}",
                doubles,
                f"transformer_blocks.{{}}.{names[column]}",
            )
            for ours, names in _STREAM.items()
        ]
    for ours, names in _SINGLE.items():
        rows += single_rows(config, ours, f"single_transformer_blocks.{{}}.{names[1]}")
    return Table(rows)


def _whole(config: CoTIRConfig, column: int) -> list[Source]:
    table = _WHOLE | (_GUIDANCE if config.guidance_embed else {})
    return [one(f"{ours}.kernel", f"{names[column]}.weight") for ours, names in table.items()]
