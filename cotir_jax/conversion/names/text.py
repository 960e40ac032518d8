"""Names of the three published text encoders, as transformers writes them.

Each function takes the encoder's sizes and the names that are on disk.
"""

import re
from collections.abc import Collection

from cotir_jax.conversion.name_tables import Row, Table, one, per_layer
from cotir_jax.conversion.names import TABLES
from cotir_jax.models.text_encoders.clip import CLIPConfig
from cotir_jax.models.text_encoders.qwen3 import Qwen3Config
from cotir_jax.models.text_encoders.t5 import T5Config


def qwen3(config: Qwen3Config, present: Collection[str]) -> Table:
    """Names of Qwen3, with a language model's head (names below `model.`) or without."""
    prefix = "model." if any(name.startswith("model.") for name in present) else ""
    count = config.num_layers
    rows = [one("token_embedding", f"{prefix}embed_tokens.weight", layout="same")]
    rows += _layers("qwen3", count, f"{prefix}layers.{{}}.")
    layer_of = re.compile(re.escape(prefix) + r"layers\.(\d+)\..+")
    numbers = {int(found[1]) for name in present if (found := layer_of.fullmatch(name))}
    above = f"no hidden state above {count} is used"
    unneeded = {
        **{rf"{re.escape(prefix)}layers\.{i}\..+": above for i in sorted(numbers) if i >= count},
        rf"{re.escape(prefix)}norm\.weight": "hidden states are read before the final norm",
        r"lm_head\.weight": "nothing is generated",
    }
    return Table(rows, unneeded)


def t5(config: T5Config, present: Collection[str]) -> Table:
    """Names of T5 v1.1, with or without the decoder."""
    shared, copy = "shared.weight", "encoder.embed_tokens.weight"
    embedding = copy if copy in present and shared not in present else shared
    bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    rows = [
        one("token_embedding", embedding, layout="same"),
        one("position_bias", bias, layout="same"),
        *_layers("t5", config.num_layers, "encoder.block.{}."),
        one("final_norm.scale", "encoder.final_layer_norm.weight"),
    ]
    unneeded = {
        r"decoder\..+": "only the encoder is used",
        r"lm_head\.weight": "nothing is generated",
    }
    if embedding == shared:
        unneeded[re.escape(copy)] = f"tied copy of {shared}"
    return Table(rows, unneeded)


def clip(config: CLIPConfig, present: Collection[str]) -> Table:
    """Names of CLIP's text encoder, below `text_model.` or not, with or without vision tower."""
    prefix = "text_model." if any(name.startswith("text_model.") for name in present) else ""
    embeddings = f"{prefix}embeddings"
    rows = [
        one("token_embedding", f"{embeddings}.token_embedding.weight", layout="same"),
        one("position_embedding", f"{embeddings}.position_embedding.weight", layout="same"),
        *_layers("clip", config.num_layers, f"{prefix}encoder.layers.{{}}."),
        one("final_norm.scale", f"{prefix}final_layer_norm.weight"),
        one("final_norm.bias", f"{prefix}final_layer_norm.bias"),
    ]
    unneeded = {
        rf"{re.escape(embeddings)}\.position_ids": "a constant: 0, 1, 2, ...",
        r"vision_model\..+": "only the text encoder is used",
        r"(text|visual)_projection\.weight": "FLUX.1 takes the vector before the projection",
        r"logit_scale": "no picture is compared with a text",
    }
    return Table(rows, unneeded)


def _layers(kind: str, count: int, prefix: str) -> list[Row]:
    names = TABLES[kind].items()
    return [per_layer(f"blocks.{ours}", count, prefix + theirs) for ours, theirs in names]
