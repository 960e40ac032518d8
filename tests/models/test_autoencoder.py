"""The FLUX autoencoders: golden numbers, diffusers, names at full size, and tiles."""

import dataclasses
import gzip
import json
import math
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from flax import nnx

from cotir_jax.conversion import published_configs
from cotir_jax.conversion.fill import fill
from cotir_jax.conversion.name_tables import account
from cotir_jax.conversion.names import autoencoder as names
from cotir_jax.conversion.torch_files import read_tensors
from cotir_jax.models.autoencoder import (
    AUTOENCODERS,
    Autoencoder,
    AutoencoderConfig,
    PatchAutoencoder,
)
from cotir_jax.models.autoencoder_layers import attend
from cotir_jax.models.presets import rebuild
from cotir_jax.models.tiles import in_tiles, overlap_add, tile_plan, tile_weights

TINY = dict(channels=32, multipliers=(1, 2), num_res_blocks=1, latent_channels=4)
LAYOUTS = {"": names.native, ".diffusers": names.diffusers}


def relative(ours, reference):
    ours, reference = np.asarray(ours), np.asarray(reference)
    assert ours.shape == reference.shape
    return np.abs(ours - reference).max() / np.abs(reference).max()


def last(array):
    return rearrange(np.asarray(array), "b c h w -> b h w c")


def packed(array):
    return rearrange(np.asarray(array), "b c (h p) (w q) -> b h w (c p q)", p=2, q=2)


def abstract(config):
    """A model without values: random initial ones take XLA:CPU seconds to compile."""
    return nnx.eval_shape(lambda: Autoencoder(config, rngs=nnx.Rngs(0)))


def random_model(config, seed=0):
    rng = np.random.default_rng(seed)
    model = abstract(config)
    state = nnx.state(model)
    for path, variable in nnx.to_flat_state(state):
        shape = variable.shape
        value = rng.normal(size=shape) / np.sqrt(max(np.prod(shape[:-1]), 10))
        value = np.abs(value) + 0.5 if path[-1] in ("scale", "running_var") else value
        variable.set_value(jnp.asarray(value, variable.dtype))
    nnx.update(model, state)
    return model


encode = nnx.jit(lambda model, pictures: model.encode(pictures))
decode = nnx.jit(lambda model, latents: model.decode(latents))


@pytest.mark.parametrize("kind", ["flux1", "flux2"])
def test_golden_numbers_from_native_files(golden, kind):
    folder = golden / f"autoencoder_{kind}"
    config = published_configs.autoencoder(json.loads((folder / "config.json").read_text()))
    model = abstract(config)
    fill(model, names.native(config), read_tensors(folder / "ae.safetensors"))
    case = read_tensors(folder / "roundtrip.safetensors")
    latents = packed(case["latents"]) if kind == "flux1" else last(case["latents"])
    assert relative(encode(model, last(case["image"])), latents) < 1e-4
    assert relative(decode(model, latents), last(case["decoded"])) < 1e-4


