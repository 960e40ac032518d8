"""CoTIR in JAX: one model that restores photos with any mix of degradations (arXiv 2606.17557)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cotir_jax.restoring.restorer import Restorer
    from cotir_jax.restoring.result import Restored

__version__ = "0.1.0"
__all__ = ["Restored", "Restorer"]


def __getattr__(name: str) -> Any:
    # Imported when asked for: workers that only read data stay free of jax.
    if name in __all__:
        from cotir_jax.restoring import restorer

        return getattr(restorer, name)
    raise AttributeError(f"module 'cotir_jax' has no attribute {name!r}")
