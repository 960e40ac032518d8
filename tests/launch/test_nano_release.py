"""The one command that makes nano's release, with a stub for Python that says what was called."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "launch" / "nano_release.sh"
# Training and floors leave what they make; COTIR_STOPPED: training ends before its model is there.
STUB = """#!/bin/bash
echo "$@" >> "$CALLS"
case "$*" in
  *cotir_jax.main*) [ -n "$COTIR_STOPPED" ] || { mkdir -p "$OUT/run/model"; touch "$OUT/run/model/model.json"; } ;;
  *nano_floors.py*) mkdir -p "$OUT/nano"; touch "$OUT/nano/model.json" ;;
esac
"""  # noqa: E501


@pytest.fixture
def release(tmp_path):
    (tmp_path / "python").write_text(STUB)
    (tmp_path / "python").chmod(0o755)
    photos, out, calls = tmp_path / "my photos", tmp_path / "out", tmp_path / "calls"
    photos.mkdir()

    def run(stopped="", flags=()):
        calls.write_text("")
        environment = os.environ | {
            "PYTHON": str(tmp_path / "python"), "CALLS": str(calls), "OUT": str(out),
            "COTIR_STOPPED": stopped,
        }  # fmt: skip
        command = ["bash", str(SCRIPT), "my photos", "my photos", "out", *flags]
        subprocess.run(command, cwd=tmp_path, env=environment, check=True)
        return calls.read_text().replace(f"{tmp_path}/", "").splitlines()

    return run


def test_training_floors_and_calibration_in_turn(release):
    training, floors, build, calibrate = release(flags=["--config.data.workers=15"])
    assert training == (
        "-m cotir_jax.main --config=nano_release --workdir=out/run "
        "--config.bench.photos=my photos --config.bench.test_photos=my photos "
        "--config.data.workers=15"
    )
    assert floors == (
        "tests/benchmarks/nano_floors.py out/run/model out/nano --photos=my photos "
        "--samples=8 --prompts=40"
    )
    assert build == (
        "-m cotir_jax.cli bench build --photos=my photos --out=out/validation "
        "--degradations=all --samples=1 --test-samples=6 --size=256 --seed=5"
    )
    assert calibrate == (
        "-m cotir_jax.cli calibrate --model-dir=out/nano --jsonl=out/validation/test/test.jsonl"
    )
    assert len(release()) == 3  # the floors are there


def test_training_that_was_stopped_is_continued_first(release):
    assert len(release(stopped="yes")) == 1
    assert len(release()) == 4


def test_missing_folders_are_one_line(tmp_path):
    done = subprocess.run(["bash", SCRIPT, tmp_path], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "PHOTOS" in done.stderr
