"""Floating-point operations of a training step, counted from the sizes.

Two for each multiplication of a matrix product or convolution with the addition that follows;
everything else is small in comparison. XLA's own count leaves out Pallas kernels and takes the body
of a loop once.
"""

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
        """Both passes."""
        return self.forward + self.backward


class _Step(NamedTuple):
    """Sizes of a training step of one sample.

    Attributes:
      config: the model's sizes.
      everything: whether all weights train, rather than LoRA and adapter.
      rows: of text, noisy latents and condition.
      target: rows of the noisy latents; the condition has as many.
      output: rows that the last layers compute.
      mlp: width of an MLP.
      wide: width of its first layer's output, which FLUX.2 gates.
    """

    config: CoTIRConfig
    everything: bool
    rows: int
    target: int
    output: int
    mlp: int
    wide: int

    def frozen(self, size: float, *, reached: bool = True) -> Work:
        """A base weight: a gradient passes through it to what trains below it, where it does.

        Args:
          size: multiplications.
          reached: whether something that trains is below, where the base does not.
        """
        if self.everything:
            return trained(size)
        return Work(size, size if reached else 0.0)

    def lora(self, rows: int, into: int, out: int) -> Work:
        """LoRA's two products."""
        return trained(rows * min(self.config.lora_rank, into, out) * (into + out))

    def attention(self, pairs: float, *, reached: bool = True) -> Work:
        """Logits and weighted sums over pairs of rows."""
        forward = 2 * pairs * self.config.hidden_size
        return Work(forward, 2 * forward if reached or self.everything else 0.0)


def training_step(
    config: CoTIRConfig,
    batch: int,
    patch_size: int,
    *,
    trainable: str = "lora_and_adapter",
    all_adapter_rows: bool = False,
    text_encoders: bool = False,
) -> dict[str, Work]:
    """Counts a training step's FLOPs by part, of all devices together.

    Model FLOPs: what `remat` computes again is left out.

    Args:
      config: the model's sizes.
      batch: samples.
      patch_size: side of the pictures in pixels.
      trainable: as in `TrainSettings`.
      all_adapter_rows: count the adapter as the release computes it: queries, MLP and output
        projection of the image rows too, which nothing reads (docs/design.md, section 3).
      text_encoders: count them too; they are part of the step or run ahead of it.

    Returns:
      `embed` (input layers and modulations), `double`, `adapter`, `single`, `final`, `detail`,
      `autoencoder` and, if asked for, `text`.
    """
    target = (patch_size // config.patch) ** 2
    mlp = int(config.hidden_size * config.mlp_ratio)
    step = _Step(
        config,
        everything=trainable == "all",
        rows=config.text_tokens + 2 * target,
        target=target,
        output=2 * target if config.prediction == "correction" else target,
        mlp=mlp,
        wide=2 * mlp if config.family == "flux2" else mlp,
    )
    adapter_rows = step.rows if all_adapter_rows else config.text_tokens
    parts = {
        "embed": _embed(step),
        "double": _times(_double(step), config.num_double_blocks),
        "adapter": _adapter(config, 2 * target, adapter_rows),
        "single": _sum(_times(_single(step), config.num_single_blocks - 1), _last_single(step)),
        "final": _final(step),
        "detail": _detail(config, patch_size),
        "autoencoder": Work(2 * _encoder(config, patch_size), 0),
    }
    counted = {name: _times(work, 2 * batch) for name, work in parts.items()}
    if text_encoders:
        counted["text"] = Work(encoding(config, batch), 0)
    return counted


def _embed(step: _Step) -> Work:
    """Input layers, which pass no gradient on to the step's inputs, and shared modulations."""
    config, hidden = step.config, step.config.hidden_size
    read = 2 * step.target * config.in_channels * hidden
    read += config.text_tokens * config.text_channels * hidden
    vectors = (256 + hidden) * hidden * (2 if config.guidance_embed else 1)
    if config.pooled_channels:
        vectors += (config.pooled_channels + hidden) * hidden
    if config.family == "flux2":
        vectors += 15 * hidden**2
    return _sum(Work(read, read * step.everything), step.frozen(vectors, reached=False))


def _double(step: _Step) -> Work:
    """One double block; nothing below it trains with LoRA and adapter."""
    hidden = step.config.hidden_size
    layers = step.rows * hidden * (4 * hidden + step.wide + step.mlp)
    if step.config.family == "flux1":
        layers += 12 * hidden**2
    return _sum(step.frozen(layers, reached=False), step.attention(_pairs(step), reached=False))


def _pairs(step: _Step) -> float:
    """Pairs of rows that attend; a cached condition's rows attend only to each other."""
    if step.config.reference_cache:
        return (step.config.text_tokens + step.target) * step.rows + step.target**2
    return step.rows**2


def _single(step: _Step) -> Work:
    """One single block."""
    hidden, rows, mlp, wide = step.config.hidden_size, step.rows, step.mlp, step.wide
    return _sum(
        step.frozen(rows * hidden * (3 * hidden + wide + hidden + mlp)),
        step.lora(rows, hidden, 3 * hidden + wide),
        step.lora(rows, hidden + mlp, hidden),
        _single_modulation(step),
        step.attention(_pairs(step)),
    )


def _last_single(step: _Step) -> Work:
    """The last single block: keys and values of all rows, the rest of those that are read."""
    hidden, rows, out, wide = step.config.hidden_size, step.rows, step.output, step.wide
    rank = min(step.config.lora_rank, hidden)
    return _sum(
        step.frozen(rows * 2 * hidden**2 + out * hidden * (2 * hidden + wide + step.mlp)),
        trained(rank * (rows * 3 * hidden + out * (3 * hidden + wide))),
        step.lora(out, hidden + step.mlp, hidden),
        _single_modulation(step),
        step.attention(out * rows),
    )


def _single_modulation(step: _Step) -> Work:
    """Of every single block in FLUX.1; FLUX.2 has one modulation for all (`_embed`)."""
    if step.config.family == "flux2":
        return Work(0, 0)
    hidden = step.config.hidden_size
    return _sum(step.frozen(3 * hidden**2, reached=False), step.lora(1, hidden, 3 * hidden))


def _final(step: _Step) -> Work:
    """The final layer and its modulation."""
    hidden, channels = step.config.hidden_size, step.config.in_channels
    return _sum(
        step.frozen(step.output * hidden * channels),
        step.lora(step.output, hidden, channels),
        step.frozen(2 * hidden**2, reached=False),
        step.lora(1, hidden, 2 * hidden),
    )


def encoding(config: CoTIRConfig, batch: int) -> float:
    """Counts the FLOPs of encoding prompt and thoughts of `batch` samples, at published sizes.

    All `text_tokens` positions count: padding is encoded too, as the model reads it.
    """
    tokens, pooled = configs.encoder_configs(config)
    one = _TEXTS * configs.text_flops(tokens, config.text_tokens)
    if pooled is not None:
        one += configs.text_flops(pooled, pooled.max_tokens)
    return batch * one


def total(parts: dict[str, Work]) -> float:
    """Adds up the FLOPs of all parts, forward and backward."""
    return sum(work.total for work in parts.values())


def trained(size: float) -> Work:
    """Counts a weight that trains: a gradient of its own, and one that passes through."""
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
    """The convolutional head for one picture; only a model of which all weights train has one."""
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
