"""Names of the three published text encoders, as transformers writes them."""

import re
from collections.abc import Collection

from cotir_jax.conversion.name_tables import Row, Table, one, per_layer
from cotir_jax.models.text_encoders.clip import CLIPConfig
from cotir_jax.models.text_encoders.qwen3 import Qwen3Config
from cotir_jax.models.text_encoders.t5 import T5Config

# Ours -> theirs, below a layer.
_QWEN3 = {
    "attention_norm.scale": "input_layernorm.weight",
    "query.kernel": "self_attn.q_proj.weight",
    "key.kernel": "self_attn.k_proj.weight",
    "value.kernel": "self_attn.v_proj.weight",
    "query_norm.scale": "self_attn.q_norm.weight",
    "key_norm.scale": "self_attn.k_norm.weight",
    "attention_out.kernel": "self_attn.o_proj.weight",
    "mlp_norm.scale": "post_attention_layernorm.weight",
    "mlp_gate.kernel": "mlp.gate_proj.weight",
    "mlp_in.kernel": "mlp.up_proj.weight",
    "mlp_out.kernel": "mlp.down_proj.weight",
}
_T5 = {
    "attention_norm.scale": "layer.0.layer_norm.weight",
    "query.kernel": "layer.0.SelfAttention.q.weight",
    "key.kernel": "layer.0.SelfAttention.k.weight",
    "value.kernel": "layer.0.SelfAttention.v.weight",
    "attention_out.kernel": "layer.0.SelfAttention.o.weight",
    "mlp_norm.scale": "layer.1.layer_norm.weight",
    "mlp_gate.kernel": "layer.1.DenseReluDense.wi_0.weight",
    "mlp_in.kernel": "layer.1.DenseReluDense.wi_1.weight",
    "mlp_out.kernel": "layer.1.DenseReluDense.wo.weight",
}
# Each has a weight and a bias.
_CLIP_LINEARS = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "attention_out": "self_attn.out_proj",
    "mlp_in": "mlp.fc1",
    "mlp_out": "mlp.fc2",
}
_CLIP_NORMS = {"attention_norm": "layer_norm1", "mlp_norm": "layer_norm2"}


def qwen3(config: Qwen3Config, present: Collection[str]) -> Table:
    """Names of Qwen3, with a language model's head (names below `model.`) or without.

    Args:
      config: sizes.
      present: names on disk.
    """
    prefix = "model." if any(name.startswith("model.") for name in present) else ""
    count = config.num_layers
    rows = [one("token_embedding", f"{prefix}embed_tokens.weight", layout="same")]
    rows += _layers(_QWEN3, count, f"{prefix}layers.{{}}.")
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
    """Names of T5 v1.1, with or without the decoder.

    Args:
      config: sizes.
      present: names on disk.
    """
    shared, copy = "shared.weight", "encoder.embed_tokens.weight"
    embedding = copy if copy in present and shared not in present else shared
    bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    rows = [
        one("token_embedding", embedding, layout="same"),
        one("position_bias", bias, layout="same"),
        *_layers(_T5, config.num_layers, "encoder.block.{}."),
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
    """Names of CLIP's text encoder, below `text_model.` or not, with or without the vision tower.

    Args:
      config: sizes.
      present: names on disk.
    """
    prefix = "text_model." if any(name.startswith("text_model.") for name in present) else ""
    layer = f"{prefix}encoder.layers.{{}}."
    linears = {
        f"{ours}.{kind}": f"{theirs}.{suffix}"
        for ours, theirs in _CLIP_LINEARS.items()
        for kind, suffix in (("kernel", "weight"), ("bias", "bias"))
    }
    norms = {
        f"{ours}.{kind}": f"{theirs}.{suffix}"
        for ours, theirs in _CLIP_NORMS.items()
        for kind, suffix in (("scale", "weight"), ("bias", "bias"))
    }
    embeddings = f"{prefix}embeddings"
    rows = [
        one("token_embedding", f"{embeddings}.token_embedding.weight", layout="same"),
        one("position_embedding", f"{embeddings}.position_embedding.weight", layout="same"),
        *_layers(linears | norms, config.num_layers, layer),
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


def _layers(table: dict[str, str], count: int, prefix: str) -> list[Row]:
    return [per_layer(f"blocks.{ours}", count, prefix + theirs) for ours, theirs in table.items()]
