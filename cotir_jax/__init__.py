"""CoTIR in JAX: one model that restores photos with any mix of degradations (arXiv 2606.17557)."""

__version__ = "0.1.0"
