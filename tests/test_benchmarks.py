"""The benchmark scripts run, and what they count is right."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from cotir_jax.models import pipeline
from cotir_jax.models.presets import preset

BENCHMARKS = Path(__file__).parent / "benchmarks"
CASES = {
    ("cotir_jax", "training step"), ("cotir_jax", "restore"), ("cotir_jax", "LoRA step"),
    ("cotir_jax", "velocity"), ("diffusers", "LoRA step"), ("diffusers", "velocity"),
}  # fmt: skip


def _run(*options: str) -> subprocess.CompletedProcess:
    # One device, and a compiler in a hurry: nothing is measured here.
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0",
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / "klein_speed.py"), *options],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip


@pytest.mark.slow
def test_klein_speed_measures_both_sides():
    pytest.importorskip("torch", reason="PyTorch runs the other side")
    pytest.importorskip("diffusers", reason="the other side")
    run = _run("--small", "--turns=1", "--batch=2")
    assert run.returncode == 0, run.stderr
    rows = json.loads(run.stdout.splitlines()[-1])["rows"]
    assert not [row for row in rows if "error" in row]
    measured = {(row["side"].split(",")[0], row["case"]): row for row in rows}
    assert set(measured) == CASES
    assert all(row["ms"] > 0 for row in rows)
    # Both sides are held to the same work.
    for case in ("LoRA step", "velocity"):
        assert measured["cotir_jax", case]["flops"] == measured["diffusers", case]["flops"]


def test_klein_speed_reports_a_side_that_fails():
    run = _run("--small", "--only=cotir_jax", "--remat=nonsense")
    assert run.returncode == 1
    rows = json.loads(run.stdout.splitlines()[-1])["rows"]
    assert len(rows) == 4
    assert all("nonsense" in row["error"] for row in rows)


def test_klein_speed_counts_the_decoder(monkeypatch):
    # XLA's count of the plain program, in which nothing loops at this size.
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import klein_speed_jax

    config, size = preset("klein-4b"), 256

    def make():
        return nnx.split(pipeline.make_autoencoder(config, rngs=nnx.Rngs(0)))

    graphdef, weights = jax.eval_shape(make)
    latents = jax.ShapeDtypeStruct((1, size // 16, size // 16, config.in_channels), jnp.float32)
    program = jax.jit(lambda weights, x: nnx.merge(graphdef, weights).decode(x))
    counted = program.lower(weights, latents).cost_analysis()["flops"]
    assert 2 * klein_speed_jax.decoder(config, size) == pytest.approx(counted, rel=0.02)
