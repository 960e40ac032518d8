"""Nano's convolutional head against PyTorch, and what it starts as."""

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from cotir_jax.checkpoints import model_folder
from cotir_jax.models import presets
from cotir_jax.models.nano_head import NanoHead
from cotir_jax.models.transformer import Text, Transformer, predict
from cotir_jax.parallel.sharding import RULES, batch_sharding, make_mesh, replicated
from cotir_jax.restoring.restorer import Restorer

CONFIG = presets.preset(
    "nano",
    "hidden_size=64, num_heads=2, patch=8, in_channels=192, detail_channels=12, text_tokens=4",
)
pytestmark = pytest.mark.usefixtures("few_blocks")


def _head():
    return NanoHead(CONFIG, rngs=nnx.Rngs(0))


def _model():
    return Transformer(CONFIG, rngs=nnx.Rngs(0))


def _random(make, scale=0.1):
    """The module that `make` makes with random weights, its zeros included."""
    graphdef, state = nnx.split(nnx.eval_shape(make))
    leaves, structure = jax.tree.flatten(state)
    rng = np.random.default_rng(0)
    drawn = [jnp.asarray(rng.normal(0, scale, leaf.shape), leaf.dtype) for leaf in leaves]
    return nnx.merge(graphdef, jax.tree.unflatten(structure, drawn))


