"""Floating-point operations of a training step, counted from the sizes.

Two for each multiplication of a matrix product or convolution with the addition that follows;
everything else is small beside them. XLA's own count leaves out Pallas kernels and takes the body
of a loop once.
"""

from __future__ import annotations

from typing import NamedTuple

from cotir_jax.models import nano_head
from cotir_jax.models.autoencoder import AUTOENCODERS
from cotir_jax.models.presets import CoTIRConfig
from cotir_jax.models.text_encoders import configs

# Prompt and thoughts of a sample.
_TEXTS = 4


class Work(NamedTuple):
    """FLOPs of one part: forward, and what its backward pass adds without recomputation."""

    forward: float
    backward: float

    @property
    def total(self) -> float:
        return self.forward + self.backward


def training_step(
    config: CoTIRConfig,
    batch: int,
    patch_size: int,
    *,
    trainable: str = "lora_and_adapter",
    all_adapter_rows: bool = False,
    text_encoders: bool = False,
) -> dict[str, Work]:
    """FLOPs of a training step by part, of all devices together.

    Model FLOPs: what `remat` computes again is left out.

    Args:
      config: the model's sizes.
      batch: samples.
      patch_size: side of the pictures in pixels.
      trainable: as in `TrainSettings`.
      all_adapter_rows: count the adapter as the release computes it: queries, MLP and output
        projection of the image rows too, which nothing reads (SPEC section 3).
      text_encoders: count them too; they are part of the step or run ahead of it.

    Returns:
      `embed` (input layers and modulations), `double`, `adapter`, `single`, `final`, `detail`,
      `autoencoder` and, if asked for, `text`.
    """
    everything = trainable == "all"
    hidden, text = config.hidden_size, config.text_tokens
    target = (patch_size // config.patch) ** 2
    image = 2 * target
    rows = text + image
    mlp, gates = int(hidden * config.mlp_ratio), 2 if config.family == "flux2" else 1
    # Where the condition's rows see themselves alone, they need fewer products.
    pairs = (text + target) * rows + target**2 if config.reference_cache else rows**2
    own = config.family == "flux1"  # a modulation in every block

    def frozen(size: float, *, reached: bool = True) -> Work:
        """A base weight: a gradient passes through to what lies below, where that trains."""
        return Work(size, (2.0 if everything else 1.0) * size if reached or everything else 0.0)

    def lora(rows: int, into: int, out: int) -> Work:
        return trained(rows * min(config.lora_rank, into, out) * (into + out))

    def attention(pairs: float, *, reached: bool = True) -> Work:
        return Work(2 * pairs * hidden, (4 if reached or everything else 0) * pairs * hidden)

    # Layers that read the step's inputs pass no gradient on to them.
    read = image * config.in_channels * hidden + text * config.text_channels * hidden
    embed = _sum(
        Work(read, read * everything),
        frozen(
            (256 + hidden) * hidden * (2 if config.guidance_embed else 1)
            + (config.pooled_channels + hidden) * hidden * (config.pooled_channels > 0)
            + (0 if own else 15 * hidden**2),
            reached=False,
        ),
    )
    double = _sum(
        frozen(
            rows * hidden * (4 * hidden + (gates + 1) * mlp) + own * 12 * hidden**2, reached=False
        ),
        attention(pairs, reached=False),
    )
    wide = 3 * hidden + gates * mlp
    single = _sum(
        frozen(rows * hidden * (wide + hidden + mlp)),
        lora(rows, hidden, wide),
        lora(rows, hidden + mlp, hidden),
        frozen(own * 3 * hidden**2, reached=False),
        lora(1, hidden, 3 * hidden) if own else Work(0, 0),
        attention(pairs),
    )
    out_rows = image if config.prediction == "correction" else target
    rank = min(config.lora_rank, hidden)
    last = _sum(
        frozen(rows * 2 * hidden**2 + out_rows * hidden * (2 * hidden + (gates + 1) * mlp)),
        trained(rank * (rows * 3 * hidden + out_rows * (3 * hidden + gates * mlp))),
        lora(out_rows, hidden + mlp, hidden),
        frozen(own * 3 * hidden**2, reached=False),
        lora(1, hidden, 3 * hidden) if own else Work(0, 0),
        attention(out_rows * rows),
    )
    final = _sum(
        frozen(out_rows * hidden * config.in_channels),
        lora(out_rows, hidden, config.in_channels),
        frozen(2 * hidden**2, reached=False),
        lora(1, hidden, 2 * hidden),
    )
    parts = {
        "embed": embed,
        "double": _times(double, config.num_double_blocks),
        "adapter": _adapter(config, image, rows if all_adapter_rows else text),
        "single": _sum(_times(single, config.num_single_blocks - 1), last),
        "final": final,
        "detail": _detail(config, patch_size),
        "autoencoder": Work(2 * _encoder(config, patch_size), 0),
    }
    counted = {name: _times(work, 2 * batch) for name, work in parts.items()}
    if text_encoders:
        counted["text"] = Work(encoding(config, batch), 0)
    return counted


def encoding(config: CoTIRConfig, batch: int) -> float:
    """FLOPs of encoding prompt and thoughts of `batch` samples, at the encoders' published sizes.

    All `text_tokens` positions count: padding is encoded too, as the model reads it.
    """
    tokens, pooled = configs.encoder_configs(config)
    one = _TEXTS * configs.text_flops(tokens, config.text_tokens)
    if pooled is not None:
        one += configs.text_flops(pooled, pooled.max_tokens)
    return batch * one


def total(parts: dict[str, Work]) -> float:
    """FLOPs of all parts, forward and backward."""
    return sum(work.total for work in parts.values())


def trained(size: float) -> Work:
    """A weight that trains: a gradient of its own, and one that passes through."""
    return Work(size, 2 * size)


def _adapter(config: CoTIRConfig, image: int, full_rows: int) -> Work:
    """The adapter; all rows get keys and values, `full_rows` of them the rest too."""
    if not config.adapter_depth:
        return Work(0, 0)
    hidden, text = config.hidden_size, config.text_tokens
    mlp = int(hidden * config.adapter_mlp_ratio)
    block = (
        (text + image) * hidden * 2 * hidden
        + full_rows * hidden * (2 * hidden + 2 * mlp)
        + 2 * full_rows * (text + image) * hidden
        + 3 * hidden**2
    )
    heads = text * 4 * hidden**2 + 3 * (text * hidden * config.text_channels + 2 * hidden**2)
    return trained(config.adapter_depth * block + heads)


def _detail(config: CoTIRConfig, patch_size: int) -> Work:
    """The convolutional head for one picture; only a model that trains whole has one."""
    if not (channels := config.detail_channels):
        return Work(0, 0)
    tokens = patch_size // config.patch
    fine = patch_size // nano_head.CELL
    coarse, half = fine // 2, fine * 2
    before, within, after, last = nano_head.BLOCKS
    sharp = 2 * channels // 3
    pixels = 3 * nano_head.CELL**2
    # Pixels and the change of colour in, pixels out.
    ends = fine**2 * 9 * pixels * (3 * channels + 4 * sharp)
    steered = {
        fine: 2 * channels * (before + after + 1) + 14,
        coarse: 4 * channels * within,
        half: 2 * sharp * last,
    }
    layers = (
        # Wider blocks at a quarter of the places cost what the others do.
        fine**2 * 18 * channels**2 * (before + within + after)
        + half**2 * 18 * sharp**2 * last
        + 16 * coarse**2 * channels**2
        + 4 * fine**2 * channels * sharp
        + ends
        + tokens**2 * config.in_channels * sum(steered.values())
        + config.text_channels * (config.in_channels + 2)
    )
    # Interpolation has no weights; the colour matrices pass no gradient on to the picture.
    once = fine**2 * 3 * pixels
    once += sum(width * tokens * side * (tokens + side) for side, width in steered.items())
    return _sum(trained(layers), Work(once, once))


def _encoder(config: CoTIRConfig, patch_size: int) -> float:
    """Multiplications of the autoencoder's encoder for one picture."""
    if config.autoencoder == "patch":
        return 0.0
    sizes = AUTOENCODERS[config.autoencoder]
    widths = [sizes.channels * multiplier for multiplier in sizes.multipliers]
    pixels, into = float(patch_size**2), widths[0]
    count = pixels * 9 * 3 * into
    for level, out in enumerate(widths):
        for _ in range(sizes.num_res_blocks):
            count += pixels * (9 * out * (into + out) + (into * out if into != out else 0))
            into = out
        if level < len(widths) - 1:
            pixels /= 4
            count += pixels * 9 * out * out
    count += pixels * 36 * into**2  # two residual blocks
    count += pixels * (4 * into**2 + 2 * pixels * into)  # attention
    latents = sizes.latent_channels
    count += pixels * 9 * into * 2 * latents
    return count + (pixels * 2 * latents**2 if sizes.kind == "flux2" else 0)


def _sum(*works: Work) -> Work:
    return Work(sum(w.forward for w in works), sum(w.backward for w in works))


def _times(work: Work, factor: float) -> Work:
    return Work(work.forward * factor, work.backward * factor)
