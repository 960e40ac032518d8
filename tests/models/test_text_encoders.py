"""T5, CLIP and Qwen3 against transformers, and their names against the full-size manifests."""

import contextlib
import io
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from cotir_jax.conversion import published_configs
from cotir_jax.conversion.name_tables import account, assemble
from cotir_jax.conversion.names import text
from cotir_jax.models.text_encoders import clip, qwen3, t5
from cotir_jax.parallel.sharding import batch_sharding, make_mesh, shardings

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
    config = published_configs.qwen3(fields, OUTPUT_LAYERS)
    return reference, _fill(qwen3.Qwen3, config, text.qwen3(config, tensors), tensors)


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
    mesh = make_mesh({"fsdp": 4, "tensor": 2})
    rules = (("embed", "fsdp"), ("mlp", "tensor"), ("layers", None))
    graph, state = nnx.split(model)
    state = jax.device_put(state, shardings(state, mesh, rules))
    assert not state["blocks"]["mlp_out"]["kernel"][...].sharding.is_fully_replicated
    assert not state["token_embedding"][...].sharding.is_fully_replicated
    inputs = jax.device_put({"ids": ids, "mask": mask}, batch_sharding(mesh))
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
    config = published_configs.t5(fields)
    return reference, _fill(t5.T5Encoder, config, text.t5(config, tensors), tensors)


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
    config = published_configs.t5(fields)
    model = _fill(t5.T5Encoder, config, text.t5(config, tensors), tensors)
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
    config = published_configs.clip(fields)
    model = _fill(clip.CLIPText, config, text.clip(config, tensors), tensors)
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
    config = published_configs.clip(fields)
    model = _fill(clip.CLIPText, config, text.clip(config, tensors), tensors)
    ids = _ids(48)
    ids[:, -1] = 49
    _close(_run(model, ids), full.text_model(input_ids=_torch(ids)).pooler_output)


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
