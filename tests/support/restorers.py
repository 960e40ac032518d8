"""Small restorers for tests."""

import jax
import numpy as np
from flax import nnx

from cotir_jax.checkpoints import model_folder
from cotir_jax.models import presets
from cotir_jax.models.autoencoder import PatchAutoencoder
from cotir_jax.models.transformer import Transformer
from cotir_jax.parallel.sharding import make_mesh
from cotir_jax.restoring.restorer import Restorer


def whole_picture_restorer(devices=None):
    """Random weights of a small model that takes pictures whole, as the published ones do."""
    config = presets.preset(
        "nano",
        "hidden_size=48, num_heads=2, axes_dim=(4,8,8,4), tile=0, patch=8, in_channels=192, "
        "detail_channels=0",
    )
    mesh = make_mesh({"fsdp": -1}, devices)
    encoders = model_folder.load_text_encoders(model_folder.PACKAGED / "nano", config, mesh, ())
    model, rng = Transformer(config, rngs=nnx.Rngs(0)), np.random.default_rng(0)
    # Fresh weights give the picture back.
    moved = jax.tree.map(
        lambda x: x + rng.normal(0, 0.02, x.shape).astype(x.dtype), nnx.state(model, nnx.Param)
    )
    nnx.update(model, moved)
    return Restorer(model, PatchAutoencoder(config.patch), encoders, mesh)
