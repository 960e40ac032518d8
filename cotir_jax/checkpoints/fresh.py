"""LoRA and adapter weights for a base model that comes without them."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence

import jax
import ml_dtypes
import numpy as np
from flax import nnx

from cotir_jax.checkpoints.model_folder import flat
from cotir_jax.models.presets import CoTIRConfig
from cotir_jax.models.transformer import make_transformer

# Arrays that are drawn in one program.
GROUP_BYTES = 256 * 2**20


class FreshWeights:
    """Weights as training starts with them, drawn when they are first asked for.

    LoRA's B and the adapter's scales are zero, so the model is the base model. XLA drops all else
    that the model's initialisation would draw, so the base weights take no memory.

    Args:
      config: sizes.
      shapes: of the arrays that are wanted, by path.
      dtype: of the arrays.
      seed: of the random numbers.
    """

    def __init__(
        self,
        config: CoTIRConfig,
        shapes: Mapping[str, tuple[int, ...]],
        dtype: str,
        seed: int = 0,
    ):
        self.config, self.dtype, self.seed = config, dtype, seed
        self.lock = threading.Lock()
        self.current: dict[str, np.ndarray] = {}
        self.group_of: dict[str, Sequence[str]] = {}
        itemsize = np.dtype(getattr(ml_dtypes, dtype, dtype)).itemsize
        group: list[str] = []
        size = 0
        for path in sorted(shapes):  # the order in which they are written
            nbytes = math.prod(shapes[path]) * itemsize
            if size + nbytes > GROUP_BYTES:
                group, size = [], 0
            group.append(path)
            size += nbytes
            self.group_of[path] = group

    def array(self, path: str) -> np.ndarray:
        """One array; the group that it was drawn with is kept until another group is asked for."""
        with self.lock:
            if path not in self.current:
                self.current = {}
                self.current = self._draw(self.group_of[path])
            return self.current[path]

    def _draw(self, group: Sequence[str]) -> dict[str, np.ndarray]:
        def arrays() -> dict[str, jax.Array]:
            model = make_transformer(self.config, rngs=nnx.Rngs(self.seed))
            variables = flat(nnx.state(model, nnx.Param))
            return {path: variables[path][...].astype(self.dtype) for path in group}

        return {path: np.asarray(array) for path, array in jax.jit(arrays)().items()}
