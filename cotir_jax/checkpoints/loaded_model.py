"""A model folder, loaded: weights on devices, text encoders, and how programs are run on them."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from cotir_jax.checkpoints import model_folder, quantization
from cotir_jax.models.autoencoder import Autoencoder, PatchAutoencoder
from cotir_jax.models.transformer import Text, Transformer
from cotir_jax.parallel.sharding import BATCH_AXES, RULES, batch_sharding, make_mesh
from cotir_jax.text.encoders import TextEncoders, encode_prompts

# XLA's CPU compiler multiplies in float32, and would make a float32 copy of all stacked bfloat16
# weights before the loop over layers: for klein-4b at 512x512, 17 GB of temporaries in place of 2.
_CPU_OPTIONS = {"xla_disable_hlo_passes": "while-loop-invariant-code-motion"}


class LoadedModel:
    """Transformer, autoencoder and text encoders on a mesh.

    Args:
      transformer: its weights are cast to the dtype that it computes in.
      autoencoder: of pictures and latents.
      encoders: of prompts.
      mesh: devices that hold all three.
      folder: that the model was loaded from, or None.

    Attributes:
      config: of the transformer.
      weights: states of transformer and autoencoder, the first argument of every program.
      graphdefs: the static halves of both, for `nnx.merge`.
      parts: devices that a batch is split over; the size of a batch must be a multiple.
      crops_per_call: crops of a picture that go through a program at once.
    """

    def __init__(
        self,
        transformer: Transformer,
        autoencoder: Autoencoder | PatchAutoencoder,
        encoders: TextEncoders,
        mesh: Mesh,
        folder: Path | None = None,
    ):
        self.config, self.encoders = transformer.config, encoders
        self.mesh, self.folder = mesh, folder
        graphdef, weights = nnx.split(transformer)
        # Training keeps float32; every forward pass would cast to this.
        weights = jax.tree.map(lambda x: x.astype(self.config.dtype), weights)
        autoencoder_graphdef, autoencoder_weights = nnx.split(autoencoder)
        self.graphdefs = graphdef, autoencoder_graphdef
        self.weights = weights, autoencoder_weights
        self.parts = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
        self._on_cpu = mesh.devices.flat[0].platform == "cpu"
        # Accelerators need several crops to be busy. A CPU takes one of nano's in a quarter of the
        # time of four, and calls with fewer crops are filled up.
        self.crops_per_call = self.up_to_parts(1 if self._on_cpu else 4)

    @classmethod
    def load(
        cls, folder: str | Path = "nano", mesh: Mesh | None = None, int8: bool = False
    ) -> Self:
        """Loads a model folder; a bare name that is no folder means one shipped with the package.

        Args:
          folder: from `cotir convert` or from training.
          mesh: devices to use; by default all, with the weights spread over them.
          int8: hold the blocks' kernels as int8 (`quantization.py`; needs qwix).

        Raises:
          ValueError: when there is no such model, it is damaged, or lacks a part.
        """
        path = model_folder.find(folder)
        config = model_folder.load_config(path)
        mesh = mesh or make_mesh({"fsdp": -1})
        # The small parts first: what is missing shows before gigabytes are read.
        autoencoder = model_folder.load_autoencoder(path, mesh)
        encoders = model_folder.load_text_encoders(path, config, mesh, RULES)
        transformer = model_folder.load_model(path, mesh, RULES)
        model = cls(transformer, autoencoder, encoders, mesh, path)
        if int8:
            model.weights = quantization.quantize_blocks(model.weights[0]), model.weights[1]
        return model

    def merge(self, weights: Any) -> tuple[Transformer, Autoencoder | PatchAutoencoder]:
        """Transformer and autoencoder with the given weights, for use inside programs."""
        return nnx.merge(self.graphdefs[0], weights[0]), nnx.merge(self.graphdefs[1], weights[1])

    def compile(self, function: Callable[..., jax.Array], **options: Any) -> Callable[..., Any]:
        """`jax.jit` of a function of weights and arrays, with what the mesh's compiler needs.

        The result cannot be called inside other programs: jax takes compiler options only for
        outermost ones.
        """
        return jax.jit(function, compiler_options=_CPU_OPTIONS if self._on_cpu else None, **options)

    def call(
        self, program: Callable[..., jax.Array], batch: Any, *others: Any, **static: Any
    ) -> jax.Array:
        """Runs a program from `compile` on the weights, a batch, and arguments without one.

        Args:
          program: called with the weights, each of `batch`, and the others.
          batch: tuple of pytrees of arrays `[batch, ...]`, which are split over the devices; the
            size is a multiple of `parts`.
          others: further arguments, the same for the entire batch.
          static: static arguments.

        Returns:
          The result; the devices may still be computing it.
        """
        placed = jax.device_put(batch, batch_sharding(self.mesh))
        with jax.set_mesh(self.mesh):
            return program(self.weights, *placed, *others, **static)

    def embed(self, prompt: str, batch: int) -> Text:
        """Embeddings of one prompt on the host, repeated: `[batch, tokens, width]`."""
        one = encode_prompts(self.encoders, [prompt])
        return jax.tree.map(lambda x: np.repeat(x, batch, axis=0), one)

    def up_to_parts(self, count: int) -> int:
        """`count` rounded up to a multiple of `parts`."""
        return -(-count // self.parts) * self.parts
