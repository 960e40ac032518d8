"""Attention against PyTorch's in float64, on one device and on eight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from cotir_jax.models import tpu_attention
from cotir_jax.models.attention import attention
from cotir_jax.models.layers import REMAT_POLICIES
from cotir_jax.parallel.sharding import make_mesh

torch = pytest.importorskip("torch", reason="PyTorch's attention is the reference")

SHAPES = {  # batch, query tokens, tokens, heads, head_dim
    "square": (2, 64, 64, 4, 32),
    "odd": (3, 7, 13, 5, 3),
    "one token": (1, 1, 1, 1, 1),
    "fewer queries": (2, 48, 560, 6, 32),
    "queries in uneven parts": (2, 1001, 1100, 2, 16),
    "parts of the least size": (4, 150, 9000, 1, 8),
    "nano": (24, 176, 176, 6, 32),
}


def _arrays(batch, queries, tokens, heads, head_dim, scale=1.0):
    rng = np.random.default_rng(0)
    sizes = [(batch, rows, heads, head_dim) for rows in (queries, tokens, tokens, queries)]
    query, key, value, out_gradient = (rng.normal(size=size).astype(np.float32) for size in sizes)
    return (scale * query, key, value), out_gradient.reshape(batch, queries, -1)


def _reference(arrays, out_gradient):
    """Output and the three gradients in float64."""
    parts = [torch.from_numpy(np.float64(a)).transpose(1, 2).requires_grad_() for a in arrays]
    out = torch.nn.functional.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)
    gradients = torch.autograd.grad(out, parts, torch.from_numpy(np.float64(out_gradient)))
    return [out.detach().numpy(), *(g.transpose(1, 2).numpy() for g in gradients)]


@jax.jit
def _with_gradients(arrays, out_gradient):
    out, pullback = jax.vjp(attention, *arrays)
    return [out, *pullback(out_gradient)]


def _assert_close(ours, reference, tolerance):
    for array, expected in zip(ours, reference, strict=True):
        assert array.shape == expected.shape
        error = np.abs(np.float64(array) - expected).max()
        # The floor is for gradients that are zero, as the query's is where there is one key.
        assert error <= tolerance * max(np.abs(expected).max(), 0.1)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_output_and_gradients(shape):
    arrays, out_gradient = _arrays(*shape)
    _assert_close(
        _with_gradients(arrays, out_gradient), _reference(arrays, out_gradient), tolerance=3e-6
    )


def test_large_logits():
    """Logits of several hundred: exp of them overflows where the maximum is not taken off."""
    arrays, out_gradient = _arrays(2, 1001, 1100, 2, 16, scale=100.0)
    _assert_close(
        _with_gradients(arrays, out_gradient), _reference(arrays, out_gradient), tolerance=1e-4
    )


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_16_bit_inputs_are_rounded_at_the_end_only(dtype):
    arrays, out_gradient = _arrays(2, 1001, 1100, 2, 16)
    arrays = tuple(jnp.asarray(array, dtype) for array in arrays)
    out = jax.jit(attention)(*arrays)
    assert out.dtype == dtype
    expected = _reference(arrays, out_gradient)[0]
    np.testing.assert_allclose(
        np.float64(out), expected, rtol=float(jnp.finfo(dtype).eps) / 2 * 1.01, atol=1e-6
    )


@pytest.mark.parametrize(
    "spec",
    [(("data", "fsdp"),), (None, None, "tensor"), (("data", "fsdp"), None, "tensor")],
    ids=["batch", "heads", "batch and heads"],
)
def test_eight_devices(spec):
    arrays, out_gradient = _arrays(4, 300, 1100, 4, 16)
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    placed = jax.device_put(arrays, NamedSharding(mesh, PartitionSpec(*spec)))
    ours = _with_gradients(
        placed, jax.device_put(out_gradient, NamedSharding(mesh, PartitionSpec()))
    )
    _assert_close(ours, _reference(arrays, out_gradient), tolerance=3e-6)


def test_a_sharded_batch_stays_where_it_is():
    mesh = make_mesh({"data": 8})
    shape = jax.ShapeDtypeStruct(
        (8, 32, 2, 16), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("data"))
    )
    program = jax.jit(attention).lower(shape, shape, shape).compile()
    assert program.output_shardings.spec[0] == "data"
    assert "all-gather" not in program.as_text()


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_the_backward_pass_keeps_no_logits(remat):
    """Three layers in a scan, as the transformers run them."""
    shape = jax.ShapeDtypeStruct((1, 2048, 8, 16), jnp.float32)
    logits_bytes = 8 * 2048 * 2048 * 4

    def layer(query, key, value):
        return attention(query, key, value).reshape(query.shape)

    if remat != "none":
        layer = jax.checkpoint(layer, policy=REMAT_POLICIES[remat], prevent_cse=False)

    def loss(query, key, value):
        out, _ = jax.lax.scan(lambda x, _: (layer(x, key, value), None), query, length=3)
        return (out**2).sum()

    program = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(shape, shape, shape).compile()
    assert program.memory_analysis().temp_size_in_bytes < logits_bytes / 4


SPLASH_SHAPES = {  # batch, query tokens, tokens, heads, head_dim
    "whole blocks": (1, 256, 256, 2, 64),
    "text rows": (2, 128, 384, 2, 128),
    "padding as a segment of its own": (1, 200, 300, 2, 64),
    "padded queries alone": (1, 77, 256, 1, 128),
}


@jax.jit
def _splash_with_gradients(arrays, out_gradient):
    def interpreted(query, key, value):
        out = tpu_attention.splash_attention(query, key, value, interpret=True)
        return out.reshape(*out.shape[:2], -1)

    out, pullback = jax.vjp(interpreted, *arrays)
    return [out, *pullback(out_gradient)]


@pytest.mark.parametrize("shape", SPLASH_SHAPES.values(), ids=SPLASH_SHAPES)
def test_the_tpu_kernel_interpreted(shape):
    arrays, out_gradient = _arrays(*shape)
    _assert_close(
        _splash_with_gradients(arrays, out_gradient), _reference(arrays, out_gradient), 3e-6
    )


def test_the_tpu_kernel_on_eight_devices():
    """Each device works on its own batch and heads; the others' never reach it."""
    arrays, out_gradient = _arrays(4, 128, 200, 4, 64)
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    spec = PartitionSpec(("data", "fsdp"), None, "tensor")
    placed = jax.device_put(arrays, NamedSharding(mesh, spec))
    placed_gradient = jax.device_put(out_gradient, NamedSharding(mesh, spec))
    with jax.set_mesh(mesh):
        ours = _splash_with_gradients(placed, placed_gradient)
        program = _splash_with_gradients.lower(placed, placed_gradient).compile().as_text()
    _assert_close(ours, _reference(arrays, out_gradient), 3e-6)
    assert "all-gather" not in program


