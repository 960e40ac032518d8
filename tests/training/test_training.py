"""Training as a user runs it: subprocesses that are killed, stopped, starved and misled."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support.small_encoder import PYTHONPATH
from support.xla_flags import xla_flags

from cotir_jax.bench.build import build_bench
from cotir_jax.configs import nano
from cotir_jax.training.config import Run
from cotir_jax.training.loop import train
from cotir_jax.training.throughput import NAMES

ROOT = Path(__file__).parents[2]
STEPS = 12


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("data") / "bench"
    build_bench(
        out,
        samples_per_degradation=4,
        test_per_degradation=1,
        size=64,
        degradations="quick",
        composites=False,
    )
    return out


def _fields(bench: Path) -> dict[str, object]:
    return {
        "init": "scratch",
        "data.dir": str(bench),
        "data.validation": 1,
        "model.overrides": "hidden_size=64, num_heads=2, text_tokens=16, tile=64, patch=8, "
        "in_channels=192, detail_channels=0",
        "train.steps": STEPS,
        "train.stages": ((5, 32, 4), (STEPS, 48, 2)),
        "train.learning_rate": 1e-3,
        "checkpoint.every": 3,
        "log.every": 1,
    }


def _command(bench: Path, workdir: Path, **more: object) -> list[str]:
    fields = _fields(bench) | {name.replace("__", "."): value for name, value in more.items()}
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    config = f"--config={ROOT / 'configs' / 'nano.py'}"
    return [sys.executable, "-m", "support.small_encoder", config, f"--workdir={workdir}", *flags]


def _environment() -> dict[str, str]:
    # One device, as on a laptop; conftest's eight are for the sharding tests.
    return {**os.environ, "XLA_FLAGS": xla_flags(devices=1), "PYTHONPATH": PYTHONPATH}


def _run(bench: Path, workdir: Path, limit=None, **more: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        _command(bench, workdir, **more),
        env=_environment(),
        cwd=workdir.parent,
        capture_output=True,
        text=True,
        preexec_fn=limit,
        timeout=300,
    )


def _start_until(bench: Path, workdir: Path, steps: int, **more: object) -> subprocess.Popen:
    """Starts a run, in a process group of its own, until `steps` lines of log or its end."""
    process = subprocess.Popen(
        _command(bench, workdir, **more),
        start_new_session=True,
        env=_environment(),
        cwd=workdir.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    deadline = time.monotonic() + 200
    while len(_lines(workdir)) < steps and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not process.poll()
    return process


def _lines(workdir: Path) -> list[dict]:
    path = workdir / "metrics.jsonl"
    # A run that goes on may have written half of its last line.
    whole = path.read_text().rpartition("\n")[0] if path.exists() else ""
    return [json.loads(line) for line in whole.splitlines()]


def _losses(workdir: Path) -> dict[int, tuple]:
    """Every logged quantity but the speed, by step; what came last counts."""
    return {
        line["step"]: tuple((name, value) for name, value in line.items() if name not in NAMES)
        for line in _lines(workdir)
    }


def _error(process: subprocess.CompletedProcess) -> str:
    """The one line of an expected error."""
    assert process.returncode == 1, process.stderr[-2000:]
    assert "Traceback" not in process.stderr
    errors = [line for line in process.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, process.stderr[-2000:]
    return errors[0]


@pytest.fixture(scope="module")
def uninterrupted(bench, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("whole") / "run"
    process = _run(bench, workdir)
    assert process.returncode == 0, process.stderr[-2000:]
    last = json.loads(process.stdout.splitlines()[-1])
    assert last["step"] == STEPS and last["evaluated"]["pictures"] == 9
    assert last["evaluated"]["per_degradation"].keys() >= {"haze", "noise"}
    for name in ("before_after.png", "validation.png", "model/model.json", "report/report.html"):
        assert (workdir / name).exists()
    # Before the JSON line: how good, and where everything is, for people.
    closing = "\n".join(process.stdout.splitlines()[-8:-1])
    figures = last["evaluated"]
    assert f"PSNR {figures['input_psnr']:.2f} -> {figures['psnr']:.2f} dB" in closing
    for name in ("before_after.png", "report/report.html", "model"):
        assert f"{workdir / name}\n" in closing
    assert f"step {STEPS} of {STEPS}:" in process.stderr
    assert list((workdir / "events").glob("*tfevents*"))
    return workdir


def _weights(workdir: Path) -> list[np.ndarray]:
    import orbax.checkpoint as ocp

    steps = [int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()]
    path = workdir / "checkpoints" / str(max(steps)) / "state"
    restored = ocp.StandardCheckpointer().restore(path.absolute())
    return [np.asarray(restored[name]) for name in sorted(restored)]


def _assert_same_run(ours: Path, reference: Path) -> None:
    assert _losses(ours) == _losses(reference)
    for one, other in zip(_weights(ours), _weights(reference), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_killed_run_continues_bit_for_bit(bench, uninterrupted, tmp_path):
    """SIGKILL at a random step, once in each of two processes."""
    workdir, codes = tmp_path / "run", []
    for steps in sorted(random.sample(range(4, STEPS), 2)):
        process = _start_until(bench, workdir, steps)
        process.kill()
        codes.append(process.wait())
    assert codes[0] == -signal.SIGKILL  # the second may have ended
    result = _run(bench, workdir)
    assert result.returncode == 0, result.stderr[-2000:]
    _assert_same_run(workdir, uninterrupted)


@pytest.mark.slow
def test_a_killed_run_with_muon_continues_bit_for_bit(bench, tmp_path):
    """Its state is kept for some weights, AdamW's for the others."""
    muon = {"train__optimizer": "muon", "evaluate__enabled": False, "train__steps": 8}
    muon["train__stages"] = ((8, 32, 4),)
    process = _start_until(bench, tmp_path / "run", 5, **muon)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    for workdir in (tmp_path / "run", tmp_path / "whole"):
        result = _run(bench, workdir, **muon)
        assert result.returncode == 0, result.stderr[-2000:]
    _assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