def diffusers_model(kind, widths=(32, 64, 64)):
    """A random autoencoder of diffusers, its weights far enough from zero to matter."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is the reference here")
    torch = pytest.importorskip("torch", reason="PyTorch runs the reference")
    torch.manual_seed(0)
    fields = dict(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        layers_per_block=1,
        latent_channels=4,
    )
    if kind == "flux1":
        flags = dict(use_quant_conv=False, use_post_quant_conv=False)
        scaling = dict(scaling_factor=0.41, shift_factor=0.2)
        model = diffusers.AutoencoderKL(**fields, **flags, **scaling)
    else:
        model = diffusers.AutoencoderKLFlux2(**fields)
        model.bn.running_mean.normal_()
        model.bn.running_var.uniform_(0.01, 3.0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def diffusers_answers(model, kind, pictures):
    """Normalised packed latents, channels first, and pictures, in the words of diffusers."""
    import torch

    with torch.no_grad():
        mean = model.encode(torch.tensor(pictures).permute(0, 3, 1, 2)).latent_dist.mode()
        if kind == "flux1":
            latents = (mean - model.config.shift_factor) * model.config.scaling_factor
            raw = latents / model.config.scaling_factor + model.config.shift_factor
            return packed(latents), last(model.decode(raw).sample)
        batch, _, height, width = mean.shape
        grid = mean.view(batch, -1, height // 2, 2, width // 2, 2).permute(0, 1, 3, 5, 2, 4)
        grid = grid.reshape(batch, -1, height // 2, width // 2)
        return last(model.bn(grid)), last(model.decode(mean).sample)


@pytest.mark.parametrize("kind", ["flux1", "flux2"])
def test_diffusers_classes_give_the_same(kind):
    theirs = diffusers_model(kind)
    config = published_configs.autoencoder(json.loads(theirs.to_json_string()))
    model = abstract(config)
    tensors = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    fill(model, names.diffusers(config), tensors)
    pictures = np.random.default_rng(0).uniform(-1, 1, (2, 48, 32, 3)).astype(np.float32)
    latents, decoded = diffusers_answers(theirs, kind, pictures)
    assert relative(encode(model, pictures), latents) < 1e-4
    assert relative(decode(model, latents), decoded) < 1e-4


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["flux1", "flux2"])
def test_full_size_names_are_used_once_and_fill_everything(manifests, kind, layout):
    path = manifests / f"{kind}.autoencoder{layout}.json.gz"
    manifest = json.loads(gzip.decompress(path.read_bytes()))
    shapes = {name: tuple(shape) for name, shape in manifest["tensors"].items()}
    config = AUTOENCODERS[kind]
    flat = nnx.to_flat_state(nnx.state(abstract(config)))
    targets = {".".join(map(str, path)): variable.shape for path, variable in flat}
    table = LAYOUTS[layout](config)
    assert account(table, shapes, targets) == []
    uses = Counter(name for row in table.rows for layer in row.names for name in layer)
    assert set(uses.values()) == {1}
    assert sorted(row.path for row in table.rows) == sorted(targets)
    unused = sum(math.prod(shapes[name]) for name in set(shapes) - set(uses))
    total = sum(math.prod(shape) for shape in targets.values())
    assert total + unused == manifest["parameters"] and unused <= 1


def test_configs_read_json_and_refuse_the_rest():
    config = AutoencoderConfig("flux2", **TINY, tile=64)
    assert rebuild(AutoencoderConfig, json.loads(json.dumps(dataclasses.asdict(config)))) == config
    for fields in ({"kind": "flux3"}, {"kind": "flux1", "width": 3}, {}):
        with pytest.raises(ValueError, match="kind"):
            rebuild(AutoencoderConfig, fields)
    with pytest.raises(ValueError, match="tile=24"):
        AutoencoderConfig("flux1", tile=24)
    vae = {
        "_class_name": "AutoencoderKL", "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2, "latent_channels": 16, "scaling_factor": 0.3611,
        "shift_factor": 0.1159, "use_quant_conv": False, "use_post_quant_conv": False,
    }  # fmt: skip
    assert published_configs.autoencoder(vae) == AUTOENCODERS["flux1"]
    for change in (
        {"_class_name": "AutoencoderDC"},
        {"use_quant_conv": True},
        {"block_out_channels": [128, 200]},
        {"shift_factor": None},
    ):
        with pytest.raises(ValueError):
            published_configs.autoencoder(vae | change)


@pytest.mark.parametrize("shape", [(1, 24, 16, 3), (1, 16, 16, 4), (16, 16, 3)])
def test_impossible_pictures_are_refused(shape):
    model = abstract(AutoencoderConfig("flux1", 32, (1, 1, 1, 1), 1, 4))
    assert model.patch == 16
    with pytest.raises(ValueError, match="multiples of 16"):
        model.encode(jnp.zeros(shape))


def test_bfloat16_stays_close_and_returns_float32():
    config = AutoencoderConfig("flux2", **TINY)
    low = dataclasses.replace(config, param_dtype="bfloat16", dtype="bfloat16")
    model, low = random_model(config), random_model(low)
    assert low.encoder.conv_in.kernel[...].dtype == jnp.bfloat16
    pictures = np.random.default_rng(0).uniform(-1, 1, (1, 16, 16, 3)).astype(np.float32)
    latents = encode(model, pictures)
    for ours, expected in (
        (encode(low, pictures), latents),
        (decode(low, latents), decode(model, latents)),
    ):
        assert ours.dtype == jnp.float32
        assert 1e-4 < relative(ours, expected) < 0.1


def test_attention_in_parts_is_exact():
    query, key, value = jax.random.normal(jax.random.key(0), (3, 2, 45, 8))
    logits = np.einsum("bqc,bkc->bqk", query, key) / np.sqrt(8)
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = np.einsum("bqk,bkc->bqc", weights, value)
    for limit in (45 * 45, 45 * 13, 45, 1):
        assert relative(attend(query, key, value, limit), expected) < 1e-5


def test_attention_in_parts_holds_few_logits():
    tokens = jax.ShapeDtypeStruct((1, 1024, 32), jnp.float32)

    def held(limit):
        run = jax.jit(lambda *x: attend(*x, limit)).lower(tokens, tokens, tokens).compile()
        return run.memory_analysis().temp_size_in_bytes

    assert held(1024 * 64) < held(1024 * 1024) / 4


def test_tiles_cover_each_side_with_weights_that_sum_to_one():
    for largest in (4, 5, 8, 13, 64):
        for side in range(1, 6 * largest):
            size, starts, overlap = tile_plan(side, largest)
            assert size <= largest and starts[0] == 0 and starts[-1] + size == side
            assert all(b - a <= size - overlap for a, b in zip(starts, starts[1:], strict=False))
            assert len(starts) == 1 or overlap == largest // 4
            total = np.zeros(side * 2)
            weights = tile_weights(side, largest, 2)
            steepest = np.pi / (2 * overlap) if overlap else 0  # raised cosine over half of it
            assert weights.min() >= 0 and np.abs(np.diff(weights)).max(initial=0) <= steepest
            for start, weight in zip(starts, weights, strict=True):
                total[2 * start :][: 2 * size] += weight
            np.testing.assert_allclose(total, 1, atol=1e-6)


@pytest.mark.parametrize("height, width", [(17, 17), (64, 40), (9, 33)])
def test_tiles_of_a_local_function_give_the_whole_exactly(height, width):
    patches = PatchAutoencoder(4)
    pictures = jax.random.normal(jax.random.key(0), (2, 4 * height, 4 * width, 3))
    latents = in_tiles(patches.encode, pictures, largest=16, scale_in=4, scale_out=1, channels=48)
    np.testing.assert_allclose(latents, patches.encode(pictures), atol=1e-5)
    back = in_tiles(patches.decode, latents, largest=16, scale_in=1, scale_out=4, channels=3)
    np.testing.assert_allclose(back, pictures, atol=1e-5)


def test_several_tiles_a_call_give_the_same_and_know_their_corners():
    """Six tiles in calls of four, the last one filled up; the function adds each tile's corner."""
    x = jax.random.normal(jax.random.key(0), (2, 20, 28, 1))
    starts = [0, 4], [0, 8, 12]
    weights = np.ones((2, 16), np.float32), np.ones((3, 16), np.float32)

    def shift(tiles, corners):
        assert tiles.shape == (8, 16, 16, 1) and corners.shape == (4, 2)
        return tiles + jnp.repeat(corners @ jnp.array([100, 1]), 2)[:, None, None, None]

    expected = np.zeros(x.shape, np.float32)
    for top in starts[0]:
        for left in starts[1]:
            tile = slice(None), slice(top, top + 16), slice(left, left + 16)
            expected[tile] += x[tile] + (100 * top + left)
    found = overlap_add(shift, x, starts, weights, channels=1, per_call=4)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_padding_inside_the_picture_does_not_show():
    """A 3x3 mean with zero padding is wrong at a tile's edges, where its weight must be 0."""

    def blur(x):
        return jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME") / 9

    x = jax.random.uniform(jax.random.key(0), (1, 50, 50, 1), minval=1.0)
    tiled = in_tiles(blur, x, largest=16, scale_in=1, scale_out=1, channels=1)
    np.testing.assert_allclose(tiled, blur(x), atol=1e-5)


