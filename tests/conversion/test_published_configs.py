"""Text encoders' published files: every tensor has its place, every config is read or refused."""

import dataclasses
import gzip
import json
import math

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from cotir_jax.conversion import published_configs
from cotir_jax.conversion.name_tables import account
from cotir_jax.conversion.names import text
from cotir_jax.models.presets import rebuild
from cotir_jax.models.text_encoders import clip, qwen3, t5


def _dotted(path):
    return ".".join(map(str, path))


# Names at full size


@pytest.mark.parametrize(
    "file, module, config, table, unneeded",
    [
        ("qwen3-4b", qwen3.Qwen3, qwen3.QWEN3_4B, text.qwen3, 9 * 11 + 2),
        ("qwen3-8b", qwen3.Qwen3, qwen3.QWEN3_8B, text.qwen3, 9 * 11 + 2),
        ("t5-v1_1-xxl-encoder", t5.T5Encoder, t5.T5Config(), text.t5, 1),
        ("clip-vit-large-patch14-text", clip.CLIPText, clip.CLIPConfig(), text.clip, 0),
    ],
)
@pytest.mark.parametrize("prefixed", [True, False])
def test_every_published_tensor_is_accounted_for(
    manifests, file, module, config, table, unneeded, prefixed
):
    manifest = json.loads(gzip.decompress((manifests / f"{file}.json.gz").read_bytes()))
    shapes = {name: tuple(shape) for name, shape in dict(manifest["tensors"]).items()}
    if module is qwen3.Qwen3 and not prefixed:
        shapes = {name.removeprefix("model."): shape for name, shape in shapes.items()}
    if module is clip.CLIPText and prefixed:
        shapes = {f"text_model.{name}": shape for name, shape in shapes.items()}
    state = jax.eval_shape(lambda: nnx.split(module(config, rngs=nnx.Rngs(0)))[1])
    flat = dict(nnx.to_flat_state(state))
    targets = {_dotted(path): variable.shape for path, variable in flat.items()}
    assert {variable.dtype for variable in flat.values()} == {jnp.dtype("bfloat16")}
    rows = table(config, shapes)
    assert account(rows, shapes, targets) == []
    assert sorted(row.path for row in rows.rows) == sorted(targets)
    used = [name for row in rows.rows for layer in row.names for name in layer]
    assert len(set(used)) == len(used)
    left = set(shapes) - set(used)
    assert len(left) == unneeded
    size = lambda shapes: sum(math.prod(shape) for shape in shapes)  # noqa: E731
    assert size(targets.values()) == manifest["parameters"] - size(shapes[name] for name in left)


def test_t5_takes_either_name_of_its_embedding():
    config = t5.T5Config(num_layers=1)
    only_copy = text.t5(config, ["encoder.embed_tokens.weight"])
    assert only_copy.rows[0].names == (("encoder.embed_tokens.weight",),)
    assert "encoder\\.embed_tokens\\.weight" not in only_copy.unneeded
    assert text.t5(config, []).rows[0].names == (("shared.weight",),)


# Configs

READERS = {
    qwen3: published_configs.qwen3,
    t5: published_configs.t5,
    clip: published_configs.clip,
}
PUBLISHED = {
    # What stands in the published files, transformers 4 style.
    qwen3: (
        dict(
            model_type="qwen3",
            vocab_size=151936,
            hidden_size=2560,
            intermediate_size=9728,
            num_hidden_layers=36,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=128,
            hidden_act="silu",
            rms_norm_eps=1e-6,
            rope_theta=1000000,
            rope_scaling=None,
            attention_bias=False,
            use_sliding_window=False,
            sliding_window=None,
            tie_word_embeddings=True,
            torch_dtype="bfloat16",
        ),
        qwen3.QWEN3_4B,
    ),
    t5: (
        dict(
            model_type="t5",
            vocab_size=32128,
            d_model=4096,
            d_ff=10240,
            d_kv=64,
            num_heads=64,
            num_layers=24,
            num_decoder_layers=24,
            feed_forward_proj="gated-gelu",
            relative_attention_num_buckets=32,
            layer_norm_epsilon=1e-6,
            torch_dtype="bfloat16",
        ),
        t5.T5Config(),
    ),
    clip: (
        dict(
            model_type="clip_text_model",
            vocab_size=49408,
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
            max_position_embeddings=77,
            hidden_act="quick_gelu",
            layer_norm_eps=1e-5,
            eos_token_id=2,
            dtype="bfloat16",
        ),
        dataclasses.replace(clip.CLIPConfig(), end_id=2),
    ),
}


@pytest.mark.parametrize("module", PUBLISHED, ids=lambda module: module.__name__)
def test_published_config_files_and_json(module):
    fields, expected = PUBLISHED[module]
    assert READERS[module](fields) == expected
    again = json.loads(json.dumps(dataclasses.asdict(expected)))
    assert rebuild(type(expected), again) == expected
    with pytest.raises(ValueError, match="unknown fields.*colour"):
        rebuild(type(expected), {"colour": 1})


@pytest.mark.parametrize(
    "module, change, message",
    [
        (qwen3, {"model_type": "qwen2"}, "model_type 'qwen2', expected 'qwen3'"),
        (qwen3, {"attention_bias": True}, "attention_bias True"),
        (qwen3, {"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        (qwen3, {"use_sliding_window": True}, "use_sliding_window"),
        (qwen3, {"layer_types": ["sliding_attention"]}, "layer_types"),
        (qwen3, {"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_type 'yarn'"),
        (qwen3, {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e6}}, "rope_type"),
        (qwen3, {"rope_theta": None}, "rope_theta None"),
        (qwen3, {"num_hidden_layers": 27}, "27 layers, expected more than 27"),
        (qwen3, {"num_key_value_heads": 5}, "do not divide"),
        (qwen3, {"head_dim": "128"}, "head_dim '128'"),
        (qwen3, {"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
        (t5, {"model_type": "umt5"}, "model_type 'umt5'"),
        (t5, {"feed_forward_proj": "relu"}, "feed_forward_proj 'relu'"),
        (t5, {"dense_act_fn": "gelu"}, "dense_act_fn"),
        (t5, {"d_kv": None}, "d_kv None"),
        (clip, {"model_type": "siglip_text_model"}, "model_type"),
        (clip, {"hidden_act": "relu"}, "hidden_act 'relu', expected 'quick_gelu' or 'gelu'"),
        (clip, {"eos_token_id": [2, 3]}, "eos_token_id"),
        (clip, {"num_attention_heads": 7}, "does not divide"),
        (clip, {"model_type": "clip"}, "vocab_size None"),
    ],
)
def test_unsuitable_configs_are_refused(module, change, message):
    fields, _ = PUBLISHED[module]
    with pytest.raises(ValueError, match=message) as caught:
        READERS[module]({**fields, **change})
    assert "\n" not in str(caught.value)