def test_text_encoders_within_the_step_give_the_same_run(bench, uninterrupted, tmp_path):
    result = _run(bench, tmp_path / "run", train__text_encoders="in_step", evaluate__enabled=False)
    assert result.returncode == 0, result.stderr[-2000:]
    ours, reference = _losses(tmp_path / "run"), _losses(uninterrupted)
    assert ours.keys() == reference.keys()
    for step in reference:
        for (name, value), (_, expected) in zip(ours[step], reference[step], strict=True):
            # Embeddings are rounded to bfloat16 after sums in another order.
            assert value == pytest.approx(expected, rel=2e-3, abs=1e-5), (step, name)


def test_sigterm_saves_and_exits_with_zero(bench, uninterrupted, tmp_path):
    workdir = tmp_path / "run"
    process = _start_until(bench, workdir, 4)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=100)
    assert process.returncode == 0 and "interrupted" in json.loads(out.splitlines()[-1])
    reached = len(_losses(workdir))
    assert (workdir / "checkpoints" / str(reached)).is_dir()
    assert _run(bench, workdir).returncode == 0
    assert _losses(workdir) == _losses(uninterrupted)
    steps = [line["step"] for line in _lines(workdir)]
    assert steps == sorted(set(steps)), "a step was repeated after a clean stop"


@pytest.mark.slow
def test_sigterm_to_the_workers_too_saves_and_exits_with_zero(bench, tmp_path):
    """As SLURM and `timeout` send it: to every process."""
    workdir = tmp_path / "run"
    process = _start_until(bench, workdir, 2, data__workers=1, data__threads=1)
    os.killpg(process.pid, signal.SIGTERM)
    out, _ = process.communicate(timeout=100)
    assert process.returncode == 0 and "interrupted" in json.loads(out.splitlines()[-1])
    assert (workdir / "checkpoints" / str(len(_losses(workdir)))).is_dir()