def test_head_equals_pytorchs_layers():
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle")
    functional = torch.nn.functional
    head = _random(_head, 0.05)
    rng = np.random.default_rng(1)
    picture = rng.uniform(-1, 1, (2, 3, 24, 32)).astype(np.float32)
    tokens = rng.normal(size=(2, 192, 3, 4)).astype(np.float32)
    prompt = rng.normal(size=(2, 384)).astype(np.float32)

    def tensor(variable):
        return torch.from_numpy(np.array(variable[...]))

    def linear(x, layer):
        return torch.einsum("bchw,cd->bdhw", x, tensor(layer.kernel))

    def conv(x, layer):
        kernel = tensor(layer.kernel).permute(3, 2, 0, 1)
        return functional.conv2d(x, kernel, tensor(layer.bias), padding=1)

    steering = torch.from_numpy(tokens)
    steering = steering + 0.1 * linear(torch.from_numpy(prompt)[..., None, None], head.text)

    def spread(layer, like):
        low = linear(steering, layer)
        return functional.interpolate(low, like.shape[2:], mode="bilinear", align_corners=False)

    def block(x, layer):
        scale, shift = spread(layer.steer, x).chunk(2, dim=1)
        inner = conv(x * (1 + scale) + shift, layer.conv_in)
        return x + conv(functional.silu(inner), layer.conv_out)

    def cells(x, side):  # places of a cell before channels; PyTorch has channels first
        packed = functional.pixel_unshuffle(x, side).unflatten(1, (-1, side**2))
        return packed.transpose(1, 2).flatten(1, 2)

    def uncells(x, side):
        unpacked = x.unflatten(1, (side**2, -1)).transpose(1, 2).flatten(1, 2)
        return functional.pixel_shuffle(unpacked, side)

    pixels = cells(torch.from_numpy(picture), 4)
    gates = 2 * torch.sigmoid(spread(head.gates, pixels) / 16)
    # The colour matrix is interpolated to cells and applied to each of a cell's pixels.
    matrix = spread(head.colour, pixels).unflatten(1, (3, 4))
    matrix = functional.interpolate(matrix.flatten(1, 2), scale_factor=4, mode="nearest")
    matrix = matrix.unflatten(1, (3, 4))
    colour = torch.einsum("bcdhw,bdhw->bchw", matrix[:, :, :3], torch.from_numpy(picture))
    gate = functional.interpolate(gates[:, 1:], scale_factor=4, mode="nearest")
    colour = gate * (colour + matrix[:, :, 3])
    x = conv(torch.cat([pixels, cells(colour, 4)], dim=1), head.conv_in)
    for layer in head.before:
        x = block(x, layer)
    y = linear(cells(x, 2), head.down)
    for layer in head.within:
        y = block(y, layer)
    x = x + uncells(linear(y, head.up), 2)
    for layer in head.after:
        x = block(x, layer)
    scale, shift = spread(head.steer, x).chunk(2, dim=1)
    fine = conv(x * (1 + scale) + shift, head.conv_out)
    seen = torch.cat([torch.from_numpy(picture), colour, uncells(fine, 4)], dim=1)
    z = conv(torch.cat([cells(part, 2) for part in seen.split(3, dim=1)], dim=1), head.sharp_in)
    z = z + uncells(linear(x, head.sharp_up), 2)
    for layer in head.sharp:
        z = block(z, layer)
    fine = uncells(fine, 4) + uncells(conv(z, head.sharp_out), 2)
    gate = functional.interpolate(gates[:, :1], scale_factor=4, mode="nearest")
    both = colour + gate * fine
    luma = torch.einsum("bchw,c->bhw", both, torch.tensor([0.299, 0.587, 0.114]))[:, None]
    parts = luma.expand(-1, 3, -1, -1), both - luma
    levels = linear(torch.from_numpy(prompt)[..., None, None], head.floor)
    levels = levels + tensor(head.floor.bias).reshape(1, 2, 1, 1)
    expected = 0
    for part, level in zip(parts, levels.split(1, dim=1), strict=True):
        energy = functional.pad(part.square().mean(1, keepdim=True), (4, 4, 4, 4), "replicate")
        energy = functional.avg_pool2d(energy, 9, 1)
        floor = (2 / 255 * torch.exp(level)) ** 2
        rest = 0.05 * floor.clamp(max=(2 / 255) ** 2)
        expected = expected + part * (energy + rest) / (energy + floor)

    def patches(picture):
        batch, _, height, width = picture.shape
        split = picture.reshape(batch, 3, height // 8, 8, width // 8, 8)
        return split.transpose(0, 2, 4, 3, 5, 1).reshape(batch, height // 8, width // 8, 192)

    got = head(
        jnp.asarray(patches(picture)),
        jnp.asarray(tokens.transpose(0, 2, 3, 1)),
        jnp.asarray(prompt),
    )
    np.testing.assert_allclose(got, patches(expected.numpy()), rtol=2e-4, atol=2e-4)


def test_eight_devices_give_the_gradients_of_one():
    graphdef, state = nnx.split(_random(_head))
    rng = np.random.default_rng(1)
    condition, tokens = (rng.normal(size=(8, 2, 2, 192)).astype(np.float32) for _ in "ab")
    prompt = rng.normal(size=(8, 384)).astype(np.float32)

    def loss(state, *inputs):
        return jnp.square(nnx.merge(graphdef, state)(*inputs)).mean()

    found = []
    for sizes, devices in (({}, jax.devices()[:1]), ({"data": 2, "fsdp": 2, "tensor": 2}, None)):
        mesh = make_mesh(sizes, devices)
        with jax.set_mesh(mesh):
            batch = jax.device_put({"c": condition, "t": tokens, "p": prompt}, batch_sharding(mesh))
            whole = jax.device_put(state, replicated(mesh))
            gradient = jax.jit(jax.grad(loss, argnums=(0, 2, 3)))
            found.append(jax.device_get(gradient(whole, batch["c"], batch["t"], batch["p"])))
    for one, eight in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(eight, one, rtol=1e-4, atol=1e-5 * np.abs(one).max())


def test_starts_as_the_identity_and_every_weight_of_it_learns():
    model = nnx.jit(_model)()
    rng = np.random.default_rng(0)
    condition, noise = (jnp.asarray(rng.normal(size=(1, 2, 3, 192)), jnp.float32) for _ in "ab")
    text = Text(jnp.asarray(rng.normal(size=(1, 4, 384)), jnp.float32))

    @nnx.jit
    def velocity(model):
        return predict(model, noise, condition, text, jnp.ones(1)).velocity

    np.testing.assert_allclose(velocity(model), noise - condition, atol=1e-6)
    # Away from the start, where zero weights hold gradients back from those below.
    gradients = nnx.jit(nnx.grad(lambda model: jnp.square(velocity(model)).mean()))(_random(_model))
    flat = nnx.to_flat_state(gradients["detail"])
    assert len(flat) > 20
    assert all(np.abs(leaf[...]).max() > 0 for _, leaf in flat)


def test_a_step_from_the_start_moves_head_and_tokens():
    """Zero starts in the head and in the final layer must not hold each other at zero."""
    model = nnx.jit(_model)()
    rng = np.random.default_rng(0)
    condition, noise, clean = (
        jnp.asarray(rng.normal(size=(1, 2, 3, 192)), jnp.float32) for _ in "abc"
    )
    text = Text(jnp.asarray(rng.normal(size=(1, 4, 384)), jnp.float32))

    def loss(model):
        velocity = predict(model, noise, condition, text, jnp.ones(1)).velocity
        return jnp.square(velocity - (noise - clean)).mean()

    gradients = nnx.jit(nnx.grad(loss))(model)
    assert np.abs(gradients["detail"]["conv_out"]["kernel"][...]).max() > 0
    assert np.abs(gradients["final_layer"]["linear"]["kernel"][...]).max() > 0


@pytest.mark.parametrize("overrides", ["prediction='velocity'", "patch=12", "autoencoder='flux2'"])
def test_unsuitable_sizes_are_refused(overrides):
    with pytest.raises(ValueError, match="detail_channels needs"):
        presets.preset("nano", f"detail_channels=8, {overrides}")


def test_a_model_folder_keeps_the_head(one_device, tmp_path):
    model = _random(_model, 0.02)
    model_folder.save_model(tmp_path / "model", model, {})
    loaded = model_folder.load_model(tmp_path / "model", one_device, RULES)
    theirs, ours = (jax.tree.leaves(nnx.state(each)) for each in (loaded, model))
    for a, b in zip(theirs, ours, strict=True):
        np.testing.assert_allclose(a, b, rtol=2**-7)  # the folder may hold bfloat16
    restorer = Restorer.load(tmp_path / "model", one_device)
    picture = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    assert restorer(picture, "denoise").image.shape == (40, 50, 3)


def test_a_folder_that_lacks_weights_is_refused(tmp_path):
    model = _random(_model, 0.02)
    model_folder.save_model(tmp_path / "model", model, {})
    with ocp.StandardCheckpointer() as checkpointer:
        arrays = checkpointer.restore(tmp_path / "model" / "weights")
        del arrays["detail.gates.kernel"]  # as in folders of versions that had no gates
        checkpointer.save(tmp_path / "model" / "weights", arrays, force=True)
    with pytest.raises(ValueError, match=r"lacks 1 arrays of this model, such as detail\.gates"):
        Restorer.load(tmp_path / "model")
