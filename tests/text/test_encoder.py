"""The cached encoder with the published models' modules, weights spread over several devices."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from support.xla_flags import xla_flags

from cotir_jax.models.text_encoders.clip import CLIPConfig, CLIPText
from cotir_jax.models.text_encoders.minilm import PACKAGED_FOLDER
from cotir_jax.models.text_encoders.qwen3 import Qwen3, Qwen3Config
from cotir_jax.models.text_encoders.t5 import T5Config, T5Encoder
from cotir_jax.parallel.sharding import BATCH_AXES, RULES, make_mesh, shardings
from cotir_jax.text.encoder import TextEncoder
from cotir_jax.text.tokenizer import TextTokenizer

TOKENS, VOCABULARY = 12, 30522
FLOAT32 = {"param_dtype": "float32", "dtype": "float32"}
TEXTS = ["", "rain", "a boat on a calm lake", "noise " * 40] + [f"photo {i}" for i in range(40)]
QWEN3 = Qwen3Config(
    vocab_size=VOCABULARY, hidden_size=32, mlp_size=64, num_heads=4, num_kv_heads=2, head_dim=8,
    output_layers=(1, 2, 3), **FLOAT32,
)  # fmt: skip
MODULES = {
    "qwen3": (lambda: Qwen3(QWEN3, rngs=nnx.Rngs(0)), (TOKENS, 96), True),
    "t5": (
        lambda: T5Encoder(
            T5Config(VOCABULARY, 32, 64, num_heads=4, head_dim=8, num_layers=2, **FLOAT32),
            rngs=nnx.Rngs(0),
        ),
        (TOKENS, 32),
        False,
    ),
    "clip": (
        lambda: CLIPText(
            CLIPConfig(VOCABULARY, TOKENS, 32, 64, num_heads=4, num_layers=2, **FLOAT32),
            rngs=nnx.Rngs(0),
        ),
        (32,),
        False,
    ),
}


@pytest.fixture(scope="module")
def tokenizer():
    return TextTokenizer(PACKAGED_FOLDER, TOKENS, "minilm")


def spread(make, mesh):
    """A module, and the same with its weights on the mesh, as a model folder gives it."""
    graph, abstract = jax.eval_shape(lambda: nnx.split(make()))
    weights = jax.jit(lambda: nnx.split(make())[1])()
    placement = shardings(abstract, mesh, RULES)
    placed = jax.jit(lambda weights: weights, out_shardings=placement)(jax.device_get(weights))
    return nnx.merge(graph, weights), nnx.merge(graph, placed)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh({"data": 2, "fsdp": 2, "tensor": 2})


@pytest.fixture(scope="module", params=MODULES)
def model(request, mesh):
    """(module on one device, the same on the mesh, shape of an embedding, whether it is masked)"""
    make, shape, uses_mask = MODULES[request.param]
    return *spread(make, mesh), shape, uses_mask


def test_weights_on_several_devices(model, mesh, tokenizer):
    alone, module, shape, uses_mask = model
    kernel = module.blocks.mlp_out.kernel[...]
    assert kernel.addressable_shards[0].data.size == kernel.size / 4
    encoder = TextEncoder(module, tokenizer, mesh=mesh, uses_mask=uses_mask)
    assert (encoder.tokens, encoder.width) == (TOKENS, shape[-1])
    ids, mask = encoder.tokenize(TEXTS)
    with jax.transfer_guard("disallow"):
        found = encoder(ids, mask)
    assert found.shape == (len(TEXTS), *shape) and found.dtype == ml_dtypes.bfloat16
    # All texts in one batch. Rounding to bfloat16 changes a number by 2**-8 of it at most.
    expected = nnx.jit(lambda module, *inputs: module(*inputs))(alone, ids, *[mask] * uses_mask)
    np.testing.assert_allclose(found.astype(np.float32), expected, rtol=1.01 * 2**-8, atol=1e-5)


def test_bits_do_not_depend_on_company(model, mesh, tokenizer):
    _, module, _, uses_mask = model
    options = {"mesh": mesh, "uses_mask": uses_mask}
    together = TextEncoder(module, tokenizer, **options)
    ids, mask = together.tokenize(TEXTS)
    expected = together(ids, mask)
    alone = TextEncoder(module, tokenizer, cache_gb=0, **options)
    order = np.random.default_rng(0).permutation(len(TEXTS))
    for rows in ([1], order[:5], order[::-1], [2, 2, 0]):
        assert alone(ids[rows], mask[rows]).tobytes() == expected[rows].tobytes()
        assert together(ids[rows], mask[rows]).tobytes() == expected[rows].tobytes()
    assert alone(ids[:0], mask[:0]).shape == (0, *expected.shape[1:])
    assert alone._encode._cache_size() == 1  # one program for any number of texts


def test_as_part_of_another_program(model, mesh, tokenizer):
    """Every device encodes its own rows, in rounds of at most 16 of them."""
    alone, module, shape, uses_mask = model
    encoder = TextEncoder(module, tokenizer, mesh=mesh, uses_mask=uses_mask)
    ids, mask = (np.repeat(x[:36], 4, axis=0) for x in encoder.tokenize(TEXTS))
    split = NamedSharding(mesh, PartitionSpec(None, BATCH_AXES))
    inputs = jax.device_put((ids.reshape(2, 72, -1), mask.reshape(2, 72, -1)), split)
    with jax.set_mesh(mesh):
        embed = jax.jit(encoder.embed).lower(encoder.weights(mesh), *inputs).compile()
        found = embed(encoder.weights(mesh), *inputs)
    assert found.shape == (2, 72, *shape) and found.dtype == jnp.bfloat16
    assert found.sharding.shard_shape(found.shape)[1] == 18
    expected = nnx.jit(lambda module, *inputs: module(*inputs))(alone, ids, *[mask] * uses_mask)
    found = np.asarray(found, np.float32).reshape(144, *shape)
    np.testing.assert_allclose(found, expected, rtol=1.01 * 2**-8, atol=1e-5)


class _Wide(nnx.Module):
    """Embeddings of 12.6 MB a text: the number of the token, everywhere."""

    def __call__(self, ids, mask):
        return jnp.broadcast_to(ids[..., None], (*ids.shape, 2**19)).astype(jnp.bfloat16)


def test_calls_and_cache_are_bounded_by_bytes(tokenizer, monkeypatch):
    encoder = TextEncoder(_Wide(), tokenizer, cache_gb=0.03)
    sizes, encode = [], encoder._encode

    def counted(weights, ids, mask, count):
        sizes.append(len(ids))
        return encode(weights, ids, mask, count)

    monkeypatch.setattr(encoder, "_encode", counted)
    ids, mask = encoder.tokenize(TEXTS[:4])
    result = encoder(ids, mask)
    assert sizes == [21]  # in 2**28 bytes
    assert len(encoder._cache) == 2
    np.testing.assert_array_equal(result[..., -1], ids.astype(ml_dtypes.bfloat16))


def test_tokenizer_of_a_larger_vocabulary(tokenizer):
    config = T5Config(VOCABULARY - 1, 8, 8, num_heads=1, head_dim=8, num_layers=1)
    module = T5Encoder(config, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="a tokenizer of 30522 tokens, the text encoder has 30521"):
        TextEncoder(module, tokenizer, uses_mask=False)


def test_more_tokens_than_positions():
    tokenizer = TextTokenizer(PACKAGED_FOLDER, TOKENS + 1, "minilm")
    with pytest.raises(ValueError, match="got 13 tokens, CLIP takes at most 12"):
        TextEncoder(MODULES["clip"][0](), tokenizer, uses_mask=False)


_PROCESS = """
import sys
import jax
jax.distributed.initialize(f"localhost:{sys.argv[2]}", 2, int(sys.argv[1]))
import test_encoder as tests
from cotir_jax.parallel.sharding import make_mesh
mesh = make_mesh({"fsdp": 4})
encoder = tests.TextEncoder(
    tests.spread(tests.MODULES["qwen3"][0], mesh)[1],
    tests.TextTokenizer(tests.PACKAGED_FOLDER, tests.TOKENS, "minilm"),
    mesh=mesh,
)
calls = [[("a", "b"), ("rain", "rain")], [("b", "c"), ("rain", "a")], [("a", "c"), ("d", "c")]]
for texts in calls:
    with jax.transfer_guard("disallow"):
        found = encoder(*encoder.tokenize(texts[jax.process_index()]))
    for text, one in zip(texts[jax.process_index()], found):
        print("found", text, one.tobytes().hex(), flush=True)