def one_tap(model):
    """Convolutions that see one place only, so that padding plays no part."""
    for _, module in nnx.iter_modules(model):
        if isinstance(module, nnx.Conv):
            kernel = np.zeros(module.kernel.shape, np.float32)
            tap = 0 if module.strides == 2 else 1
            kernel[tap, tap] = 3 * module.kernel[tap, tap]
            module.kernel.set_value(jnp.asarray(kernel))
    return model


@pytest.mark.parametrize("method", ["encode", "decode"])
def test_tiles_of_a_repeating_picture_give_the_whole_exactly(method):
    """Every tile then has the norms and the attention of the whole."""
    config = AutoencoderConfig("flux2", **TINY, tile=64)
    tiled = one_tap(random_model(config))
    whole = one_tap(random_model(dataclasses.replace(config, tile=0)))
    if method == "encode":
        unit = np.random.default_rng(0).uniform(-1, 1, (1, 4, 4, 3))
        x, run = np.tile(unit, (1, 28, 20, 1)).astype(np.float32), encode
    else:
        unit = np.random.default_rng(0).normal(size=(1, 1, 1, 16))
        x, run = np.tile(unit, (1, 28, 20, 1)).astype(np.float32), decode
    expected = run(whole, x)
    assert relative(run(tiled, x), expected) < 1e-5
    small = x[:, :8, :16]
    np.testing.assert_array_equal(run(tiled, small), run(whole, small))


def temporary_bytes(config, method, shape):
    model = abstract(config)

    def run(model, x):
        return getattr(model, method)(x)

    compiled = nnx.jit(run).lower(model, jax.ShapeDtypeStruct(shape, jnp.float32)).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("method", ["encode", "decode"])
def test_memory_of_tiles_does_not_grow_with_the_picture(method):
    def growth(tile):
        config = AutoencoderConfig("flux2", 32, (1, 1, 1, 1), 1, 4, tile=tile)
        shapes = [
            (1, side, side, 3) if method == "encode" else (1, side // 16, side // 16, 16)
            for side in (512, 1024)
        ]
        small, large = (temporary_bytes(config, method, shape) for shape in shapes)
        return large - small

    added_pixels = 4 * 3 * (1024**2 - 512**2)
    assert growth(256) <= 2 * added_pixels < growth(0) / 4
