"""Model sizes, from the laptop's nano to the published models (docs/design.md, section 2)."""

import ast
import dataclasses
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

Config = TypeVar("Config")


@dataclasses.dataclass(frozen=True)
class CoTIRConfig:
    """Everything that fixes the shape and the numerics of one CoTIR model.

    Attributes:
      name: preset name, stored in model folders.
      family: "flux1" or "flux2", the transformer's kind.
      hidden_size, num_heads: width of every block; `head_dim = hidden_size / num_heads`.
      num_double_blocks, num_single_blocks: depth of the two halves of the transformer.
      axes_dim: rotary channels per position axis (t, y, x, l); they add up to `head_dim`.
      theta: base of the rotary frequencies.
      mlp_ratio: MLP width over hidden size in the transformer (SwiGLU doubles its input side).
      in_channels: channels of one image token, after the autoencoder.
      text_channels: width of the text embeddings, and of the three thoughts.
      text_tokens: length that prompts and thoughts are padded or cut to.
      pooled_channels: width of the pooled text vector that joins the conditioning vector; 0: none.
      guidance_embed: whether a guidance value is embedded as the timestep is.
      guidance: value used in restoring: embedded where `guidance_embed`, otherwise the scale of
        two-pass guidance (with the prompt and with an empty one); 0 is a single pass.
      reference_cache: condition tokens attend only to themselves and are seen at timestep 0, so
        that their keys and values are computed once for all sampling steps (klein-9b-kv).
      adapter_depth, adapter_mlp_ratio: the CoT adapter's blocks; depth 0 is no adapter at all, so
        nothing is predicted of the thoughts and no constraint is left.
      lora_rank, lora_scale: rank 0 builds no LoRA parameters.
      lora_bias: with rank 0, whether LoRA's output bias is there all the same. It is what remains
        of LoRA once it is merged into linears that have no bias of their own.
      position_dtype: precision of position ids, rotary frequencies and angles. The released
        weights were trained with "bfloat16", which loses text positions above 256; new training
        uses "float32".
      prediction: what the transformer's output means. "velocity" is the published reading.
        "correction" reads it as a correction to the degraded picture's latents, which makes the
        identity the starting point (`transformer.predict`).
      detail_channels: width of the convolutional head that turns tokens into a correction of
        pixels (`nano_head.NanoHead`); 0: the tokens are the correction.
      autoencoder: "patch" (exact, nothing learned), or "flux1" or "flux2" (the published ones).
      patch: pixels of a side of one image token.
      text_encoder: "minilm", "qwen3", or "t5" (with CLIP for the pooled vector).
      num_steps: sampling steps that the model is used with by default.
      tile: side in pixels of the overlapping tiles that pictures are restored in; 0: the picture
        at once. Small models see best at the size that they were trained on.
      base_dtype: dtype in which weights that do not train are held.
      dtype: dtype of matrix products and activations.
      remat: what the backward pass keeps of a block: "none" keeps everything, "dots" keeps matrix
        products, "full" recomputes all.
    """

    name: str
    hidden_size: int
    num_heads: int
    num_double_blocks: int
    num_single_blocks: int
    axes_dim: tuple[int, ...]
    text_channels: int
    family: str = "flux2"
    theta: float = 2000.0
    mlp_ratio: float = 3.0
    in_channels: int = 128
    text_tokens: int = 512
    pooled_channels: int = 0
    guidance_embed: bool = False
    guidance: float = 0.0
    reference_cache: bool = False
    adapter_depth: int = 6
    adapter_mlp_ratio: float = 4.0
    lora_rank: int = 96
    lora_scale: float = 1.0
    lora_bias: bool = False
    position_dtype: str = "bfloat16"
    prediction: str = "velocity"
    detail_channels: int = 0
    autoencoder: str = "flux2"
    patch: int = 16
    text_encoder: str = "qwen3"
    num_steps: int = 5
    tile: int = 0
    base_dtype: str = "bfloat16"
    dtype: str = "bfloat16"
    remat: str = "full"

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}"
            )
        if sum(self.axes_dim) != self.head_dim or any(dim % 2 for dim in self.axes_dim):
            raise ValueError(
                f"axes_dim {self.axes_dim} must be even numbers that add up to the head size "
                f"{self.head_dim} = {self.hidden_size} / {self.num_heads}"
            )
        if self.num_double_blocks < 1 or self.num_single_blocks < 2 or self.adapter_depth < 0:
            raise ValueError(
                f"{self.name}: needs at least 1 double block, 2 single blocks and adapter depth 0, "
                f"got {self.num_double_blocks}, {self.num_single_blocks}, {self.adapter_depth}"
            )
        for field, accepted in _CHOICES.items():
            if getattr(self, field) not in accepted:
                raise ValueError(f"{field}={getattr(self, field)!r}: accepted are {accepted}")
        if self.detail_channels and (
            self.prediction != "correction" or self.autoencoder != "patch" or self.patch % 8
        ):
            raise ValueError(
                f"{self.name}: detail_channels needs prediction='correction', autoencoder='patch' "
                f"and a patch that is a multiple of 8, got {self.prediction!r}, "
                f"{self.autoencoder!r} and {self.patch}"
            )
        if self.family == "flux1" and (
            self.prediction != "velocity" or self.reference_cache or not self.pooled_channels
        ):
            raise ValueError(
                f"{self.name}: the flux1 family predicts the velocity, has no reference cache and "
                "needs pooled_channels"
            )

    @property
    def head_dim(self) -> int:
        """Channels of an attention head."""
        return self.hidden_size // self.num_heads

    @property
    def two_passes(self) -> bool:
        """Whether restoring takes a second pass, with an empty prompt, at each step."""
        return self.guidance > 0 and not self.guidance_embed


