"""Eight simulated CPU devices for every test, and the places of files that may be absent."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

from support.xla_flags import xla_flags

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # two test processes at a time
os.environ["XLA_FLAGS"] = f"{xla_flags(devices=8)} {os.environ.get('XLA_FLAGS', '')}"
# All processes of a run, pytest's own and those that tests start, share what one of them compiled,
# however small it is.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    cache = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jax-cache-")
    atexit.register(shutil.rmtree, cache, ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import pytest

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def one_device():
    """A mesh of one device: with all eight each picture's crops are filled up to eight."""
    import jax

    from cotir_jax.parallel.sharding import make_mesh

    return make_mesh({}, jax.devices()[:1])


@pytest.fixture(scope="session")
def golden() -> Path:
    """The release's golden numbers; reading its .pt files needs PyTorch."""
    pytest.importorskip("torch", reason="PyTorch reads the golden .pt files")
    if not (SHARED / "golden").is_dir():
        pytest.skip("../shared/golden is not here")
    return SHARED / "golden"


@pytest.fixture(scope="session")
def photos() -> Path:
    """Clean photos."""
    if not (SHARED / "data" / "photos").is_dir():
        pytest.skip("../shared/data/photos is not here")
    return SHARED / "data" / "photos"


@pytest.fixture(scope="session")
def manifests() -> Path:
    """Names and shapes of the full-size checkpoints."""
    if not (SHARED / "manifests").is_dir():
        pytest.skip("../shared/manifests is not here")
    return SHARED / "manifests"


@pytest.fixture
def few_blocks(monkeypatch):
    """A head of few blocks a level compiles in less than half the time of sixteen in all."""
    from cotir_jax.models import nano_head

    monkeypatch.setattr(nano_head, "BLOCKS", (1, 2, 1, 2))
