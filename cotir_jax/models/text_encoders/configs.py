"""Which text encoders belong to a model, at their published sizes."""

from collections.abc import Callable

from flax import nnx

from cotir_jax.models.presets import CoTIRConfig
from cotir_jax.models.text_encoders.clip import CLIPConfig, CLIPText
from cotir_jax.models.text_encoders.minilm import MiniLM, MiniLMConfig
from cotir_jax.models.text_encoders.qwen3 import QWEN3_4B, QWEN3_8B, Qwen3, Qwen3Config
from cotir_jax.models.text_encoders.t5 import T5Config, T5Encoder

EncoderConfig = CLIPConfig | MiniLMConfig | Qwen3Config | T5Config

# Kind -> module and config.
ENCODERS: dict[str, tuple[Callable[..., nnx.Module], type[EncoderConfig]]] = {
    "minilm": (MiniLM, MiniLMConfig),
    "qwen3": (Qwen3, Qwen3Config),
    "t5": (T5Encoder, T5Config),
    "clip": (CLIPText, CLIPConfig),
}


def encoder_configs(config: CoTIRConfig) -> tuple[EncoderConfig, CLIPConfig | None]:
    """Sizes of the encoder of tokens, and of the pooled one where the model has one.

    Raises:
      ValueError: where no published encoder has the model's text channels.
    """
    if config.text_encoder == "minilm":
        return MiniLMConfig(), None
    if config.text_encoder == "t5":
        return T5Config(), CLIPConfig()
    sizes = {encoder.width: encoder for encoder in (QWEN3_4B, QWEN3_8B)}
    if config.text_channels not in sizes:
        raise ValueError(
            f"text_channels {config.text_channels}: no Qwen3 of this width is known, expected "
            f"{sorted(sizes)}"
        )
    return sizes[config.text_channels], None


def text_flops(config: EncoderConfig, tokens: int) -> float:
    """FLOPs of encoding one text of `tokens` tokens, matrix products only."""
    if isinstance(config, Qwen3Config):
        inner, key_value = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        row = config.hidden_size * (2 * inner + 2 * key_value + 3 * config.mlp_size)
    elif isinstance(config, T5Config):
        inner = config.num_heads * config.head_dim
        row = config.width * (4 * inner + 3 * config.mlp_size)
    else:
        inner = config.hidden_size
        row = config.hidden_size * (4 * inner + 2 * config.mlp_size)
    return 2.0 * config.num_layers * tokens * (row + 2 * tokens * inner)
