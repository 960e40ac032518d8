"""Training over several processes: two on loopback with four simulated devices each."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from support.small_encoder import PYTHONPATH
from support.xla_flags import xla_flags

from cotir_jax.bench.build import build_bench
from cotir_jax.parallel.processes import find_place, own_rows, place_rows
from cotir_jax.parallel.sharding import batch_sharding, make_mesh
from cotir_jax.training import hooks, throughput

ROOT = Path(__file__).parents[2]
STEPS = 30


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("data") / "bench"
    build_bench(
        out,
        samples_per_degradation=4,
        test_per_degradation=1,
        size=32,
        degradations="quick",
        composites=False,
    )
    return out


def _start(bench: Path, workdir: Path, devices: int, *flags: str) -> subprocess.Popen:
    fields = {
        "init": "scratch",
        "data.dir": bench,
        "data.validation": 1,
        "model.overrides": "hidden_size=64,num_heads=2,text_tokens=16,tile=32,patch=8,"
        "in_channels=192,detail_channels=0",
        "train.steps": STEPS,
        "train.stages": f"(({STEPS},32,8),)",
        "train.learning_rate": 1e-3,
        "checkpoint.every": 10,
        "evaluate.enabled": False,
        "log.every": 1,
    }
    environment = os.environ | {
        "PYTHONPATH": PYTHONPATH,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": xla_flags(devices),
    }
    config = f"--config={ROOT / 'configs' / 'nano.py'}"
    command = [sys.executable, "-m", "support.small_encoder", config]
    command += [f"--workdir={workdir}", *flags]
    command += [f"--config.{name}={value}" for name, value in fields.items()]
    with open(_log_file(workdir, flags), "w") as log:
        return subprocess.Popen(
            command, env=environment, cwd=workdir.parent, text=True,
            stdout=subprocess.PIPE, stderr=log,
        )  # fmt: skip


def _log_file(workdir: Path, flags: tuple[str, ...]) -> Path:
    return Path(f"{workdir}{''.join(flags[2:])}.log")


def _start_two(bench: Path, workdir: Path) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    place = (f"--coordinator=localhost:{port}", "--num_processes=2")
    return [_start(bench, workdir, 4, *place, f"--process_id={i}") for i in range(2)]


def _wait_for_step(workdir: Path, step: int, processes: list[subprocess.Popen]) -> None:
    deadline = time.monotonic() + 200
    while max(_lines(workdir), default=0) < step:
        assert all(process.poll() is None for process in processes), "ended early"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _lines(workdir: Path) -> dict[int, dict[str, float]]:
    """By step; what came last counts."""
    path = workdir / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    lines = [json.loads(line) for line in text.splitlines() if line.endswith("}")]
    return {line["step"]: line for line in lines}


def _finish(processes: list[subprocess.Popen], status: int = 0) -> list[str]:
    try:
        outputs = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [status] * len(processes)
    return outputs


def _assert_same(ours: dict[int, dict], reference: dict[int, dict]) -> None:
    assert sorted(ours) == sorted(reference) == list(range(1, STEPS + 1))
    for step, line in reference.items():
        for name, value in line.items():
            if name not in throughput.NAMES:
                assert ours[step][name] == pytest.approx(value, rel=1e-5, abs=1e-6), (step, name)


@pytest.mark.slow
def test_two_processes_stop_die_and_continue_as_one(bench, tmp_path):
    """SIGTERM to one of two, SIGKILL to one of two, the rest in one process of four devices."""
    whole, workdir = tmp_path / "whole", tmp_path / "run"
    pair = _start_two(bench, workdir)
    _wait_for_step(workdir, 3, pair)
    pair[1].send_signal(signal.SIGTERM)
    first, second = _finish(pair)
    reached = max(_lines(workdir))
    assert f"saved at step {reached}" in json.loads(first.splitlines()[-1])["interrupted"]
    assert "{" not in second and (workdir / "checkpoints" / str(reached) / "state").is_dir()

    pair = _start_two(bench, workdir)
    _wait_for_step(workdir, reached + 7, pair)
    assert reached < STEPS - 10, "too quick to be killed in the middle"
    pair[1].kill()
    died = time.monotonic()
    reference = _start(bench, whole, 8)  # meanwhile
    assert pair[0].wait(timeout=60) != 0
    print(f"stopped {time.monotonic() - died:.0f} s after the other")
    said = (tmp_path / "run--process_id=0.log").read_text()
    assert "error: another process stopped" in said or "another task died" in said
    pair[1].wait()
    last = max(_lines(workdir))
    assert reached < last < STEPS

    (done,) = _finish([_start(bench, workdir, 4)])
    assert json.loads(done.splitlines()[-1])["step"] == STEPS
    _finish([reference])
    _assert_same(_lines(workdir), _lines(whole))
    samples = (workdir / "checkpoints" / str(STEPS) / "samples" / "metadata").read_text()
    assert json.loads(samples) == {"seen": STEPS * 8, "corrupt": 0}


def test_place_comes_from_flags_or_environment():
    both = {"COTIR_COORDINATOR": "a:1", "COTIR_NUM_PROCESSES": "4", "COTIR_PROCESS_ID": "3"}
    assert find_place(None, None, None, {"COTIR_COORDINATOR": ""}) is None
    assert find_place(None, None, None, both) == ("a:1", 4, 3)
    assert find_place("[::1]:22", "2", "0", both) == ("[::1]:22", 2, 0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("a:1", None, "0"), "--num_processes missing: give all of"),
        (("a:1", "2", "2"), "process 2 of 2"),
        (("a:1", "2", "-1"), "--process_id=-1"),
        (("a", "2", "1"), "--coordinator=a: expected HOST:PORT"),
        (("a:b", "2", "1"), "HOST:PORT"),
    ],
)
def test_impossible_places(given, message):
    with pytest.raises(ValueError, match=message):
        find_place(*given, {})


@pytest.mark.parametrize("sizes", [{"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 8}, {"tensor": 8}])
def test_rows_of_part_of_the_mesh(sizes):
    """Rows of a batch as JAX itself places the whole array."""
    sharding = batch_sharding(make_mesh(sizes))
    batch = {"a": np.arange(48).reshape(16, 3), "b": np.arange(16)}
    rows = own_rows(16, sharding)
    assert rows == list(range(16))
    placed = place_rows(batch, 16, sharding)
    for name, array in batch.items():
        expected = jax.device_put(array, sharding)
        for ours, theirs in zip(
            placed[name].addressable_shards, expected.addressable_shards, strict=True
        ):
            assert ours.device == theirs.device
            np.testing.assert_array_equal(ours.data, theirs.data)


def test_throughput_counts_steps_and_waiting_alone():
    now = 0.0
    device = type("Device", (), {"device_kind": "TPU v4", "process_index": 0})
    device.memory_stats = lambda self: {"bytes_in_use": 3e9, "peak_bytes_in_use": 4e9}
    speed = throughput.Throughput([device()] * 2, clock=lambda: now)
    for _ in range(4):
        with speed.waiting():
            now += 1.0  # nothing is under way
        speed.dispatched(np.zeros(1))
        now += 0.0
        speed.ended()
    with speed.paused():
        now += 100.0
    with speed.waiting():
        now += 3.0
    speed.dispatched(np.zeros(1))
    speed.ended()
    report = speed.report(batch_size=6, step_flops=275e12)
    assert report["step_seconds"] == pytest.approx(7 / 5)
    assert report["samples_per_second"] == pytest.approx(30 / 7)
    assert report["mfu"] == pytest.approx(0.5 * 5 / 7)
    assert report["input_wait"] == pytest.approx(1.0)
    assert (report["memory_gb"], report["peak_memory_gb"]) == (3, 4)
    speed.close()


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("TPU v4 lite", None),
        ("cpu", None),
    ],
)
def test_peaks(kind, peak):
    assert throughput.peak_flops(kind) == peak


def test_profile_is_written(tmp_path):
    profile = hooks.Profile(tmp_path / "profile", at=1, steps=2)
    for step in range(1, 5):
        profile(hooks.Finished(step, None, None, {"loss": jax.numpy.ones(3) + step}))
    profile.close()
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
