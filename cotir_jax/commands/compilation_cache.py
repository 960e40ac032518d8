"""Where the programs that XLA compiles are kept between runs."""

from __future__ import annotations

import os
from pathlib import Path


def keep_compiled_programs() -> None:
    """Keeps compiled programs on disk for the next start, unless jax is told where already."""
    import jax

    if jax.config.jax_compilation_cache_dir is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "cotir_jax" / "programs"))
