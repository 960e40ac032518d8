"""Loading a model's text encoders, from its folder or the packaged MiniLM."""

from __future__ import annotations

from pathlib import Path

from jax.sharding import Mesh

from cotir_jax.checkpoints import model_folder
from cotir_jax.models.presets import CoTIRConfig
from cotir_jax.parallel.sharding import Rules
from cotir_jax.text.encoder import TextEncoder
from cotir_jax.text.encoders import POOLED_TOKENS, TextEncoders
from cotir_jax.text.tokenizer import TextTokenizer


def load_text_encoders(
    folder: Path,
    config: CoTIRConfig,
    mesh: Mesh,
    rules: Rules,
    cache_gb: float = 1.0,
) -> TextEncoders:
    """Loads the encoders that the model was trained with.

    Args:
      folder: the model folder; not read for MiniLM, which is part of the package.
      config: the model's sizes.
      mesh: where the weights go.
      rules: logical axis -> mesh axis.
      cache_gb: memory for embeddings of texts that come again.

    Raises:
      ValueError: when the folder lacks the encoder or its tokenizer.
    """
    if config.text_encoder == "minilm":
        return TextEncoders(TextEncoder.minilm(config.text_tokens, cache_gb=cache_gb), None)

    def load(kind: str, tokens: int) -> TextEncoder:
        tokenizer = TextTokenizer(model_folder.tokenizer_folder(folder, kind), tokens, kind)
        module = model_folder.load_text_encoder(folder, kind, mesh, rules)
        # FLUX.1 reads T5 and CLIP without a padding mask.
        uses_mask = kind == "qwen3"
        return TextEncoder(module, tokenizer, mesh=mesh, cache_gb=cache_gb, uses_mask=uses_mask)

    pooled = load("clip", POOLED_TOKENS) if config.pooled_channels else None
    return TextEncoders(load(config.text_encoder, config.text_tokens), pooled)
