"""The release's golden numbers."""

import shutil

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from cotir_jax.commands import golden_checks
from cotir_jax.models import presets
from cotir_jax.models.transformer import Transformer


def test_golden_numbers(golden):
    checks = list(golden_checks.verify(golden))
    names = {check.name for check in checks}
    parts = ("forward/velocity", "sample", "train/multiplier_scene", "train/final_weights")
    expected = {f"{family}/{part}" for family in ("flux1", "flux2") for part in parts}
    expected |= {f"autoencoder_flux{i}/{way}" for i in (1, 2) for way in ("encode", "decode")}
    assert {"rope/flux1_bfloat16", "rope/flux2_bfloat16", "schedules/flux1"} | expected <= names
    assert [check for check in checks if not check.passed] == []


@pytest.mark.parametrize(
    "part, file, tensor, check",
    [
        ("flux1", "base", "single_blocks.1.norm.key_norm.scale", "flux1/forward/velocity"),
        ("flux2", "base", "single_blocks.1.norm.key_norm.scale", "flux2/forward/velocity"),
        ("autoencoder_flux1", "ae", "decoder.norm_out.weight", "autoencoder_flux1/decode"),
        ("autoencoder_flux2", "ae", "bn.running_var", "autoencoder_flux2/encode"),
    ],
)
def test_a_wrong_weight_fails_the_check(golden, tmp_path, part, file, tensor, check):
    folder = tmp_path / "golden"
    shutil.copytree(golden / part, folder / part)
    (folder / part / "train_trajectory.json").unlink(missing_ok=True)  # the slow part
    path = folder / part / f"{file}.safetensors"
    tensors = load_file(path)
    tensors[tensor] *= 1.01
    save_file(tensors, path)
    failed = [result.name for result in golden_checks.verify(folder) if not result.passed]
    assert check in failed


def test_surplus_and_missing_tensors_are_named(golden, tmp_path):
    folder = tmp_path / "flux2"
    shutil.copytree(golden / "flux2", folder)
    base = load_file(folder / "base.safetensors")
    base["surprise.weight"] = base.pop("img_in.weight")
    save_file(base, folder / "base.safetensors")
    with pytest.raises(ValueError, match="missing img_in.weight"):
        golden_checks.load_release(folder)
    base["img_in.weight"] = np.zeros((128, 128), np.float32)
    save_file(base, folder / "base.safetensors")
    with pytest.raises(ValueError, match="surprise.weight"):
        golden_checks.load_release(folder)


def test_truncated_checkpoint_is_one_line(golden, tmp_path):
    for name in ("base.safetensors", "lora.pt"):
        folder = tmp_path / name
        shutil.copytree(golden / "flux2", folder)
        path = folder / name
        path.write_bytes(path.read_bytes()[:-1000])
        with pytest.raises(ValueError, match=name) as error:
            golden_checks.load_release(folder)
        assert "\n" not in str(error.value)


def test_empty_folder_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="nothing to verify"):
        list(golden_checks.verify(tmp_path))


def test_every_preset_builds_abstractly():
    for config in presets.PRESETS.values():
        state = jax.eval_shape(
            lambda config=config: nnx.split(Transformer(config, rngs=nnx.Rngs(0)))
        )[1]
        assert all(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(state))