_CHOICES = {
    "family": ("flux1", "flux2"),
    "position_dtype": ("bfloat16", "float32"),
    "prediction": ("velocity", "correction"),
    "autoencoder": ("patch", "flux1", "flux2"),
    "text_encoder": ("minilm", "qwen3", "t5"),
    "base_dtype": ("bfloat16", "float32"),
    "dtype": ("bfloat16", "float32"),
    "remat": ("none", "dots", "full"),
}


def preset(name: str, overrides: str = "") -> CoTIRConfig:
    """Returns the preset `name` with some fields replaced.

    Args:
      name: key of `PRESETS`.
      overrides: keyword arguments as text, "hidden_size=256, remat='dots'".

    Raises:
      ValueError: for an unknown preset or field, or values that do not fit together.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown model {name!r}: known are {sorted(PRESETS)}")
    try:
        call = ast.parse(f"f({overrides})", mode="eval").body
        fields = {word.arg: ast.literal_eval(word.value) for word in call.keywords}
    except (SyntaxError, ValueError):
        raise ValueError(f"model overrides {overrides!r}: write them as field=value, ...") from None
    known = {field.name for field in dataclasses.fields(CoTIRConfig)}
    if set(fields) - known:
        raise ValueError(
            f"unknown model fields {sorted(set(fields) - known)}: known are {sorted(known)}"
        )
    return dataclasses.replace(PRESETS[name], **fields)


def rebuild(kind: type[Config], fields: Mapping[str, Any]) -> Config:
    """Rebuilds a config dataclass from the JSON of `dataclasses.asdict`.

    Args:
      kind: `CoTIRConfig`, or the config of an autoencoder or a text encoder.
      fields: as JSON gives them; lists become tuples.

    Raises:
      ValueError: for a field that the config does not have, or lacks.
    """
    known = {field.name: field.default for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    missing = {name for name, default in known.items() if default is dataclasses.MISSING}
    unknown, missing = set(fields) - set(known), missing - set(fields)
    if unknown or missing:
        raise ValueError(
            f"{kind.__name__}: unknown fields {sorted(unknown)}, missing {sorted(missing)}; "
            f"known are {sorted(known)}"
        )
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})


def _read_presets() -> dict[str, CoTIRConfig]:
    read: dict[str, CoTIRConfig] = {}
    text = (Path(__file__).parent / "presets.toml").read_text(encoding="utf-8")
    for name, fields in tomllib.loads(text).items():
        like = fields.pop("like", None)
        base = dataclasses.asdict(read[like]) if like else {}
        read[name] = rebuild(CoTIRConfig, base | fields | {"name": name})
    return read


PRESETS = _read_presets()
