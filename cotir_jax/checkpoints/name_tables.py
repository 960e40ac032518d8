"""Names of published checkpoints beside ours, one table per model, read in both directions.

A source name with `{}` exists once per layer. Linear weights are `[out, in]` on disk and
`[in, out]` here, so two-dimensional tensors are transposed on the way.
"""

from __future__ import annotations

import dataclasses

from cotir_jax.models.presets import CoTIRConfig


@dataclasses.dataclass(frozen=True)
class Source:
    """Where one of our arrays comes from.

    Attributes:
      path: our parameter's path, joined by dots.
      names: source tensors; one, or one per layer of a stacked parameter.
      stacked: whether the parameter has a leading layers axis.
    """

    path: str
    names: tuple[str, ...]
    stacked: bool


_STREAM = {
    "attn.qkv.weight": "qkv.kernel",
    "attn.norm.query_norm.scale": "norm.query_scale",
    "attn.norm.key_norm.scale": "norm.key_scale",
    "attn.proj.weight": "proj.kernel",
    "mlp.0.weight": "mlp_in.kernel",
    "mlp.2.weight": "mlp_out.kernel",
}
_SINGLE = {
    "linear1.weight": "linear1.kernel",
    "linear2.weight": "linear2.kernel",
    "norm.query_norm.scale": "norm.query_scale",
    "norm.key_norm.scale": "norm.key_scale",
}
_WHOLE = {
    "img_in.weight": "img_in.kernel",
    "txt_in.weight": "txt_in.kernel",
    "time_in.in_layer.weight": "time_in.in_layer.kernel",
    "time_in.out_layer.weight": "time_in.out_layer.kernel",
    "double_stream_modulation_img.lin.weight": "image_modulation.lin.kernel",
    "double_stream_modulation_txt.lin.weight": "text_modulation.lin.kernel",
    "single_stream_modulation.lin.weight": "single_modulation.lin.kernel",
    "final_layer.adaLN_modulation.1.weight": "final_layer.modulation.lin.kernel",
    "final_layer.linear.weight": "final_layer.linear.kernel",
}
_GUIDANCE = {
    "guidance_in.in_layer.weight": "guidance_in.in_layer.kernel",
    "guidance_in.out_layer.weight": "guidance_in.out_layer.kernel",
}
_LORA = {"lora_A.weight": "lora_a", "lora_B.weight": "lora_b", "lora_B.bias": "lora_bias"}
_ADAPTER_BLOCK = {
    "linear1.weight": "linear1.kernel",
    "linear1.bias": "linear1.bias",
    "linear2.weight": "linear2.kernel",
    "linear2.bias": "linear2.bias",
    "norm.query_norm.scale": "norm.query_scale",
    "norm.key_norm.scale": "norm.key_scale",
    "modulation.lin.weight": "modulation.lin.kernel",
    "modulation.lin.bias": "modulation.lin.bias",
}
# The release says sharpness for scene and planning for plan.
_THOUGHTS = {"sharpness": "scene", "degradation": "degradation", "planning": "plan"}


def flux2_base(config: CoTIRConfig) -> list[Source]:
    """Native names of the FLUX.2-family transformer (`*.safetensors`)."""
    doubles = config.num_double_blocks
    rows = [Source(ours, (theirs,), False) for theirs, ours in _WHOLE.items()]
    if config.guidance_embed:
        rows += [Source(ours, (theirs,), False) for theirs, ours in _GUIDANCE.items()]
    for short, stream in (("img", "image"), ("txt", "text")):
        for theirs, ours in _STREAM.items():
            names = tuple(f"double_blocks.{i}.{short}_{theirs}" for i in range(doubles))
            rows.append(Source(f"double_blocks.{stream}.{ours}", names, True))
    for theirs, ours in _SINGLE.items():
        rows += _single_rows(config, theirs, ours)
    return rows


def flux2_lora(config: CoTIRConfig) -> list[Source]:
    """Names of `lora.pt`: every linear of the single blocks and the final layer."""
    rows = []
    for theirs, ours in _LORA.items():
        for linear in ("linear1", "linear2"):
            rows += _single_rows(config, f"{linear}.{theirs}", f"{linear}.{ours}")
        rows.append(Source(f"final_layer.linear.{ours}", (f"final_layer.linear.{theirs}",), False))
        rows.append(
            Source(
                f"final_layer.modulation.lin.{ours}",
                (f"final_layer.adaLN_modulation.1.{theirs}",),
                False,
            )
        )
    return rows


def cot_adapter(config: CoTIRConfig) -> list[Source]:
    """Names of `cot_adapter.pt`, the same for both families."""
    rows = []
    for theirs, ours in _ADAPTER_BLOCK.items():
        names = tuple(f"cot_adapter.decoder.{i}.{theirs}" for i in range(config.adapter_depth))
        rows.append(Source(f"cot_adapter.blocks.{ours}", names, True))
    for theirs, ours in _THOUGHTS.items():
        final = f"cot_adapter.final_{theirs}_layer"
        pairs = {
            f"cot_adapter.{theirs}_layer.weight": f"{ours}.kernel",
            f"cot_adapter.{theirs}_layer.bias": f"{ours}.bias",
            f"{final}.linear.weight": f"final_{ours}.linear.kernel",
            f"{final}.linear.bias": f"final_{ours}.linear.bias",
            f"{final}.adaLN_modulation.1.weight": f"final_{ours}.modulation.lin.kernel",
            f"{final}.adaLN_modulation.1.bias": f"final_{ours}.modulation.lin.bias",
            f"cot_adapter.scale_{theirs}": f"scale_{ours}",
        }
        rows += [Source(f"cot_adapter.{path}", (name,), False) for name, path in pairs.items()]
    return rows


def _single_rows(config: CoTIRConfig, theirs: str, ours: str) -> list[Source]:
    last = config.num_single_blocks - 1
    names = tuple(f"single_blocks.{i}.{theirs}" for i in range(last))
    return [
        Source(f"single_blocks.{ours}", names, True),
        Source(f"last_single_block.{ours}", (f"single_blocks.{last}.{theirs}",), False),
    ]
