"""int8 weights for restoring, by qwix: a quarter of float32's memory, half of bfloat16's.

The kernels of all linear layers in the blocks of transformer and adapter, which hold nearly all
weights, become int8 with a scale for each layer and output channel: w = q s, s = max |w| / 127 over
the inputs. Products stay in the model's own precision; XLA fuses the conversion into them. What is
outside of the blocks (embeddings, heads, final layer), norms, biases, LoRA and the autoencoder keep
their precision: they are small, and errors at both ends of the model are the most visible.
"""

from typing import Any

import jax
from flax import nnx


def quantize_blocks(weights: Any) -> Any:
    """Replaces the blocks' kernels by `qwix.QArray`.

    Args:
      weights: the transformer's state, from `nnx.split`; real arrays or, in `jax.eval_shape`,
        abstract ones.

    Returns:
      The state with int8 kernels, on the same devices.

    Raises:
      ValueError: qwix is not installed, or the weights are int8 already.
    """
    try:
        import qwix
    except ImportError:
        raise ValueError("qwix is not installed: pip install 'cotir_jax[int8]'") from None
    if any(x.dtype == "int8" for x in jax.tree.leaves(weights)):
        raise ValueError("the weights are int8 already")

    def quantized(path: tuple[Any, ...], variable: nnx.Variable) -> nnx.Variable:
        if not is_block_kernel(path):
            return variable
        # Most blocks are stacked: [layers, inputs, outputs].
        axes = tuple(axis for axis in range(variable.ndim) if axis != variable.ndim - 2)
        return variable.replace(qwix.quantize(variable[...], "int8", channelwise_axes=axes))

    # One program, so that no second copy in floating point is made and shardings stay.
    return jax.jit(lambda state: nnx.map_state(quantized, state))(weights)


def is_block_kernel(path: tuple[Any, ...]) -> bool:
    """Whether a path in the state is that of a block's kernel."""
    return path[-1] == "kernel" and any("block" in str(part) for part in path)
