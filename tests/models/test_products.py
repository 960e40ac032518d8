"""Products in bfloat16 for CPUs: against float64 sums of the rounded inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cotir_jax.models import nano_head, products
from cotir_jax.models.attention import attention
from cotir_jax.models.lora import Linear
from cotir_jax.restoring.restorer import Restorer


def _rounded(x: jax.Array) -> np.ndarray:
    return np.asarray(x.astype(jnp.bfloat16)).astype(np.float64)


def _normal(*shapes: tuple[int, ...]) -> list[jax.Array]:
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def _convolved(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    height, width = x.shape[1:3]
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    out = np.zeros((*x.shape[:3], kernel.shape[3]))
    for i in range(3):
        for j in range(3):
            out += padded[:, i : i + height, j : j + width] @ kernel[i, j]
    return out


def test_product_and_its_gradients():
    x, kernel, cotangent = _normal((2, 5, 24), (24, 16), (2, 5, 16))
    out, pull = jax.vjp(jax.jit(products.product), x, kernel)
    to_x, to_kernel = pull(cotangent)
    a, b, c = map(_rounded, (x, kernel, cotangent))
    np.testing.assert_allclose(out, a @ b, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(to_x, c @ b.T, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        to_kernel, a.reshape(-1, 24).T @ c.reshape(-1, 16), rtol=1e-4, atol=1e-5
    )


def test_convolution_and_its_gradients():
    x, kernel, cotangent = _normal((2, 6, 7, 8), (3, 3, 8, 4), (2, 6, 7, 4))
    out, pull = jax.vjp(jax.jit(products.convolution), x, kernel)
    to_x, to_kernel = pull(cotangent)
    a, b, c = map(_rounded, (x, kernel, cotangent))
    np.testing.assert_allclose(out, _convolved(a, b), rtol=1e-4, atol=1e-5)
    flipped = b[::-1, ::-1].swapaxes(2, 3)
    np.testing.assert_allclose(to_x, _convolved(c, flipped), rtol=1e-4, atol=1e-5)
    # The sum of output times cotangent is linear in the kernel: one weight's share is its gradient.
    for place in [(0, 0, 1, 2), (1, 2, 7, 3), (2, 1, 0, 0)]:
        unit = np.zeros_like(b)
        unit[place] = 1
        expected = (_convolved(a, unit) * c).sum()
        np.testing.assert_allclose(to_kernel[place], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dtypes_stay(dtype: str):
    x, kernel = (part.astype(dtype) for part in _normal((3, 8), (8, 8)))
    out, pull = jax.vjp(products.product, x, kernel)
    assert [out.dtype, *(part.dtype for part in pull(out))] == [dtype] * 3


def test_asked_for_by_the_setting_of_jax():
    layer = Linear(32, 32, rank=4, rngs=nnx.Rngs(0))
    head = nano_head._conv(8, 8, nnx.Rngs(0), param_dtype="float32", dtype="float32")
    x, picture, rows = _normal((4, 32), (1, 6, 6, 8), (1, 70, 2, 16))
    rows = rows.astype(jnp.bfloat16)

    def outputs() -> tuple[jax.Array, ...]:
        return layer(x), head(picture), attention(rows, rows, rows)

    plain = outputs()
    with jax.default_matmul_precision("bfloat16"):
        half = outputs()
    for one, other in zip(plain, half, strict=True):
        assert not np.array_equal(one, other)
        np.testing.assert_allclose(np.float32(one), np.float32(other), atol=0.05)


@pytest.mark.slow
def test_restores_the_same_picture(one_device):
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    plain = Restorer.load("nano", one_device)(picture).image.astype(float)
    with jax.default_matmul_precision("bfloat16"):
        half = Restorer.load("nano", one_device)(picture).image.astype(float)
    assert 45 < 10 * np.log10(255**2 / max(((plain - half) ** 2).mean(), 1e-9)) < 90