print("kept", len(encoder._cache))
"""


def test_processes_encode_together(tokenizer, tmp_path):
    """Weights over two processes: unlike texts in each, and unlike ones that are known already."""
    file = tmp_path / "program.py"
    file.write_text(_PROCESS)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    tests = Path(__file__).parent
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(tests.parents[1]), str(tests.parent), str(tests)]),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": xla_flags(devices=2),
    }
    programs = [
        subprocess.Popen(
            [sys.executable, str(file), str(rank), port],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        outputs = [program.communicate(timeout=120) for program in programs]
    finally:
        for program in programs:
            program.kill()
    for program, (_, errors) in zip(programs, outputs, strict=True):
        assert program.returncode == 0, errors
    lines = [line.split() for output, _ in outputs for line in output.splitlines()]
    assert [line for line in lines if line[0] == "kept"] == [["kept", "5"]] * 2
    found = [(line[1], bytes.fromhex(line[2])) for line in lines if line[0] == "found"]
    assert len(found) == 12 and len(set(found)) == 5  # of a text, always the same bits
    alone = TextEncoder(MODULES["qwen3"][0](), tokenizer)
    for text, data in set(found):
        expected = alone(*alone.tokenize([text]))[0]
        there = np.frombuffer(data, ml_dtypes.bfloat16).reshape(expected.shape)
        np.testing.assert_allclose(
            there.astype(np.float32), expected.astype(np.float32), rtol=2**-7, atol=1e-5
        )
