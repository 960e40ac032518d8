"""CoTIR in JAX: one model that restores photos with any mix of degradations (arXiv 2606.17557)."""

# ruff: noqa: F401
import importlib.metadata

from etils import epy

try:
    __version__ = importlib.metadata.version("cotir_jax")
except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0+checkout"

# Names are imported when they are first used: workers that only read data stay free of jax.
with epy.lazy_api_imports(globals()):
    from cotir_jax import bench, checkpoints, data, models, scoring, training
    from cotir_jax.explaining.explainer import Explanation
    from cotir_jax.images.photo import Photo, read_photo, write_photo
    from cotir_jax.restoring.restorer import Restorer
    from cotir_jax.restoring.result import Restored
