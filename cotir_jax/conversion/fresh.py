"""LoRA and adapter weights for a base model that comes without them."""

import dataclasses
import math
import threading
from collections.abc import Callable, Mapping

import jax
import numpy as np
from flax import nnx

from cotir_jax.checkpoints.model_folder import flat
from cotir_jax.models.presets import CoTIRConfig
from cotir_jax.models.transformer import Transformer

# Layers of arrays with fewer numbers are drawn together, by one program.
SMALL = 2**23


class FreshWeights:
    """Weights as training starts with them, a layer at a time.

    LoRA's B and the adapter's scales are zero, so the model is the base model. A layer comes from
    the initialisation of a model with one layer, under a key of the layer's own; XLA drops all else
    that this initialisation would draw, so neither base weights nor other layers take memory.

    Args:
      config: sizes.
      shapes: of one layer of each array that is wanted, by path.
      dtype: of the arrays.
      seed: of the random numbers.
    """

    def __init__(
        self,
        config: CoTIRConfig,
        shapes: Mapping[str, tuple[int, ...]],
        dtype: np.dtype,
        seed: int = 0,
    ):
        self.config = dataclasses.replace(
            config, num_double_blocks=1, num_single_blocks=2, adapter_depth=1
        )
        self.dtype, self.key, self.lock = dtype, jax.random.key(seed), threading.Lock()
        small = tuple(path for path, shape in shapes.items() if math.prod(shape) < SMALL)
        self.together = {path: small if path in small else (path,) for path in shapes}
        self.programs: dict[tuple[str, ...], Callable[[jax.Array], dict[str, jax.Array]]] = {}

    def layer(self, path: str, index: int, stacked: bool) -> np.ndarray:
        """Draws one layer of a stacked array, or with index 0 all of another one."""
        paths = self.together[path]
        with self.lock:  # one at a time, for memory
            if paths not in self.programs:
                self.programs[paths] = self._program(paths)
            array = self.programs[paths](jax.random.fold_in(self.key, index))[path]
            return np.asarray(array[0] if stacked else array)

    def _program(self, paths: tuple[str, ...]) -> Callable[[jax.Array], dict[str, jax.Array]]:
        def draw(key: jax.Array) -> dict[str, jax.Array]:
            model = Transformer(self.config, rngs=nnx.Rngs(key))
            variables = flat(nnx.state(model, nnx.Param))
            return {path: variables[path][...].astype(self.dtype) for path in paths}

        return jax.jit(draw)
