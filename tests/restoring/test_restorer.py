"""Restoring: sizes, types, tiles and bad input, with the model that ships."""

import io
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from skimage import data
from skimage.metrics import peak_signal_noise_ratio
from support.xla_flags import xla_flags

from cotir_jax import cli
from cotir_jax.checkpoints import model_folder
from cotir_jax.images import photo
from cotir_jax.images.pictures import load_picture, save_picture
from cotir_jax.models import pipeline
from cotir_jax.restoring.restorer import Restorer


@pytest.fixture(scope="module")
def restorer(one_device):
    return Restorer.load("nano", one_device)


@pytest.fixture(scope="module")
def dark():
    """A photo that training never saw, and the same photo dark."""
    clean = np.asarray(data.chelsea())[60:260, 100:330]
    dark = np.round(255 * 0.8 * (clean / 255.0) ** 2.2).astype(np.uint8)
    return clean, dark


def test_the_shipped_model_brightens_a_dark_photo(restorer, dark):
    clean, degraded = dark
    result = restorer(degraded, "brighten this dark photo").image
    assert result.shape == clean.shape and result.dtype == np.uint8
    gain = peak_signal_noise_ratio(clean, result) - peak_signal_noise_ratio(clean, degraded)
    assert gain > 3.0


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(1, 1), (7, 200), (128, 128), (129, 131)])
def test_any_size_keeps_its_size_and_type(restorer, shape, dtype):
    high = np.iinfo(dtype).max
    picture = np.random.default_rng(0).integers(0, high + 1, (*shape, 3), dtype)
    result = restorer(picture).image
    assert result.shape == picture.shape and result.dtype == dtype


def test_sixteen_bits_restore_as_eight_do(restorer, dark):
    degraded = dark[1][:100, :140]
    fine = restorer(degraded.astype(np.uint16) * 257).image
    assert np.abs(fine / 257 - restorer(degraded).image).max() <= 0.5 + 1e-3
    assert len(np.unique(fine)) > 256  # not eight bits stretched


def test_a_tile_bounds_memory_and_does_not_show(restorer):
    """Three crops: one by one, together, and in a call that holds four."""
    degraded, calls, found = data.astronaut()[:200] // 3, [], []
    for tile in (None, 0, 320):
        progress = lambda done, total: calls.append(total)  # noqa: E731
        found.append(restorer(degraded, tile=tile, progress=progress).image.astype(int))
    assert calls == [3, 3, 3, 1, 1]
    for other in found[1:]:
        assert np.abs(found[0] - other).max() <= 1


def test_crops_that_overlap_start_from_the_same_noise(restorer, monkeypatch):
    started = []
    monkeypatch.setattr(
        pipeline.sampling, "euler", lambda velocity, noise, schedule: started.append(noise) or noise
    )
    patch = restorer.config.patch
    corners = np.array([[0, 0], [0, 3 * patch], [5 * patch, 0]], np.int32)
    pictures, texts = np.zeros((3, 64, 64, 3), np.float32), restorer.embed("", 3)
    model, key = restorer.merge(restorer.weights), jax.random.key(0)
    pipeline.restore_range(*model, pictures, texts, key, 1, None, corners)
    first, right, down = started[0]
    np.testing.assert_array_equal(first[:, 3:], right[:, :-3])
    np.testing.assert_array_equal(first[5:], down[:-5])
    assert not np.allclose(first, right)


def test_what_a_call_takes_and_gives(restorer, dark, tmp_path):
    degraded = dark[1][:64, :80]
    save_picture(degraded, tmp_path / "dark.png")
    expected = restorer(degraded, seed=3).image
    for picture in (
        tmp_path / "dark.png",
        str(tmp_path / "dark.png"),
        (tmp_path / "dark.png").read_bytes(),
        Image.fromarray(degraded),
        degraded,
    ):
        result = restorer(picture, seed=3)
        np.testing.assert_array_equal(result.image, expected)
    result.save(tmp_path / "out.webp", quality=80)
    assert load_picture(tmp_path / "out.webp").shape == degraded.shape
    assert Image.open(io.BytesIO(result._repr_png_())).size == (80, 64)
    together = restorer.batch([degraded, tmp_path / "dark.png"], seed=3)
    for one in together:
        np.testing.assert_array_equal(one.image, expected)
    grey = restorer(degraded[..., 0])
    assert grey.photo.grey and grey.image.shape == degraded.shape
    alpha = np.concatenate([degraded, degraded[..., :1]], axis=-1)
    np.testing.assert_array_equal(restorer(alpha).photo.alpha, degraded[..., 0])


@pytest.mark.slow
def test_the_program_composes_with_other_jax_code(restorer, dark):
    """Its gradient to the picture agrees with a finite difference."""
    picture = photo.unit_range(dark[1][None, :64, :64])
    texts, key = restorer.embed("", 1), jax.random.key(0)

    @jax.jit
    def brightness(offset):
        shifted = jnp.asarray(picture) + offset
        out = restorer.jitted(restorer.weights, shifted, texts, None, None, key, num_steps=1)
        return out.mean()

    slope = jax.grad(brightness)(0.0)
    step = 1e-2
    difference = (brightness(step) - brightness(-step)) / (2 * step)
    np.testing.assert_allclose(slope, difference, rtol=0.05)


def test_wrong_input_is_named(restorer, tmp_path):
    with pytest.raises(ValueError, match="uint8"):
        restorer(np.zeros((8, 8, 3), np.float32))
    with pytest.raises(ValueError, match="no such file"):
        restorer("nothing.png")
    with pytest.raises(ValueError, match="tile=9"):
        restorer(np.zeros((8, 8, 3), np.uint8), tile=9)
    with pytest.raises(ValueError, match="not a model folder"):
        Restorer.load(tmp_path / "nothing")


def test_a_folder_that_happens_to_be_called_nano_is_in_nobody_s_way(tmp_path, monkeypatch):
    (tmp_path / "nano").mkdir()  # as the first command's workdir is
    monkeypatch.chdir(tmp_path)
    assert Restorer.load("nano").folder == model_folder.PACKAGED / "nano"
    with pytest.raises(ValueError, match="not a model folder"):
        Restorer.load(tmp_path / "nano")


def test_weights_of_another_size_and_damaged_weights(tmp_path):
    import shutil

    from cotir_jax.models import presets
    from cotir_jax.parallel.sharding import make_mesh

    mesh = make_mesh({"data": -1})
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
    environment = os.environ | {"XLA_FLAGS": xla_flags(devices=1)}
    run = subprocess.run(
        [*command, "--out", str(tmp_path / "out.png")],
        capture_output=True, text=True, timeout=200, env=environment,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert load_picture(tmp_path / "out.png").shape == dark[0].shape
