"""int8 weights: numpy's rounding is the oracle of each kernel, the float model of the whole."""

import importlib.util

import jax
import numpy as np
import pytest
from flax import nnx
from skimage import data
from skimage.metrics import peak_signal_noise_ratio

from cotir_jax.compiling.report import topology_devices
from cotir_jax.models import presets
from cotir_jax.models.transformer import Text, Transformer, predict
from cotir_jax.restoring.restorer import Restorer

pytest.importorskip("qwix", reason="qwix, which makes int8 weights, is not installed")
from cotir_jax.checkpoints.quantization import is_block_kernel, quantize_blocks


@pytest.fixture(scope="module")
def restorers(one_device):
    return [Restorer.load("nano", one_device, int8=int8) for int8 in (False, True)]


def _leaves(state):
    return dict(nnx.to_flat_state(state))


def test_kernels_are_rounded_by_layer_and_output_channel(restorers):
    exact, rounded = (_leaves(one.weights[0]) for one in restorers)
    assert exact.keys() == rounded.keys()
    changed = [path for path in exact if is_block_kernel(path)]
    assert len(changed) > 10
    for path in exact:
        kernel = np.asarray(exact[path][...], np.float64)
        if path not in changed:
            np.testing.assert_array_equal(kernel, rounded[path][...])
            continue
        quantised = rounded[path].get_value()
        scale = np.abs(kernel).max(axis=-2, keepdims=True) / 127
        np.testing.assert_allclose(quantised.scale, scale, rtol=1e-2)
        assert quantised.qvalue.dtype == np.int8
        given = np.asarray(quantised.qvalue, np.float64) * np.asarray(quantised.scale, np.float64)
        assert (np.abs(given - kernel) <= 0.51 * scale + 1e-9).all(), path


def test_restoring_with_int8_weights_is_hardly_seen(restorers):
    exact, rounded = restorers
    dark = (data.chelsea()[60:260, 100:330] * 0.3).astype(np.uint8)
    expected, found = (one(dark, "brighten this dark photo").image for one in restorers)
    assert peak_signal_noise_ratio(expected, found) > 45
    assert np.abs(expected.astype(int) - found).max() > 0
    sizes = [sum(x.nbytes for x in jax.tree.leaves(one.weights)) for one in restorers]
    assert sizes[1] < 0.82 * sizes[0]  # the convolutional head stays as it is


def test_what_klein_4b_takes():
    """Counted from shapes: bfloat16 kernels of the blocks to a byte and a scale each."""
    config = presets.preset("klein-4b", "lora_rank=0")
    state = jax.eval_shape(lambda: nnx.state(Transformer(config, rngs=nnx.Rngs(0))))
    before, after = (
        sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(s))
        for s in (state, jax.eval_shape(quantize_blocks, state))
    )
    assert after < before
    # The adapter's kernels are float32 master copies here.
    saved = sum(
        v.get_value().size * (v.get_value().dtype.itemsize - 1)
        for path, v in nnx.to_flat_state(state)
        if is_block_kernel(path)
    )
    assert abs((before - after) / saved - 1) < 0.01


@pytest.mark.slow
def test_int8_twice_and_the_command(restorers, tmp_path):
    from PIL import Image

    from cotir_jax import cli

    with pytest.raises(ValueError, match="int8 already"):
        quantize_blocks(restorers[1].weights[0])
    Image.fromarray(data.chelsea()[:64, :64]).save(tmp_path / "in.png")
    cli.main(["restore", str(tmp_path / "in.png"), f"--out={tmp_path / 'out.png'}", "--int8"])
    found = np.asarray(Image.open(tmp_path / "out.png"))
    np.testing.assert_array_equal(found, restorers[1](data.chelsea()[:64, :64]).image)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
@pytest.mark.slow
def test_the_int8_program_compiles_for_a_tpu(monkeypatch):
    """Ahead of time for v5e: the kernels come into the program as bytes and stay bytes."""
    # libtpu reads it when it is loaded, and does not know the flags for the CPU's compiler.
    monkeypatch.delenv("XLA_FLAGS")
    overrides = (
        "hidden_size=768, num_heads=6, num_double_blocks=2, num_single_blocks=4, adapter_depth=1, "
        "text_tokens=128, lora_rank=0"
    )
    config = presets.preset("klein-4b", overrides)
    device = topology_devices("v5e:2x2")[0]
    graphdef, state = jax.eval_shape(lambda: nnx.split(Transformer(config, rngs=nnx.Rngs(0))))
    state = jax.eval_shape(lambda s: jax.tree.map(lambda x: x.astype("bfloat16"), s), state)

    def forward(state, latents, embeddings, timestep):
        model = nnx.merge(graphdef, state)
        text = Text(embeddings)
        return predict(model, latents, latents, text, timestep, with_thoughts=False).velocity

    inputs = (
        jax.ShapeDtypeStruct((1, 16, 16, config.in_channels), "float32"),
        jax.ShapeDtypeStruct((1, config.text_tokens, config.text_channels), "bfloat16"),
        jax.ShapeDtypeStruct((1,), "float32"),
    )
    on_device = jax.sharding.SingleDeviceSharding(device)
    used = {}
    for name, weights in (("bfloat16", state), ("int8", jax.eval_shape(quantize_blocks, state))):
        program = jax.jit(forward, in_shardings=on_device, out_shardings=on_device)
        used[name] = program.lower(weights, *inputs).compile().memory_analysis()
    kernels = sum(
        variable.get_value().size
        for path, variable in nnx.to_flat_state(state)
        if is_block_kernel(path) and path[0] != "cot_adapter"
    )
    saved = used["bfloat16"].argument_size_in_bytes - used["int8"].argument_size_in_bytes
    assert saved > 0.9 * kernels
    # No copy of all kernels in bfloat16 is made at once.
    assert used["int8"].temp_size_in_bytes < used["bfloat16"].temp_size_in_bytes + kernels
