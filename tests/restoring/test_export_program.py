"""The exported restore program: run where neither this package nor flax can be imported."""

import subprocess
import sys

import jax
import jax.export
import numpy as np
import pytest
from skimage import data
from support.restorers import whole_picture_restorer

from cotir_jax import cli
from cotir_jax.restoring import export_program
from cotir_jax.restoring.restorer import Restorer

# jax, numpy and nothing of ours: an import of either ends the process.
_ELSEWHERE = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("cotir_jax", "flax"):
            raise SystemExit(f"imports {name}")

sys.meta_path.insert(0, Blocker())
import jax, jax.export
import numpy as np

program, picture, out = sys.argv[1:]
restore = jax.export.deserialize(bytearray(open(program, "rb").read()))
np.save(out, restore.call(np.load(picture), 3))
"""


@pytest.fixture(scope="module")
def restorer(one_device):
    return Restorer.load("nano", one_device)


def run_elsewhere(program, picture, folder):
    np.save(folder / "picture.npy", picture)
    arguments = [str(program), str(folder / "picture.npy"), str(folder / "out.npy")]
    run = subprocess.run(
        [sys.executable, "-I", "-c", _ELSEWHERE, *arguments], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return np.load(folder / "out.npy")


@pytest.mark.slow
def test_a_program_runs_without_this_package(restorer, tmp_path):
    """It cuts and blends with jax (`models.tiles`); numpy's `images.tiling` is the oracle.

    Five crops: two calls of three, the last one filled up.
    """
    picture = (np.concatenate([data.chelsea()[40:140]] * 2, axis=1) * 0.3).astype(np.uint8)
    prompt = "brighten this dark photo"
    written = export_program.export_program(
        restorer, tmp_path / "nano.jax", picture.shape[:2], prompt, num_steps=2, platforms=("cpu",)
    )
    assert [path.name for path in tmp_path.iterdir()] == ["nano.jax"]
    assert written == (tmp_path / "nano.jax").stat().st_size
    elsewhere = run_elsewhere(tmp_path / "nano.jax", picture, tmp_path)
    here = restorer(picture, prompt, num_steps=2, seed=3).image
    assert elsewhere.dtype == np.uint8 and elsewhere.shape == picture.shape
    assert np.abs(elsewhere.astype(int) - here).max() <= 1
    assert np.abs(here.astype(int) - picture).mean() > 10


def test_a_model_that_takes_pictures_whole(tmp_path):
    small = whole_picture_restorer(jax.devices()[:1])
    picture = data.chelsea()[:40, :56]
    export_program.export_program(small, tmp_path / "a.jax", (40, 56), platforms=("cpu",))
    exported = jax.export.deserialize(bytearray((tmp_path / "a.jax").read_bytes()))
    found = np.asarray(exported.call(picture, 3)).astype(int)
    assert np.abs(found - small(picture, seed=3).image).max() <= 1
    assert np.abs(found - small(picture, seed=4).image).max() > 1


@pytest.mark.slow
def test_the_command_and_its_errors(restorer, tmp_path, capsys):
    command = ["export-program", f"--out={tmp_path / 'a.jax'}", "--size=48x64"]
    cli.main([*command, "--platforms=cpu"])
    picture = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    elsewhere = run_elsewhere(tmp_path / "a.jax", picture, tmp_path)
    assert np.abs(elsewhere.astype(int) - restorer(picture, seed=3).image).max() <= 1
    for wrong, expected in (("--platforms=gameboy", "gameboy"), ("--size=48", "48")):
        with pytest.raises(SystemExit):
            cli.main([*command, wrong])
        assert expected in capsys.readouterr().err
    with pytest.raises(ValueError, match="above 0"):
        export_program.export_program(restorer, tmp_path / "b.jax", (0, 5))


def test_one_file_holds_a_program_for_all_platforms(restorer, tmp_path):
    export_program.export_program(restorer, tmp_path / "all.jax", (32, 32))
    exported = jax.export.deserialize(bytearray((tmp_path / "all.jax").read_bytes()))
    assert set(exported.platforms) == {"cpu", "cuda", "tpu"}
