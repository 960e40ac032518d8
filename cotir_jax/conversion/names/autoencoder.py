"""Names of the FLUX autoencoders' tensors: the native `ae.safetensors` and diffusers' `vae/`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from cotir_jax.conversion.name_tables import Source, Table, one
from cotir_jax.models.autoencoder import AutoencoderConfig


class _Spelling(NamedTuple):
    """How one layout names the parts; `{level}` and `{block}` are numbers."""

    down_block: str
    downsample: str
    up_block: str
    upsample: str
    up_from_highest: bool  # whether the decoder's levels are numbered from the highest resolution
    shortcut: str
    middle_blocks: tuple[str, str]
    attention: str
    attention_norm: str
    qkv: tuple[str, str, str]
    attention_out: str
    norm_out: str
    quant: str
    post_quant: str


_NATIVE = _Spelling(
    down_block="down.{level}.block.{block}",
    downsample="down.{level}.downsample.conv",
    up_block="up.{level}.block.{block}",
    upsample="up.{level}.upsample.conv",
    up_from_highest=True,
    shortcut="nin_shortcut",
    middle_blocks=("mid.block_1", "mid.block_2"),
    attention="mid.attn_1",
    attention_norm="norm",
    qkv=("q", "k", "v"),
    attention_out="proj_out",
    norm_out="norm_out",
    quant="encoder.quant_conv",
    post_quant="decoder.post_quant_conv",
)
_DIFFUSERS = _Spelling(
    down_block="down_blocks.{level}.resnets.{block}",
    downsample="down_blocks.{level}.downsamplers.0.conv",
    up_block="up_blocks.{level}.resnets.{block}",
    upsample="up_blocks.{level}.upsamplers.0.conv",
    up_from_highest=False,
    shortcut="conv_shortcut",
    middle_blocks=("mid_block.resnets.0", "mid_block.resnets.1"),
    attention="mid_block.attentions.0",
    attention_norm="group_norm",
    qkv=("to_q", "to_k", "to_v"),
    attention_out="to_out.0",
    norm_out="conv_norm_out",
    quant="quant_conv",
    post_quant="post_quant_conv",
)


def native(config: AutoencoderConfig) -> Table:
    """Names in Black Forest Labs' `ae.safetensors`."""
    return _table(config, _NATIVE)


def diffusers(config: AutoencoderConfig) -> Table:
    """Names in a diffusers `vae/` folder (`AutoencoderKL`, `AutoencoderKLFlux2`)."""
    return _table(config, _DIFFUSERS)


def _table(config: AutoencoderConfig, spelling: _Spelling) -> Table:
    widths = [config.channels * multiplier for multiplier in config.multipliers]
    rows = [
        *_half("encoder", widths, config.num_res_blocks, spelling),
        *_half("decoder", widths[::-1], config.num_res_blocks + 1, spelling),
    ]
    if config.kind == "flux1":
        return Table(rows)
    rows += [*_linear("quant", spelling.quant), *_linear("post_quant", spelling.post_quant)]
    rows += [one(name, f"bn.{name}") for name in ("running_mean", "running_var")]
    return Table(rows, {r"bn\.num_batches_tracked": "a counter of training steps"})


def _half(side: str, widths: list[int], count: int, spelling: _Spelling) -> Iterable[Source]:
    """Rows of the encoder or the decoder; `widths` in the order of computation."""
    last = len(widths) - 1
    block_name, resample_name, reverse = (
        (spelling.down_block, spelling.downsample, False)
        if side == "encoder"
        else (spelling.up_block, spelling.upsample, spelling.up_from_highest)
    )
    yield from _conv(f"{side}.conv_in", f"{side}.conv_in")
    for index, width in enumerate(widths):
        level = last - index if reverse else index
        for block in range(count):
            into = widths[max(index - 1, 0)] if block == 0 else width
            yield from _residual(
                f"{side}.levels.{index}.blocks.{block}",
                f"{side}.{block_name.format(level=level, block=block)}",
                spelling.shortcut if into != width else None,
            )
        if index < last:
            theirs = f"{side}.{resample_name.format(level=level)}"
            yield from _conv(f"{side}.levels.{index}.resample", theirs)
    yield from _middle(side, spelling)
    yield from _norm(f"{side}.norm_out", f"{side}.{spelling.norm_out}")
    yield from _conv(f"{side}.conv_out", f"{side}.conv_out")


def _middle(side: str, spelling: _Spelling) -> Iterable[Source]:
    for ours, theirs in zip(("block1", "block2"), spelling.middle_blocks, strict=True):
        yield from _residual(f"{side}.middle.{ours}", f"{side}.{theirs}", None)
    ours, theirs = f"{side}.middle.attention", f"{side}.{spelling.attention}"
    yield from _norm(f"{ours}.norm", f"{theirs}.{spelling.attention_norm}")
    yield from _linear(f"{ours}.qkv", *(f"{theirs}.{name}" for name in spelling.qkv))
    yield from _linear(f"{ours}.out", f"{theirs}.{spelling.attention_out}")


def _residual(ours: str, theirs: str, shortcut: str | None) -> Iterable[Source]:
    for number in (1, 2):
        yield from _norm(f"{ours}.norm{number}", f"{theirs}.norm{number}")
        yield from _conv(f"{ours}.conv{number}", f"{theirs}.conv{number}")
    if shortcut:
        yield from _linear(f"{ours}.shortcut", f"{theirs}.{shortcut}")


def _conv(ours: str, theirs: str) -> Iterable[Source]:
    yield one(f"{ours}.kernel", f"{theirs}.weight", layout="conv")
    yield one(f"{ours}.bias", f"{theirs}.bias")


def _linear(ours: str, *theirs: str) -> Iterable[Source]:
    """Also 1x1 convolutions, which are linear layers over channels."""
    yield one(f"{ours}.kernel", *(f"{name}.weight" for name in theirs))
    yield one(f"{ours}.bias", *(f"{name}.bias" for name in theirs))


def _norm(ours: str, theirs: str) -> Iterable[Source]:
    yield one(f"{ours}.scale", f"{theirs}.weight")
    yield one(f"{ours}.bias", f"{theirs}.bias")