def test_full_disk_keeps_the_last_checkpoint(bench, uninterrupted, tmp_path):
    """Files may not grow beyond 100 kB, as under a quota; then the limit is lifted."""
    workdir = tmp_path / "run"
    # As if killed after step 10: checkpoints up to step 9.
    last = shutil.ignore_patterns(str(STEPS), "model", "results", "metrics.jsonl")
    shutil.copytree(uninterrupted, workdir, ignore=last)
    lines = [line for line in _lines(uninterrupted) if line["step"] <= 10]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    kept = sorted(path.name for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    message = _error(_run(bench, workdir, limit=limit))
    assert "too large" in message.lower() and "unchanged" in message and "again" in message
    after = sorted(path.name for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())
    assert kept and after == kept
    assert _run(bench, workdir).returncode == 0
    assert _losses(workdir) == _losses(uninterrupted)


@pytest.mark.slow
def test_another_config_in_the_workdir_is_refused(bench, uninterrupted):
    message = _error(_run(bench, uninterrupted, train__b1=0.5))
    assert "train.b1=0.9 there, 0.5 here" in message


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("--config.train.stepz=3", "accepted are"),
        ("--config.mesh.data=3", "set config.mesh"),
        ("--config.data.dir=/nowhere", "no such folder"),
        ("--config.bench.photos=/nowhere", "no such folder"),
        ("--config.data.shares=(('fog', 2),)", "--config.data.shares='()'"),
    ],
)
def test_impossible_configs_are_one_line(flag, expected, tmp_path):
    config = f"--config={ROOT / 'configs' / 'nano.py'}"
    command = [sys.executable, "-m", "cotir_jax.main", config, f"--workdir={tmp_path / 'w'}", flag]
    process = subprocess.run(
        command, env=_environment(), cwd=tmp_path, capture_output=True, text=True, timeout=100
    )
    assert expected in _error(process)
    assert not (tmp_path / "w" / "checkpoints").exists()
    assert not (tmp_path / "w" / "bench").exists()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"train.stages": ((9, 50, 8),)}, "not a multiple"),
        ({"train.stages": ((9, 640, 8),)}, "config.bench.size"),
        ({"model.overrides": "hiden_size=3"}, "hiden_size"),
        ({"constraints.initial": -1.0}, "0 or more"),
        ({"data.recoloured": 60.0}, "0 to 1"),
        ({"data.recoloured": 0.6}, "config.data.fresh=True"),
        ({"data.drawn": -0.1}, "0 to 1"),
        ({"data.drawn": 0.1}, "config.data.fresh=True"),
        ({"train.optimizer": "sgd"}, "'adamw' and 'muon'"),
        ({"init": "/nowhere"}, "not a model folder"),
    ],
)
def test_impossible_values_are_found_before_anything_is_built(fields, expected):
    config = nano.get_config()
    config.train.stages = ((30, 128, 8),)  # a batch for the eight simulated devices
    config.update_from_flattened_dict(fields)
    with pytest.raises(ValueError, match=expected) as error:
        Run.read(config)
    assert "\n" not in str(error.value)


def _config(bench: Path, **more: object):
    config = nano.get_config()
    fields = _fields(bench) | {name.replace("__", "."): value for name, value in more.items()}
    config.update_from_flattened_dict(fields)
    config.mesh.update({"data": 4, "fsdp": 1, "tensor": 2})
    config.train.stages = ((STEPS, 32, 4),)
    return config


def test_losses_fall_and_a_loss_that_is_not_finite_stops_the_run(bench, tmp_path):
    config = _config(bench, train__steps=STEPS, constraints__learning_rate=1e-2)
    train(Run.read(config), tmp_path / "good", bench)
    lines = _lines(tmp_path / "good")
    for name in ("scene", "degradation", "plan"):
        losses = [line[f"constraint_loss_{name}"] for line in lines]
        assert np.mean(losses[-3:]) < 0.97 * np.mean(losses[:3])
        assert lines[-1][f"multiplier_{name}"] == pytest.approx(1e-2 * STEPS, rel=0.1)
    broken = _config(bench, train__learning_rate=1e36, train__clip_norm=1e36)
    with pytest.raises(FloatingPointError, match="at step"):
        train(Run.read(broken), tmp_path / "bad", bench)
    assert all(np.isfinite(line["loss"]) for line in _lines(tmp_path / "bad"))


def test_truncated_checkpoint_is_named(bench, uninterrupted, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(uninterrupted, workdir)
    for path in (workdir / "checkpoints" / str(STEPS) / "state").rglob("*"):
        if path.is_file() and path.stat().st_size > 10_000:
            path.write_bytes(path.read_bytes()[:1000])
    message = _error(_run(bench, workdir))
    assert f"restoring step {STEPS}" in message
