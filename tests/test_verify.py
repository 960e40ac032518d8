"""The release's golden numbers, and full-size models against the manifests."""

import gzip
import json
import math
import shutil

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from cotir_jax import verify
from cotir_jax.checkpoints import name_tables
from cotir_jax.models import presets
from cotir_jax.models.flux2 import Flux2


def test_golden_numbers(golden):
    checks = list(verify.verify(golden))
    names = {check.name for check in checks}
    parts = ("forward/velocity", "sample", "train/multiplier_scene", "train/final_weights")
    assert {"rope/flux2_bfloat16", "schedules/flux1", *(f"flux2/{part}" for part in parts)} <= names
    assert [check for check in checks if not check.passed] == []


def test_a_wrong_weight_fails_the_check(golden, tmp_path):
    folder = tmp_path / "golden"
    shutil.copytree(golden / "flux2", folder / "flux2")
    base = load_file(folder / "flux2" / "base.safetensors")
    base["single_blocks.1.norm.key_norm.scale"] *= 1.01
    save_file(base, folder / "flux2" / "base.safetensors")
    failed = [check.name for check in verify.verify(folder) if not check.passed]
    assert "flux2/forward/velocity" in failed


def test_surplus_and_missing_tensors_are_named(golden, tmp_path):
    folder = tmp_path / "flux2"
    shutil.copytree(golden / "flux2", folder)
    base = load_file(folder / "base.safetensors")
    base["surprise.weight"] = base.pop("img_in.weight")
    save_file(base, folder / "base.safetensors")
    with pytest.raises(ValueError, match="missing img_in.weight"):
        verify.load_release(folder)
    base["img_in.weight"] = np.zeros((128, 128), np.float32)
    save_file(base, folder / "base.safetensors")
    with pytest.raises(ValueError, match="surprise.weight"):
        verify.load_release(folder)


def test_truncated_checkpoint_is_one_line(golden, tmp_path):
    for name in ("base.safetensors", "lora.pt"):
        folder = tmp_path / name
        shutil.copytree(golden / "flux2", folder)
        path = folder / name
        path.write_bytes(path.read_bytes()[:-1000])
        with pytest.raises(ValueError, match=name) as error:
            verify.load_release(folder)
        assert "\n" not in str(error.value)


def test_empty_folder_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="nothing to verify"):
        list(verify.verify(tmp_path))


@pytest.mark.parametrize("name", ["klein-4b", "klein-9b"])
def test_full_size_names_and_shapes(manifests, name):
    """Every published tensor has exactly one place, with its shape, without any memory."""
    config = presets.preset(name)
    model = nnx.eval_shape(lambda: Flux2(config, rngs=nnx.Rngs(0)))
    ours = {
        ".".join(map(str, path)): variable.shape
        for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param))
    }
    filled = []
    tables = {
        "transformer": name_tables.flux2_base,
        "lora": name_tables.flux2_lora,
        "cot_adapter": name_tables.cot_adapter,
    }
    total = 0
    for kind, table in tables.items():
        packed = (manifests / f"{name}.{kind}.json.gz").read_bytes()
        manifest = json.loads(gzip.decompress(packed))
        tensors = manifest["tensors"]
        total += manifest["parameters"]
        used = [source for row in table(config) for source in row.names]
        assert sorted(used) == sorted(tensors)
        for row in table(config):
            shape = tuple(reversed(tensors[row.names[0]]))
            assert ours[row.path] == ((len(row.names), *shape) if row.stacked else shape), row.path
            filled.append(row.path)
    assert sorted(filled) == sorted(ours)
    assert sum(math.prod(shape) for shape in ours.values()) == total


def test_every_preset_builds_abstractly():
    for config in presets.PRESETS.values():
        model = nnx.eval_shape(lambda config=config: Flux2(config, rngs=nnx.Rngs(0)))
        assert all(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(nnx.state(model)))
