"""Folders: every picture once, errors reported, few programs, all devices, nothing half-written."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from skimage import data
from support.restorers import whole_picture_restorer
from support.xla_flags import xla_flags

from cotir_jax.images import tiling
from cotir_jax.restoring.folder import REPORT, list_folder, restore_path
from cotir_jax.restoring.restorer import Restorer


@pytest.fixture(scope="module")
def nano(one_device):
    return Restorer.load("nano", one_device)


def photos(folder, sizes, seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    photo = Image.fromarray(data.astronaut())
    for index, (height, width) in enumerate(sizes):
        photo.resize((width, height)).save(folder / f"{index:03}.png")


def test_folders_within_folders_names_and_report(nano, tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    photos(source, [(40, 50), (30, 30)])
    photos(source / "trip" / "day", [(20, 60)])
    Image.open(source / "000.png").save(source / "000.jpg")
    (source / "trip" / "broken.png").write_bytes((source / "000.png").read_bytes()[:200])
    (source / ".hidden.png").write_bytes(b"")
    lines = []
    with pytest.raises(ValueError, match=r"1 of 5 pictures.*broken\.png.*report\.json"):
        lines.extend(restore_path(nano, source, out))
    names = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    pictures = {"000.jpg.png", "000.png.png", "001.png", "trip/day/000.png"}
    assert names == pictures | {REPORT}
    report = json.loads((out / REPORT).read_text())
    assert len(report["restored"]) == 4 and "broken.png" in next(iter(report["failed"]))
    assert Image.open(out / "trip" / "day" / "000.png").size == (60, 20)

    before = {name: (out / name).stat().st_mtime_ns for name in pictures}
    (out / "001.png").unlink()
    with pytest.raises(ValueError, match="1 of 2"):
        lines = list(restore_path(nano, source, out, skip_existing=True))
    after = {name: (out / name).stat().st_mtime_ns for name in pictures}
    assert {name for name in pictures if before[name] != after[name]} == {"001.png"}


def test_formats_and_single_pictures(nano, tmp_path):
    photos(tmp_path, [(24, 24)])
    for suffix in (".jpg", ".webp", ".tif", ".avif"):
        list(restore_path(nano, tmp_path / "000.png", tmp_path / "out", suffix=suffix))
        assert Image.open(tmp_path / "out" / f"000{suffix}").size == (24, 24)
    list(restore_path(nano, tmp_path / "000.png", tmp_path / "b.jpg", compare=True))
    assert Image.open(tmp_path / "b.jpg").size == (52, 24)
    with pytest.raises(ValueError, match=r"\.heic"):
        list(restore_path(nano, tmp_path / "000.png", tmp_path / "out", suffix=".heic"))
    with pytest.raises(ValueError, match="no such"):
        list(restore_path(nano, tmp_path / "none", tmp_path / "out"))
    (tmp_path / "broken.png").write_bytes(b"\x89PNG nothing")
    with pytest.raises(ValueError, match="broken"):
        list(restore_path(nano, tmp_path / "broken.png", tmp_path / "c.png"))
    assert not (tmp_path / "c.png").exists()
    with pytest.raises(ValueError, match="is the folder of the degraded"):
        list(restore_path(nano, tmp_path, tmp_path))


@pytest.mark.slow
def test_two_hundred_pictures_of_sixty_sizes_compile_six_programs_at_most(tmp_path):
    rng = np.random.default_rng(0)
    sizes = [tuple(size) for size in rng.integers(16, 200, (60, 2)).tolist()]
    assert len(set(sizes)) == 60
    photos(tmp_path / "in", [sizes[index % 60] for index in range(200)])
    restorer = whole_picture_restorer(jax.devices()[:1])
    lines = list(restore_path(restorer, tmp_path / "in", tmp_path / "out"))
    assert len(lines) == 200
    for path in list_folder(tmp_path / "in"):
        with Image.open(path) as degraded, Image.open(tmp_path / "out" / path.name) as restored:
            assert degraded.size == restored.size
    assert 1 < restorer._program._cache_size() <= tiling.MAX_PROGRAMS == 6


_ON_DEVICES = """
import sys, pathlib
sys.path.insert(0, {tests!r})
import jax
from support.restorers import whole_picture_restorer
from cotir_jax.restoring.restorer import Restorer
from cotir_jax.restoring.folder import restore_path
assert jax.device_count() == {devices}
folder = pathlib.Path({folder!r})
restorers = {{"whole": whole_picture_restorer(), "nano": Restorer.load("nano")}}
for name, restorer in restorers.items():
    list(restore_path(restorer, folder / name, folder / "{devices}" / name))
"""


@pytest.mark.slow
def test_eight_devices_give_the_result_of_one(tmp_path):
    sizes = {"whole": [(64, 64)] * 9 + [(130, 150), (48, 64)], "nano": [(260, 40), (48, 64)]}
    for kind in sizes:
        photos(tmp_path / kind, sizes[kind])
    for devices in (1, 8):
        code = _ON_DEVICES.format(
            tests=str(Path(__file__).parents[1]), devices=devices, folder=str(tmp_path)
        )
        environment = os.environ | {"XLA_FLAGS": xla_flags(devices), "JAX_PLATFORMS": "cpu"}
        run = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True
        )
        assert run.returncode == 0, run.stderr[-3000:]
    for kind in sizes:
        for index in range(len(sizes[kind])):
            one, eight = (
                np.asarray(Image.open(tmp_path / str(n) / kind / f"{index:03}.png")).astype(int)
                for n in (1, 8)
            )
            assert np.abs(one - eight).max() <= 1, (kind, index)
            degraded = np.asarray(Image.open(tmp_path / kind / f"{index:03}.png")).astype(int)
            assert np.abs(one - degraded).max() > 1, (kind, index)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_run_leaves_whole_pictures_alone(tmp_path, number):
    photos(tmp_path / "in", [(100, 140)] * 60)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "cotir_jax.cli", "restore", str(tmp_path / "in")]
    run = subprocess.Popen(
        [*command, "--out", str(out)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env=os.environ | {"XLA_FLAGS": xla_flags(devices=1)},
    )  # fmt: skip
    while len(list(out.glob("[0-9]*.png"))) < 3:
        assert run.poll() is None
        time.sleep(0.02)
    run.send_signal(number)
    assert run.wait(60) != 0
    left = sorted(out.glob("[0-9]*.png"))
    assert 3 <= len(left) < 60
    for path in left:
        assert np.asarray(Image.open(path)).shape == (100, 140, 3)
