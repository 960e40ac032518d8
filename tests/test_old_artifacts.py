"""Files of commit ab34991 are read: benchmarks, a workdir, model folders (`tests/old/make.py`)."""

import hashlib
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from old import make
from PIL import Image
from support.xla_flags import xla_flags

from cotir_jax.data.shard_index import ShardIndex
from cotir_jax.restoring.restorer import Restorer

ROOT = Path(__file__).parents[1]
EXPECTED = json.loads((make.HERE / "expected.json").read_text())


@pytest.fixture
def unpack(tmp_path):
    """Unpacks an archive of `tests/old` into the test's folder."""

    def unpack(name: str) -> Path:
        with tarfile.open(make.HERE / f"{name}.tar.xz") as archive:
            archive.extractall(tmp_path, filter="data")
        return tmp_path / name

    return unpack


@pytest.mark.parametrize("name", ["bench", "records"])
def test_a_benchmark_gives_the_same_samples_in_the_same_order(unpack, name):
    index = ShardIndex.build(unpack(name))
    names = np.repeat(index.degradations, index.counts)
    digests = [
        [str(name), *(hashlib.sha256(field).hexdigest() for field in index.read(number))]
        for number, name in enumerate(names)
    ]
    assert digests == EXPECTED["samples"]


def test_a_workdir_continues_to_the_same_losses(unpack):
    bench, workdir = unpack("bench"), unpack("run")
    config = f"--config={ROOT / 'configs' / 'nano.py'}"
    # What nano.py said then: a run continues with its own config.
    then = {
        "bench.samples_per_degradation": 40, "bench.test_per_degradation": 3, "bench.size": 176,
        "data.validation": 1, "train.ema_decay": 0.99,
    }  # fmt: skip
    flags = [*make.TRAINING_FLAGS, *(f"--config.{name}={value}" for name, value in then.items())]
    process = subprocess.run(
        [sys.executable, "-m", "cotir_jax.main", config, "--workdir=run", *flags],
        env={**os.environ, "XLA_FLAGS": xla_flags(devices=1), "PYTHONPATH": str(ROOT)},
        cwd=bench.parent,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    losses = {str(line["step"]): line for line in lines if "loss" in line}
    # Steps 1 to 4 are the old file's, of which 4 comes again: the checkpoint is of step 3.
    assert losses.keys() == EXPECTED["losses"].keys()
    for step, expected in EXPECTED["losses"].items():
        for name, value in expected.items():
            assert losses[step][name] == pytest.approx(value, rel=1e-4, abs=1e-6), (step, name)


@pytest.mark.parametrize(
    "name",
    [
        "nano",
        "packaged",
        pytest.param("klein-4b", marks=pytest.mark.slow),
        pytest.param("kontext-12b", marks=pytest.mark.slow),
    ],
)
def test_a_model_folder_restores_the_same_picture(unpack, one_device, name):
    folder = "nano" if name == "packaged" else unpack(name)
    restored = Restorer.load(folder, one_device)(make.picture(), make.PROMPT, seed=3).image
    with Image.open(make.HERE / f"{name}.png") as image:
        expected = np.asarray(image).astype(int)
    # Sums in another order may move a value across a rounding border.
    assert np.abs(restored - expected).max() <= 1
    assert (restored != expected).mean() < 0.01
