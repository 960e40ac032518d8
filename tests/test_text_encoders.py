"""T5, CLIP and Qwen3 against transformers, and their names against the full-size manifests."""

import contextlib
import dataclasses
import gzip
import io
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from cotir_jax import partitioning
from cotir_jax.checkpoints.names import text as names
from cotir_jax.checkpoints.sources import account, assemble
from cotir_jax.models.text import clip, qwen3, t5

TOKENS = 12
LENGTHS = (TOKENS, 7, 1, 0)  # text tokens in each row of a batch
ROWS = len(LENGTHS)


@pytest.fixture(scope="module")
def hf():
    pytest.importorskip("torch", reason="PyTorch runs the reference encoders")
    return pytest.importorskip("transformers", reason="the reference encoders")


def _saved(model, folder):
    """Random weights of all kinds, norms and biases too, to and from a folder of files."""
    import torch

    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            deviation = 0.5 / math.sqrt(parameter.shape[-1]) if parameter.ndim > 1 else 0.3
            mean = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            if "embed" in name or "shared" in name or "relative" in name:
                deviation = 1.0
            parameter.normal_(mean, deviation)
    model.eval()
    with contextlib.redirect_stderr(io.StringIO()):
        model.save_pretrained(folder)
    fields = json.loads((folder / "config.json").read_text())
    return fields, load_file(folder / "model.safetensors")


def _fill(kind, config, table, tensors):
    graph, state = jax.eval_shape(lambda: nnx.split(kind(config, rngs=nnx.Rngs(0))))
    flat = nnx.to_flat_state(state)
    targets = {_dotted(path): variable.shape for path, variable in flat}
    problems = account(table, {name: array.shape for name, array in tensors.items()}, targets)
    assert not problems, problems
    assert sorted(row.path for row in table.rows) == sorted(targets)
    arrays = {
        row.path: assemble(row, tensors.__getitem__, targets[row.path], np.dtype(np.float32))
        for row in table.rows
    }
    filled = [(path, v.replace(jnp.asarray(arrays[_dotted(path)]))) for path, v in flat]
    return nnx.merge(graph, nnx.from_flat_state(filled))


_jitted = nnx.jit(lambda model, *inputs: model(*inputs))


def _run(model, *inputs):
    return np.asarray(_jitted(model, *inputs))


def _dotted(path):
    return ".".join(map(str, path))


def _ids(vocab, seed=0, rows=ROWS):
    return np.random.default_rng(seed).integers(3, vocab, (rows, TOKENS)).astype(np.int32)


def _mask(side):
    columns = np.arange(TOKENS) if side == "right" else np.arange(TOKENS)[::-1]
    return columns[None, :] < np.array(LENGTHS)[:, None]


def _torch(array):
    import torch

    return torch.from_numpy(np.asarray(array, np.int64))


def _close(ours, theirs):
    theirs = theirs.detach().numpy()
    assert ours.shape == theirs.shape and ours.dtype == np.float32
    # Each row of the last axis by itself, so that a small one cannot hide behind large ones.
    error = np.linalg.norm(ours - theirs, axis=-1) / np.linalg.norm(theirs, axis=-1)
    # The observed error is below 1e-6; the wrong form of GELU gives 6e-5.
    assert error.max() < 5e-6


# Qwen3

QWEN3_FIELDS = dict(
    vocab_size=50,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=7,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    rope_parameters={"rope_theta": 1e6, "rope_type": "default"},
)
OUTPUT_LAYERS = (2, 3, 6)


def _qwen3(hf, folder, kind="Qwen3ForCausalLM"):
    reference = getattr(hf, kind)(hf.Qwen3Config(**QWEN3_FIELDS))
    fields, tensors = _saved(reference, folder)
    config = qwen3.from_transformers(fields, OUTPUT_LAYERS)
    return reference, _fill(qwen3.Qwen3, config, names.qwen3(config, tensors), tensors)


@pytest.fixture(scope="module")
def qwen3_pair(hf, tmp_path_factory):
    return _qwen3(hf, tmp_path_factory.mktemp("qwen3"))


@pytest.mark.parametrize("side", ["right", "left"])
def test_qwen3_agrees_with_transformers_at_every_position(qwen3_pair, side):
    reference, model = qwen3_pair
    ids, mask = _ids(50), _mask(side)
    states = reference(
        input_ids=_torch(ids), attention_mask=_torch(mask), output_hidden_states=True
    ).hidden_states
    ours = np.split(_run(model, ids, mask), len(OUTPUT_LAYERS), axis=-1)
    for layer, state in zip(OUTPUT_LAYERS, ours, strict=True):
        _close(state, states[layer])


