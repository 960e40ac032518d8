"""Both notebooks run from start to end at small size, in a temporary folder."""

import os
import re
import sys
from pathlib import Path

import pytest
from support.xla_flags import xla_flags

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
nbclient = pytest.importorskip("nbclient", reason="nbclient, which runs notebooks, is absent")
for needed in ("ipykernel", "matplotlib"):
    pytest.importorskip(needed, reason=f"{needed}, which the notebooks need, is not installed")

ROOT = Path(__file__).parent.parent
NAMES = ("restore", "train_nano")


class _Kernel(nbclient.NotebookClient):
    """With this interpreter, whatever kernels are installed for the user."""

    def create_kernel_manager(self):
        manager = super().create_kernel_manager()
        manager.kernel_spec.argv = [
            sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"
        ]  # fmt: skip
        return manager


def execute(name, folder, monkeypatch, **settings):
    for key, value in settings.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *sys.path]))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("XLA_FLAGS", xla_flags(devices=1, level=1))
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    _Kernel(notebook, timeout=500, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook


def printed(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output.text for output in outputs if output.get("name") == "stderr"]
    assert not [output.evalue for output in outputs if output.output_type == "error"]
    return "".join(output.text for output in outputs if output.output_type == "stream")


@pytest.mark.slow
def test_restore(tmp_path, monkeypatch):
    text = printed(execute("restore", tmp_path, monkeypatch, COTIR_NOTEBOOK_SIDE="128"))
    before, after = map(float, re.search(r"PSNR ([\d.]+) dB before, ([\d.]+) dB", text).groups())
    assert after > before + 3
    assert "low-light" in text
    assert 0 < float(re.search(r"slope ([\d.-]+)", text)[1]) < 10


@pytest.mark.slow
def test_train_nano(tmp_path, monkeypatch):
    notebook = execute("train_nano", tmp_path, monkeypatch, COTIR_NOTEBOOK_STEPS="6")
    text = printed(notebook)
    assert "velocity_loss" in text and "multiplier_scene" in text
    first, last = map(float, re.search(r"loss ([\d.]+) at first, ([\d.]+) at last", text).groups())
    assert 0 < first < 10 and 0 < last < 10
    assert text.splitlines()[0] in ("low-light", "noise", "haze")


@pytest.mark.parametrize("name", NAMES)
def test_committed_outputs(name):
    """Pictures are there, small; no errors, warnings or paths of the machine that ran it."""
    path = ROOT / "notebooks" / f"{name}.ipynb"
    assert path.stat().st_size < 500_000
    notebook = nbformat.read(path, as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    kinds = [kind for output in outputs for kind in output.get("data", {})]
    assert "image/jpeg" in kinds and "image/png" not in kinds
    assert not re.search(
        r"Traceback|[Ww]arning|/home/|/tmp/|/root/|/usr/|/work/", printed(notebook)
    )
