"""Products of bfloat16 inputs added up in float32, for CPUs that have units for them.

On TPU JAX's default precision does this by itself. XLA:CPU widens bfloat16 to float32 unless the
product says that its result is float32: then a CPU with AMX does it several times as fast. Asked
for with JAX's own setting, `JAX_DEFAULT_MATMUL_PRECISION=bfloat16` in the environment or
`jax.default_matmul_precision("bfloat16")`, which XLA:CPU otherwise ignores.
"""

import jax
import jax.numpy as jnp

_FORWARD, _TO_X, _TO_KERNEL = "...i,io->...o", "...o,io->...i", "...i,...o->io"


def in_bfloat16() -> bool:
    """Whether `product` and `convolution` are asked for."""
    wanted = jax.config.jax_default_matmul_precision == "bfloat16"
    return wanted and jax.default_backend() == "cpu"


@jax.custom_vjp
def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`[..., in] x [in, out]` to `[..., out]`, in the dtype of `x`.

    Plain autodiff gives the backward pass one float32 operand, and so float32 products.
    """
    return _einsum(_FORWARD, x, kernel).astype(x.dtype)


def _product_forward(x: jax.Array, kernel: jax.Array):
    return product(x, kernel), (x, kernel)


def _product_backward(kept: tuple[jax.Array, jax.Array], cotangent: jax.Array):
    x, kernel = kept
    to_kernel = _einsum(_TO_KERNEL, x, cotangent).astype(kernel.dtype)
    return _einsum(_TO_X, cotangent, kernel).astype(x.dtype), to_kernel


product.defvjp(_product_forward, _product_backward)


@jax.custom_vjp
def convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """3x3 convolution as nine products, borders padded with zeros, in the dtype of `x`.

    XLA:CPU has no bfloat16 convolution, and its gradient by the kernel is slow in float32 too.

    Args:
      x: `[batch, height, width, in]`.
      kernel: `[3, 3, in, out]`.
    """
    shifted = zip(_shifted(x), kernel.reshape(9, *kernel.shape[2:]), strict=True)
    return sum(_einsum(_FORWARD, part, weights) for part, weights in shifted).astype(x.dtype)


def _convolution_forward(x: jax.Array, kernel: jax.Array):
    return convolution(x, kernel), (x, kernel)


def _convolution_backward(kept: tuple[jax.Array, jax.Array], cotangent: jax.Array):
    x, kernel = kept
    to_x = convolution(cotangent, kernel[::-1, ::-1].swapaxes(2, 3)).astype(x.dtype)
    parts = [_einsum(_TO_KERNEL, part, cotangent) for part in _shifted(x)]
    return to_x, jnp.stack(parts).reshape(kernel.shape).astype(kernel.dtype)


convolution.defvjp(_convolution_forward, _convolution_backward)


def _einsum(formula: str, left: jax.Array, right: jax.Array) -> jax.Array:
    half = (side.astype(jnp.bfloat16) for side in (left, right))
    return jnp.einsum(formula, *half, preferred_element_type=jnp.float32)


def _shifted(x: jax.Array) -> list[jax.Array]:
    """What each of the nine weights of a 3x3 kernel sees, bfloat16."""
    height, width = x.shape[1:3]
    padded = jnp.pad(x.astype(jnp.bfloat16), ((0, 0), (1, 1), (1, 1), (0, 0)))
    return [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