def test_qwen3_without_a_head_and_with_long_text(hf, tmp_path):
    reference, model = _qwen3(hf, tmp_path, "Qwen3Model")
    ids = np.random.default_rng(1).integers(0, 50, (1, 512)).astype(np.int32)
    mask = np.arange(512)[None] < 300
    states = reference(
        input_ids=_torch(ids), attention_mask=_torch(mask), output_hidden_states=True
    ).hidden_states
    _close(_run(model, ids, mask)[..., -24:], states[OUTPUT_LAYERS[-1]])


def test_qwen3_sees_neither_later_nor_padded_tokens(qwen3_pair):
    _, model = qwen3_pair
    ids, mask = _ids(50), _mask("right")
    before = _run(model, ids, mask)
    later = ids.copy()
    later[0, 5] = (later[0, 5] + 1) % 50
    after = _run(model, later, mask)
    assert np.array_equal(after[0, :5], before[0, :5])
    assert np.all(np.abs(after[0, 5:] - before[0, 5:]).max(-1) > 1e-4)
    padded = np.where(mask, ids, (ids + 1) % 50)
    assert np.array_equal(_run(model, padded, mask)[mask], before[mask])
    unmasked = _run(model, ids, np.ones_like(mask))
    assert np.all(np.abs(unmasked - before)[~mask].max(-1) > 1e-4)


def test_qwen3_is_the_same_on_a_mesh(qwen3_pair):
    _, model = qwen3_pair
    ids, mask = _ids(50), np.ones((ROWS, TOKENS), bool)
    expected = _run(model, ids, mask)
    mesh = partitioning.make_mesh({"fsdp": 4, "tensor": 2})
    rules = (("embed", "fsdp"), ("mlp", "tensor"), ("layers", None))
    graph, state = nnx.split(model)
    state = jax.device_put(state, partitioning.shardings(state, mesh, rules))
    assert not state["blocks"]["mlp_out"]["kernel"][...].sharding.is_fully_replicated
    assert not state["token_embedding"][...].sharding.is_fully_replicated
    inputs = partitioning.global_batch({"ids": ids, "mask": mask}, mesh)
    with jax.set_mesh(mesh):
        run = jax.jit(lambda state, ids, mask: nnx.merge(graph, state)(ids, mask))
        ours = run(state, inputs["ids"], inputs["mask"])
    np.testing.assert_allclose(np.asarray(ours), expected, rtol=2e-4, atol=2e-5)


# T5

T5_FIELDS = dict(
    vocab_size=50,
    d_model=24,
    d_kv=8,
    d_ff=40,
    num_layers=3,
    num_heads=4,
    feed_forward_proj="gated-gelu",
    relative_attention_num_buckets=8,
    relative_attention_max_distance=10,
)


@pytest.fixture(scope="module")
def t5_pair(hf, tmp_path_factory):
    reference = hf.T5EncoderModel(hf.T5Config(**T5_FIELDS))
    fields, tensors = _saved(reference, tmp_path_factory.mktemp("t5"))
    config = t5.from_transformers(fields)
    return reference, _fill(t5.T5Encoder, config, names.t5(config, tensors), tensors)


@pytest.mark.parametrize("masked", [False, True])
def test_t5_agrees_with_transformers(t5_pair, masked):
    reference, model = t5_pair
    ids, mask = _ids(50), _mask("right") if masked else None
    theirs = reference(
        input_ids=_torch(ids), attention_mask=None if mask is None else _torch(mask)
    ).last_hidden_state
    _close(_run(model, ids, mask), theirs)


def test_t5_with_its_decoder(hf, tmp_path):
    full = hf.T5ForConditionalGeneration(hf.T5Config(**T5_FIELDS))
    fields, tensors = _saved(full, tmp_path)
    # Older files hold the tied tables again.
    for copy in ("encoder.embed_tokens.weight", "lm_head.weight"):
        tensors[copy] = tensors["shared.weight"]
    assert any(name.startswith("decoder.") for name in tensors)
    config = t5.from_transformers(fields)
    model = _fill(t5.T5Encoder, config, names.t5(config, tensors), tensors)
    ids = _ids(50)
    _close(_run(model, ids), full.encoder(input_ids=_torch(ids)).last_hidden_state)


def test_t5_masks_columns_only_where_asked(t5_pair):
    _, model = t5_pair
    ids, mask = _ids(50), _mask("right")
    padded = np.where(mask, ids, (ids + 1) % 50)
    assert np.array_equal(_run(model, padded, mask)[mask], _run(model, ids, mask)[mask])
    change = np.abs(_run(model, padded) - _run(model, ids))
    assert np.all(change[mask].max(-1)[TOKENS:] > 1e-4)