@pytest.mark.parametrize("rows", [1, 128, 200, 512, 640, 1024, 1664, 2560, 8704, 9001])
def test_blocks_of_the_tpu_kernel_waste_little(rows):
    block = tpu_attention._block(rows)
    assert block % 128 == 0 and 128 <= block <= 1024
    assert -rows % block < max(128, 0.1 * rows)


def test_the_platform_compiled_for_decides():
    """One traced program; each platform's has its own kernel and not the others'."""
    shape = jax.ShapeDtypeStruct((2, 128, 4, 64), jnp.bfloat16)
    traced = jax.jit(attention).trace(shape, shape, shape)
    texts = {
        platform: traced.lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cpu", "tpu", "cuda")
    }
    kernels = {platform: text.count("tpu_custom_call") for platform, text in texts.items()}
    assert kernels == {"cpu": 0, "tpu": 1, "cuda": 0}
    loops = {platform: text.count("stablehlo.while") for platform, text in texts.items()}
    assert loops["cpu"] > 0 and loops["tpu"] == loops["cuda"] == 0


def test_small_heads_stay_with_xla_on_tpu():
    shape = jax.ShapeDtypeStruct((2, 128, 6, 32), jnp.float32)
    lowered = jax.jit(attention).trace(shape, shape, shape).lower(lowering_platforms=("tpu",))
    assert "tpu_custom_call" not in lowered.as_text()
