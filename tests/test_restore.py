"""Restoring: sizes, tiles, folders and bad input, with the model that ships."""

import subprocess
import sys

import numpy as np
import pytest
from skimage import data
from skimage.metrics import peak_signal_noise_ratio

from cotir_jax import cli, restore
from cotir_jax.checkpoints import model_folder
from cotir_jax.pictures import load_picture, save_picture


@pytest.fixture(scope="module")
def restorer():
    return restore.Restorer.load("nano")


@pytest.fixture(scope="module")
def dark():
    """A photo that training never saw, and the same photo dark."""
    clean = np.asarray(data.chelsea())[60:260, 100:330]
    dark = np.round(255 * 0.8 * (clean / 255.0) ** 2.2).astype(np.uint8)
    return clean, dark


def test_the_shipped_model_brightens_a_dark_photo(restorer, dark):
    clean, degraded = dark
    restored = restorer(degraded, "brighten this dark photo")
    assert restored.shape == clean.shape and restored.dtype == np.uint8
    gain = peak_signal_noise_ratio(clean, restored) - peak_signal_noise_ratio(clean, degraded)
    assert gain > 3.0


@pytest.mark.parametrize("shape", [(1, 1), (7, 200), (128, 128), (129, 131)])
def test_any_size_keeps_its_size(restorer, shape):
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    assert restorer(picture).shape == picture.shape


def test_a_result_does_not_depend_on_the_other_tiles(restorer, dark):
    degraded = dark[1][:128, :128]
    alone = restorer(degraded)
    again = restorer(np.concatenate([degraded] * 2, axis=1), tile=128)
    np.testing.assert_array_equal(alone[:, :20], restorer(degraded)[:, :20])
    # Near the left edge only the first tile counts.
    assert np.abs(alone[:, :16].astype(int) - again[:, :16]).max() <= 8


def test_blending_gives_back_what_was_cut():
    picture = np.random.default_rng(0).integers(0, 256, (300, 411, 3), np.uint8)
    tiles, corners = restore._cut(picture, (128, 128))
    assert all(tile.shape == (128, 128, 3) for tile in tiles)
    np.testing.assert_array_equal(restore._blend(tiles, corners, picture.shape), picture)


def test_folder_and_single_file(restorer, dark, tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    save_picture(dark[1][:60, :70], source / "a.png")
    (source / "broken.png").write_bytes((source / "a.png").read_bytes()[:500])
    lines = []
    with pytest.raises(ValueError, match=r"1 of 2 pictures.*broken"):
        lines.extend(restore.restore_path(restorer, source, tmp_path / "out"))
    assert load_picture(tmp_path / "out" / "a.png").shape == (60, 70, 3)
    list(restore.restore_path(restorer, source / "a.png", tmp_path / "b.jpg", compare=True))
    assert load_picture(tmp_path / "b.jpg").shape[1] > 140
    with pytest.raises(ValueError, match="broken"):
        list(restore.restore_path(restorer, source / "broken.png", tmp_path / "c.png"))
    assert not (tmp_path / "c.png").exists()


def test_wrong_input_is_named(restorer, tmp_path):
    with pytest.raises(ValueError, match="uint8"):
        restorer(np.zeros((8, 8, 3), np.float32))
    with pytest.raises(ValueError, match="tile=9"):
        restorer(np.zeros((8, 8, 3), np.uint8), tile=9)
    with pytest.raises(ValueError, match="not a model folder"):
        restore.Restorer.load(tmp_path / "nothing")


def test_weights_of_another_size_and_damaged_weights(tmp_path):
    import shutil

    from cotir_jax import partitioning
    from cotir_jax.models import presets

    mesh = partitioning.make_mesh({"data": -1})
    packaged = model_folder.PACKAGED / "nano"
    other = presets.preset("nano", "hidden_size=96, num_heads=3")
    with pytest.raises(ValueError, match="other sizes"):
        model_folder.load_model(packaged, mesh, (), other)
    copy = tmp_path / "copy"
    shutil.copytree(packaged, copy)
    for path in copy.rglob("*"):
        if path.is_file() and path.stat().st_size > 100_000:
            path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match="cannot be read") as error:
        model_folder.load_model(copy, mesh, ())
    assert "\n" not in str(error.value)


def test_commands_report_errors_in_one_line(tmp_path, capsys):
    for command, expected in [
        (["restore", str(tmp_path / "none.png")], "none.png"),
        (["restore", str(tmp_path), "--prompt", str(tmp_path / "p.txt")], "p.txt"),
        (["restore", str(tmp_path), "--model-dir", "huge"], "huge"),
        (["verify", str(tmp_path)], "nothing to verify"),
        (["bench", "build", "--photos", str(tmp_path), "--out", str(tmp_path / "o")], "picture"),
        (["bench", "check", str(tmp_path)], str(tmp_path)),
        (["evaluate", "--hq", str(tmp_path), "--results", str(tmp_path)], str(tmp_path)),
    ]:
        with pytest.raises(SystemExit) as exit_status:
            cli.main(command)
        error = capsys.readouterr().err
        assert exit_status.value.code == 1, command
        lines = [line for line in error.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and expected in lines[0] and "Traceback" not in error


def test_installed_command_restores(dark, tmp_path):
    save_picture(dark[1], tmp_path / "dark.png")
    command = [sys.executable, "-m", "cotir_jax.cli", "restore", str(tmp_path / "dark.png")]
    run = subprocess.run(
        [*command, "--out", str(tmp_path / "out.png")], capture_output=True, text=True, timeout=200
    )
    assert run.returncode == 0, run.stderr
    assert load_picture(tmp_path / "out.png").shape == dark[0].shape