def test_t5_position_buckets_at_full_size(hf):
    import torch
    from transformers.models.t5.modeling_t5 import T5Attention

    ours = t5.position_buckets(1024, 32, 128)
    positions = torch.arange(1024)
    theirs = T5Attention._relative_position_bucket(positions[None, :] - positions[:, None])
    assert np.array_equal(ours, theirs.numpy())


# CLIP


@pytest.mark.parametrize("end_id", [2, 48])
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_clip_agrees_with_transformers(hf, tmp_path, end_id, activation):
    fields = dict(
        vocab_size=50,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        hidden_act=activation,
        bos_token_id=0,
        eos_token_id=end_id,
        pad_token_id=1,
    )
    reference = hf.CLIPTextModel(hf.CLIPTextConfig(**fields))
    fields, tensors = _saved(reference, tmp_path)
    config = clip.from_transformers(fields)
    model = _fill(clip.CLIPText, config, names.clip(config, tensors), tensors)
    ids, mask = _ids(48), _mask("right")
    # Padded with the end-of-text token, as CLIP's tokenizer does; 49 is the highest id.
    ids[~mask] = 49 if end_id == 2 else end_id
    if end_id != 2:
        ids[1, 2] = 49
    ours = _run(model, ids)
    _close(ours, reference(input_ids=_torch(ids)).pooler_output)
    # The first end-of-text token stands right after the text and sees nothing that comes later.
    later = ids.copy()
    later[1, LENGTHS[1] + 1 :] = 5
    assert np.array_equal(_run(model, later)[1], ours[1])
    earlier = ids.copy()
    earlier[1, 0] += 1 if earlier[1, 0] < 40 else -1
    assert np.abs(_run(model, earlier)[1] - ours[1]).max() > 1e-4


def test_clip_with_its_vision_tower(hf, tmp_path):
    sizes = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
    full = hf.CLIPModel(
        hf.CLIPConfig(
            text_config=dict(vocab_size=50, eos_token_id=49, bos_token_id=48, **sizes),
            vision_config=dict(image_size=8, patch_size=4, **sizes),
            projection_dim=8,
        )
    )
    fields, tensors = _saved(full, tmp_path)
    tensors["text_model.embeddings.position_ids"] = np.arange(77)[None]
    config = clip.from_transformers(fields)
    model = _fill(clip.CLIPText, config, names.clip(config, tensors), tensors)
    ids = _ids(48)
    ids[:, -1] = 49
    _close(_run(model, ids), full.text_model(input_ids=_torch(ids)).pooler_output)


# Names at full size


@pytest.mark.parametrize(
    "file, module, config, table, unneeded",
    [
        ("qwen3-4b", qwen3.Qwen3, qwen3.QWEN3_4B, names.qwen3, 9 * 11 + 2),
        ("qwen3-8b", qwen3.Qwen3, qwen3.QWEN3_8B, names.qwen3, 9 * 11 + 2),
        ("t5-v1_1-xxl-encoder", t5.T5Encoder, t5.T5Config(), names.t5, 1),
        ("clip-vit-large-patch14-text", clip.CLIPText, clip.CLIPConfig(), names.clip, 0),
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
    only_copy = names.t5(config, ["encoder.embed_tokens.weight"])
    assert only_copy.rows[0].names == (("encoder.embed_tokens.weight",),)
    assert "encoder\\.embed_tokens\\.weight" not in only_copy.unneeded
    assert names.t5(config, []).rows[0].names == (("shared.weight",),)


# Configs

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
    assert module.from_transformers(fields) == expected
    again = json.loads(json.dumps(dataclasses.asdict(expected)))
    assert module.from_dict(again) == expected
    with pytest.raises(ValueError, match="unknown fields.*colour"):
        module.from_dict({"colour": 1})


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
        module.from_transformers({**fields, **change})
    assert "\n" not in str(caught.value)


def test_unsuitable_inputs_are_refused(qwen3_pair, t5_pair):
    ids = _ids(50)
    with pytest.raises(ValueError, match=r"mask \(4, 4\)"):
        qwen3_pair[1](ids, _mask("right")[:, :4])
    with pytest.raises(ValueError, match="int64|float"):
        qwen3_pair[1](ids, np.ones(ids.shape, np.float32))
    with pytest.raises(ValueError, match=r"token ids \(12,\)"):
        t5_pair[1](ids[0])
    small = clip.CLIPConfig(vocab_size=50, hidden_size=24, num_layers=1, max_tokens=8)
    with pytest.raises(ValueError, match="at most 8"):
        clip.CLIPText(small, rngs=nnx.Rngs(0))(ids)
