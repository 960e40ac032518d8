"""Eight simulated devices against one, through the training step that real runs use."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from cotir_jax.configs import default
from cotir_jax.models import presets
from cotir_jax.models.autoencoder import PatchAutoencoder
from cotir_jax.models.flux import Transformer
from cotir_jax.parallel.sharding import batch_sharding, make_mesh, shardings
from cotir_jax.text.encoders import Embedded
from cotir_jax.training.settings import TrainSettings
from cotir_jax.training.state import init_state
from cotir_jax.training.step import train_step

RULES = (("embed", "fsdp"), ("mlp", "tensor"), ("layers", None))
# The convolutional head at its real width: XLA splits smaller kernels in other ways.
SIZES = "hidden_size=96, num_heads=3, text_tokens=8"
CONFIG = presets.preset("nano", SIZES)
WITHOUT_HEAD = presets.preset("nano", f"{SIZES}, detail_channels=0")
pytestmark = pytest.mark.usefixtures("few_blocks")


def _batch(size=8, patch=32):
    rng = np.random.default_rng(0)
    text = (size, CONFIG.text_tokens, CONFIG.text_channels)
    batch = {name: rng.integers(0, 256, (size, patch, patch, 3), np.uint8) for name in ("lq", "hq")}
    batch |= {
        name: Embedded(rng.normal(size=text).astype(jnp.bfloat16), None)
        for name in ("prompt", "scene", "degradation", "plan")
    }
    return batch | {"group": np.arange(size, dtype=np.int32) % 3}


def _run(sizes, devices, config, groups=1, **settings):
    settings = TrainSettings.read(default.get_config("nano"))._replace(
        **{"trainable": "all", "learning_rate": 1e-3, "warmup_steps": 1, "total_steps": 10,
           "dual_learning_rate": 1e-2, "full_noise": 0.5, "ema_decay": 0.9} | settings
    )  # fmt: skip
    mesh = make_mesh(sizes, devices)

    def fresh():
        model = Transformer(config, rngs=nnx.Rngs(0))
        return init_state(model, PatchAutoencoder(config.patch), settings, 3, groups)

    placement = shardings(jax.eval_shape(fresh), mesh, RULES)
    losses = []
    with jax.set_mesh(mesh):
        frozen, state = jax.jit(fresh, out_shardings=placement)()
        batch = jax.device_put(_batch(), batch_sharding(mesh))
        step = jax.jit(train_step, donate_argnums=1, out_shardings=(placement[1], None))
        for _ in range(4):
            state, metrics = step(frozen, state, batch)
            losses.append([float(metrics[k]) for k in ("loss", "velocity_loss", "gradient_norm")])
    return np.array(losses), state


@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("muon", marks=pytest.mark.slow)])
def test_eight_devices_give_the_losses_of_one(optimizer):
    config = {"adamw": WITHOUT_HEAD, "muon": CONFIG}[optimizer]
    one, state_one = _run({}, jax.devices()[:1], config, optimizer=optimizer)
    mesh = {"data": 2, "fsdp": 2, "tensor": 2}
    eight, state_eight = _run(mesh, jax.devices(), config, optimizer=optimizer)
    np.testing.assert_allclose(eight[:, :2], one[:, :2], rtol=1e-5)
    np.testing.assert_allclose(eight[:, 2], one[:, 2], rtol=1e-4)
    np.testing.assert_allclose(state_eight.multipliers, state_one.multipliers, atol=1e-5)
    kernel, average = (
        weights["single_blocks"]["linear1"]["kernel"][...]
        for weights in (state_eight.trainable, state_eight.ema)
    )
    assert 0 < np.abs(kernel - average).max() < np.abs(kernel).max()
    assert kernel.sharding.spec == PartitionSpec(None, "fsdp", "tensor")
    state = state_eight.opt_state[1]
    if optimizer == "muon":
        state = state.inner_states["muon"].inner_state
    moment = state[0].mu["single_blocks"]["linear1"]["kernel"][...]
    assert moment.addressable_shards[0].data.size == kernel.size // 4


@pytest.mark.slow
def test_micro_batches_give_the_gradient_of_the_whole_batch():
    """Adam hides the gradient's size, so its norm is compared too.

    Without the head, whose convolutions XLA gives one core where they are in a loop.
    """
    one = jax.devices()[:1]
    whole, state = _run({}, one, WITHOUT_HEAD, groups=3)
    parts, state_parts = _run({}, one, WITHOUT_HEAD, groups=3, accumulate=4)
    np.testing.assert_allclose(parts, whole, rtol=2e-4)
    np.testing.assert_allclose(state_parts.multipliers, state.multipliers, rtol=1e-3)


def test_uneven_weights_are_replicated():
    mesh = make_mesh({"fsdp": 2, "tensor": 4})
    variables = {
        "w": nnx.Param(jnp.zeros((6, 6)), out_sharding=("embed", "mlp"), eager_sharding=False)
    }
    assert shardings(variables, mesh, RULES)["w"].get_value().spec == PartitionSpec("fsdp", None)


def test_impossible_meshes_are_named():
    with pytest.raises(ValueError, match="accepted are"):
        make_mesh({"model": 2})
    with pytest.raises(ValueError, match="does not fit 8 devices"):
        make_mesh({"data": 3})
    assert make_mesh({"data": 2, "fsdp": -1}).shape["fsdp"] == 4
