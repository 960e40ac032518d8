"""Properties of transformer, adapter, LoRA and autoencoder; golden numbers are in test_verify."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cotir_jax.models import presets, transformer
from cotir_jax.models.autoencoder import PatchAutoencoder
from cotir_jax.models.flux import Transformer
from cotir_jax.models.lora import AdapterParam, trainable_filter
from cotir_jax.models.transformer import Text

TINY = presets.preset(
    "nano",
    "hidden_size=64, num_heads=2, num_single_blocks=3, adapter_depth=2, lora_rank=4, "
    "prediction='velocity', text_channels=24, text_tokens=5, patch=8, in_channels=192, "
    "detail_channels=0",
)

predict = nnx.jit(transformer.predict)


def _fresh(config=TINY):
    """A new model in one program: its initialisers would compile one by one."""
    return nnx.jit(lambda: Transformer(config, rngs=nnx.Rngs(0)))()


def _noised(config=TINY):
    """A model with random weights in place of zeros, so that every path through it counts."""
    model = nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(1)
    state = nnx.state(model, nnx.Param)
    nnx.update(
        model, jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.05, x.shape), x.dtype), state)
    )
    return model


def _inputs(config=TINY, batch=2, side=3):
    rng = np.random.default_rng(0)
    grid = rng.normal(size=(2, batch, side, side, config.in_channels)).astype(np.float32)
    text = rng.normal(size=(batch, config.text_tokens, config.text_channels)).astype(np.float32)
    return grid[0], grid[1], Text(text), jnp.linspace(0.2, 1.0, batch)


def test_target_rows_only_and_thoughts_off_change_nothing():
    model = _noised()
    tokens = np.random.default_rng(0).normal(size=(2, 8, 192)).astype(np.float32)
    args = (tokens, np.zeros((2, 8, 4)), _inputs()[2].embeddings, np.zeros((2, 5, 4)), jnp.ones(2))
    whole = nnx.jit(Transformer.__call__)(model, *args)
    part = nnx.jit(lambda m, *args: m(*args, output_rows=4, with_thoughts=False))(model, *args)
    np.testing.assert_allclose(part.velocity, whole.velocity[:, :4], rtol=1e-4, atol=1e-6)
    assert part.scene is None and whole.plan.shape == (2, 5, 24)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_remat_changes_memory_not_gradients(remat):
    def gradient(config):
        model = _noised(config)
        return nnx.jit(nnx.grad(lambda m: jnp.square(predict(m, *_inputs()).velocity).sum()))(model)

    plain = gradient(TINY)
    again = gradient(dataclasses.replace(TINY, remat=remat))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5)


def test_fresh_lora_and_adapter_leave_the_base_as_it_is():
    model = _fresh()
    base = _noised(dataclasses.replace(TINY, lora_rank=0))
    state = nnx.state(base, nnx.Param)
    nnx.update(model, state)
    for name in ("scene", "degradation", "plan"):
        for each in (model, base):
            getattr(each.cot_adapter, f"scale_{name}").set_value(jnp.zeros((1,)))
    before = predict(model, *_inputs()).velocity
    np.testing.assert_array_equal(before, predict(base, *_inputs()).velocity)
    blocks = model.cot_adapter.blocks
    nnx.update(blocks, jax.tree.map(lambda x: x + 1, nnx.state(blocks)))
    np.testing.assert_array_equal(before, predict(model, *_inputs()).velocity)
    lora_b = model.last_single_block.linear1.lora_b
    lora_b.set_value(jnp.ones_like(lora_b[...]))
    assert np.abs(before - predict(model, *_inputs()).velocity).max() > 1e-4


def test_what_trains_is_lora_and_adapter():
    model = _fresh()
    trained = nnx.to_flat_state(nnx.state(model, trainable_filter("lora_and_adapter")))
    for path, variable in trained:
        assert path[0] == "cot_adapter" or str(path[-1]).startswith("lora_")
        assert isinstance(variable, nnx.LoRAParam | AdapterParam)
    everything = nnx.to_flat_state(nnx.state(model, trainable_filter("all")))
    names = [path for path, _ in everything]
    assert len(names) > len(list(trained)) and ("img_in", "kernel") in names
    with pytest.raises(ValueError, match="accepted are"):
        trainable_filter("some")


def test_fresh_correction_model_returns_the_degraded_picture():
    """The identity is the starting point: the clean estimate x_t - t v is the condition."""
    config = dataclasses.replace(TINY, prediction="correction")
    model = _fresh(config)
    noisy, condition, text, timestep = _inputs(config)
    velocity = predict(model, noisy, condition, text, timestep).velocity
    clean = noisy - timestep[:, None, None, None] * velocity
    np.testing.assert_allclose(clean, condition, atol=1e-5)


def test_patch_autoencoder_is_exact():
    pictures = np.random.default_rng(0).normal(size=(2, 24, 16, 3)).astype(np.float32)
    autoencoder = PatchAutoencoder(8)
    latents = autoencoder.encode(pictures)
    assert latents.shape == (2, 3, 2, 192)
    np.testing.assert_array_equal(latents[0, 1, 1].reshape(8, 8, 3), pictures[0, 8:16, 8:])
    np.testing.assert_array_equal(autoencoder.decode(latents), pictures)
    with pytest.raises(ValueError, match="multiples of 8"):
        autoencoder.encode(pictures[:, :20])


def test_shape_and_size_errors():
    model = _fresh()
    noisy, condition, text, timestep = _inputs()
    with pytest.raises(ValueError, match="text encoder"):
        predict(model, noisy, condition, Text(text.embeddings[..., :7]), timestep)
    with pytest.raises(ValueError, match="must be equal"):
        predict(model, noisy, condition[:, :2], text, timestep)
    with pytest.raises(ValueError, match="add up to the head size"):
        presets.preset("nano", "axes_dim=(8, 8)")
    with pytest.raises(ValueError, match="unknown model fields"):
        presets.preset("nano", "hidden=3")
    with pytest.raises(ValueError, match="unknown model"):
        presets.preset("mega")
