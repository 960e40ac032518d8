"""Names of the FLUX autoencoders' tensors: the native `ae.safetensors` and diffusers' `vae/`."""

import dataclasses
import re
from collections.abc import Iterator, Sequence

from cotir_jax.conversion.name_tables import Row, Table, one
from cotir_jax.conversion.names import TABLES
from cotir_jax.models.autoencoder import AutoencoderConfig


def native(config: AutoencoderConfig) -> Table:
    """Names in Black Forest Labs' `ae.safetensors`."""
    return _table(config, True)


def diffusers(config: AutoencoderConfig) -> Table:
    """Names in a diffusers `vae/` folder (`AutoencoderKL`, `AutoencoderKLFlux2`)."""
    table = _table(config, False)
    rows = [
        dataclasses.replace(row, names=(tuple(map(_diffusers_name, row.names[0])),))
        for row in table.rows
    ]
    return table._replace(rows=rows)


def _diffusers_name(name: str) -> str:
    for pattern, replacement in TABLES["autoencoder"].items():
        name = re.sub(pattern, replacement, name)
    return name


def _table(config: AutoencoderConfig, up_from_highest: bool) -> Table:
    """Native names; `up_from_highest`: the decoder's levels count from the highest resolution."""
    widths = [config.channels * multiplier for multiplier in config.multipliers]
    count = config.num_res_blocks
    levels = range(len(widths))
    up_levels = levels[::-1] if up_from_highest else levels
    rows = [
        *_half("encoder", "down", widths, count, levels),
        *_half("decoder", "up", widths[::-1], count + 1, up_levels),
    ]
    if config.kind == "flux1":
        return Table(rows)
    rows += _linear("quant", "encoder.quant_conv")
    rows += _linear("post_quant", "decoder.post_quant_conv")
    rows += [one(name, f"bn.{name}") for name in ("running_mean", "running_var")]
    return Table(rows, {r"bn\.num_batches_tracked": "a counter of training steps"})


def _half(
    side: str, way: str, widths: list[int], count: int, levels: Sequence[int]
) -> Iterator[Row]:
    """Rows of the encoder ("down") or the decoder ("up").

    Widths of the levels and their numbers on disk are in the order of computation; each level has
    `count` residual blocks.
    """
    yield from _conv(f"{side}.conv_in", f"{side}.conv_in")
    for index, (width, level) in enumerate(zip(widths, levels, strict=True)):
        ours, theirs = f"{side}.levels.{index}", f"{side}.{way}.{level}"
        for block in range(count):
            into = widths[max(index - 1, 0)] if block == 0 else width
            yield from _residual(
                f"{ours}.blocks.{block}", f"{theirs}.block.{block}", shortcut=into != width
            )
        if index < len(widths) - 1:
            yield from _conv(f"{ours}.resample", f"{theirs}.{way}sample.conv")
    ours, theirs = f"{side}.middle", f"{side}.mid"
    for number in (1, 2):
        yield from _residual(f"{ours}.block{number}", f"{theirs}.block_{number}")
    ours, theirs = f"{ours}.attention", f"{theirs}.attn_1"
    yield from _norm(f"{ours}.norm", f"{theirs}.norm")
    yield from _linear(f"{ours}.qkv", *(f"{theirs}.{name}" for name in "qkv"))
    yield from _linear(f"{ours}.out", f"{theirs}.proj_out")
    yield from _norm(f"{side}.norm_out", f"{side}.norm_out")
    yield from _conv(f"{side}.conv_out", f"{side}.conv_out")


def _residual(ours: str, theirs: str, shortcut: bool = False) -> Iterator[Row]:
    for number in (1, 2):
        yield from _norm(f"{ours}.norm{number}", f"{theirs}.norm{number}")
        yield from _conv(f"{ours}.conv{number}", f"{theirs}.conv{number}")
    if shortcut:
        yield from _linear(f"{ours}.shortcut", f"{theirs}.nin_shortcut")


def _conv(ours: str, theirs: str) -> Iterator[Row]:
    yield one(f"{ours}.kernel", f"{theirs}.weight", layout="conv")
    yield one(f"{ours}.bias", f"{theirs}.bias")


def _linear(ours: str, *theirs: str) -> Iterator[Row]:
    """Also 1x1 convolutions, which are linear layers over channels."""
    yield one(f"{ours}.kernel", *(f"{name}.weight" for name in theirs))
    yield one(f"{ours}.bias", *(f"{name}.bias" for name in theirs))


def _norm(ours: str, theirs: str) -> Iterator[Row]:
    yield one(f"{ours}.scale", f"{theirs}.weight")
    yield one(f"{ours}.bias", f"{theirs}.bias")
