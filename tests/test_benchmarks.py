"""The benchmark scripts run, and what they count is right."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import einops
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from scipy import stats
from skimage import data
from support.xla_flags import xla_flags

from cotir_jax.bench.plan import Sample, make_plan
from cotir_jax.images.pictures import encode_png
from cotir_jax.models import nano_head, pipeline
from cotir_jax.models.presets import preset

BENCHMARKS = Path(__file__).parent / "benchmarks"
CASES = {
    ("cotir_jax", "training step"), ("cotir_jax", "restore"), ("cotir_jax", "LoRA step"),
    ("cotir_jax", "velocity"), ("diffusers", "LoRA step"), ("diffusers", "velocity"),
}  # fmt: skip


def _run(*options: str) -> subprocess.CompletedProcess:
    # One device: nothing is measured here.
    environment = os.environ | {"XLA_FLAGS": xla_flags(devices=1)}
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


@pytest.mark.parametrize("overrides", ["", "num_single_blocks=3, adapter_depth=2"])
def test_klein_speed_builds_the_other_side_at_any_size(monkeypatch, overrides):
    pytest.importorskip("diffusers", reason="the other side")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import klein_speed_torch

    config = klein_speed_torch.transformer_alone(overrides)
    assert (config.hidden_size, config.adapter_depth) == (3072, 0)
    assert config.num_single_blocks == (3 if overrides else 20)


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


@pytest.mark.slow
def test_ablation_runs_its_variants_and_goes_on_where_it_was(tmp_path):
    pytest.importorskip("matplotlib", reason="draws the curves")
    photos, test = tmp_path / "photos", tmp_path / "test"
    rng = np.random.default_rng(0)
    for folder, count in ((photos, 2), (test, 1)):
        folder.mkdir()
        for number in range(count):
            coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
            coarse.resize((96, 96)).save(folder / f"{count}{number}.png")
    root = BENCHMARKS.parent.parent
    sizes = "hidden_size=64,num_heads=2,detail_channels=0,tile=64,"
    command = [
        sys.executable, str(BENCHMARKS / "ablation.py"), f"--photos={photos}",
        f"--test-photos={test}", f"--out={tmp_path / 'out'}", "--steps=2",
        "--patch=32", "--batch=2", "--config.bench.size=64", "--config.data.workers=0",
        "--config.data.fresh_sizes=(64,)",
        f"--sizes={sizes}", "--config.bench.test_per_degradation=1", "--config.log.every=1",
        "--config.bench.degradations=haze,haze+noise,snow+flare", "--config.bench.workers=1",
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(root), "XLA_FLAGS": xla_flags(devices=1)}

    def run(seeds):
        flag = f"--seeds={seeds}"
        done = subprocess.run(
            [*command, flag], cwd=root, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout.splitlines()

    first = run(1)
    # A second seed that is finished: as the first, `dual` 1 dB better.
    for variant in ("none", "free", "fixed", "dual"):
        folder = tmp_path / "out" / f"{variant}-1"
        shutil.copytree(tmp_path / "out" / f"{variant}-0", folder)
        result = json.loads((folder / "result.json").read_text())
        for scores in result["evaluated"]["per_degradation"].values():
            scores["psnr"] += variant == "dual"
        (folder / "result.json").write_text(json.dumps(result))
    second = run(2)
    assert second[:4] == first[:4]  # read from the runs' results

    def metrics(variant):
        lines = (tmp_path / "out" / f"{variant}-0" / "metrics.jsonl").read_text().splitlines()
        return [row for row in map(json.loads, lines) if "multiplier_scene" in row][-1]

    # What sets the variants apart, as the runs themselves report it.
    assert metrics("none")["constraint_loss_scene"] == 0
    assert metrics("free")["constraint_loss_scene"] > 0
    assert metrics("free")["multiplier_scene"] == 0
    assert metrics("fixed")["multiplier_scene"] == 1
    assert metrics("dual")["multiplier_scene"] == pytest.approx(6e-3, rel=0.05)
    # The table against the runs' own scores.
    table = (tmp_path / "out" / "table.md").read_text().splitlines()
    row = next(line for line in table if line.startswith("| dual | psnr"))
    gains = []
    for seed in range(2):
        result = json.loads((tmp_path / "out" / f"dual-{seed}" / "result.json").read_text())
        scores = result["evaluated"]["per_degradation"]["snow+flare"]
        gains.append(scores["psnr"] - scores["input_psnr"])
    assert gains[1] == pytest.approx(gains[0] + 1)
    shown, half = map(float, row.split("|")[7].split("±"))
    assert shown == pytest.approx(np.mean(gains), abs=6e-4)
    # Two values 1 dB apart: a standard error of 0.5 dB times Student's t for one degree.
    assert half == pytest.approx(0.5 * stats.t.ppf(0.975, 1), abs=6e-4)
    assert (tmp_path / "out" / "curves.png").stat().st_size > 10_000


def test_floors_are_tried_as_the_head_applies_them(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import nano_floors

    tried = 0.5, 6.0  # of luma, of colour; one below and one above a grey level
    head = nano_head.NanoHead(preset("nano"), rngs=nnx.Rngs(0))
    head.floor.bias[...] = jnp.log(jnp.array(tried))
    change = np.random.default_rng(0).normal(0, 4, (16, 24, 3))  # grey levels
    luma = (change @ np.array(nano_head.LUMA))[..., None]
    parts = zip((luma, change - luma), tried, strict=True)
    expected = sum(nano_floors._above_floor(part, floor) for part, floor in parts)
    cells = einops.rearrange(change * 2 / 255, "(h i) (w j) c -> 1 h w (i j c)", i=4, j=4)
    got = head._above_floor(jnp.asarray(cells, jnp.float32), jnp.zeros((1, 384)))
    got = einops.rearrange(got, "1 h w (i j c) -> (h i) (w j) c", i=4, j=4)
    np.testing.assert_allclose(got * 255 / 2, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("harm", [0, 3])
def test_floors_follow_what_small_changes_do(monkeypatch, harm):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import nano_floors

    rng = np.random.default_rng(0)
    clean = np.clip(data.astronaut()[:64, :64].astype(int), 20, 235)
    noisy = clean + rng.integers(-4, 5, clean.shape)
    # Small changes take noise away, or add it to a picture that had none.
    grain = rng.integers(-harm, harm + 1, clean.shape)
    before, after = (clean, clean + grain) if harm else (noisy, clean)
    lq, hq, out = (np.uint8(picture) for picture in (before, clean, after))
    meta = {"cot": {"questions": ["", ""]}}
    sample = Sample("", encode_png(hq), encode_png(lq), meta)
    monkeypatch.setattr(nano_floors, "make_sample", lambda *_, **__: sample)
    restorer = lambda *_: SimpleNamespace(image=out)  # noqa: E731
    plan = make_plan(degradations="noise", size=64)
    floors = nano_floors.best_floors(restorer, plan, "noise", 1)
    if harm:  # well above the grain, which has 1.3 grey levels in luma, 1.5 in colour
        assert min(floors) >= 4
    else:
        assert floors == (0.25, 0.25)


def test_regression_equals_least_squares_with_a_penalty(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import nano_floors

    rng = np.random.default_rng(0)
    inputs, targets = rng.normal(2, 1, (50, 6)), rng.normal(1, 1, (50, 2))
    weights, biases = nano_floors.regress(inputs, targets)
    centred = inputs - inputs.mean(axis=0)
    # The penalty as further equations.
    further = np.sqrt(nano_floors.PENALTY * 50 * centred.var(axis=0).mean()) * np.eye(6)
    wanted = np.concatenate([targets - targets.mean(axis=0), np.zeros((6, 2))])
    expected = np.linalg.lstsq(np.concatenate([centred, further]), wanted, rcond=None)[0]
    np.testing.assert_allclose(weights, expected, rtol=1e-8)
    np.testing.assert_allclose(biases, targets.mean(axis=0) - inputs.mean(axis=0) @ expected)
