"""Model folders back to the release's files, byte for byte, and merged transformers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file
from support import released

from cotir_jax import cli
from cotir_jax.checkpoints import model_folder
from cotir_jax.conversion import export as exporting
from cotir_jax.conversion.convert import Paths
from cotir_jax.conversion.export import export
from cotir_jax.conversion.torch_files import open_tensors, read_tensors

torch = pytest.importorskip("torch", reason="PyTorch reads the .pt files")
SMALL_FILES = ("lora", "cot_adapter")


@pytest.fixture(scope="module")
def folders(golden, tmp_path_factory):
    """A model folder of each family from the golden releases."""
    root = tmp_path_factory.mktemp("folders")
    for family in released.FAMILIES:
        source = golden / family
        released.convert_quietly(
            released.config_of(source), released.paths_of(source), root / family
        )
    return root


def _bytes(tensors: dict) -> dict[str, tuple]:
    def raw(tensor):
        flat = tensor.contiguous().flatten().view(torch.uint8)
        return (tensor.dtype, tuple(tensor.shape), bytes(flat.numpy()))

    return {name: raw(tensor) for name, tensor in tensors.items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("family", released.FAMILIES)
def test_round_trip_is_byte_identical(golden, tmp_path, family, dtype):
    source, paths = golden / family, {}
    for name in SMALL_FILES:
        state = torch.load(source / f"{name}.pt", weights_only=True)
        paths[name] = tmp_path / f"{name}.pt"
        torch.save({k: v.to(getattr(torch, dtype)) for k, v in state.items()}, paths[name])
    config = released.config_of(source)
    released.convert_quietly(
        config, Paths(source / "base.safetensors", **paths), tmp_path / "model"
    )
    done = export(tmp_path / "model", tmp_path / "out", report=lambda _: None)
    count = 0
    for name in SMALL_FILES:
        theirs = torch.load(paths[name], weights_only=True)
        ours = torch.load(tmp_path / "out" / f"{name}.pt", weights_only=True)
        assert type(ours) is dict and _bytes(ours) == _bytes(theirs)
        count += len(ours)
    assert done["tensors"] == count
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"lora.pt", "cot_adapter.pt"}


def test_safetensors_need_no_torch(folders, golden, tmp_path):
    command = ["export", f"--model-dir={folders / 'flux2'}", f"--out={tmp_path / 'out'}"]
    program = (
        "import sys; sys.modules['torch'] = None; from cotir_jax import cli; cli.main(sys.argv[1:])"
    )
    process = subprocess.run(
        [sys.executable, "-c", program, *command, "--format=safetensors"],
        cwd=Path(cli.__file__).parents[1],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    assert process.stdout.splitlines()[-1].startswith("exported 61 tensors")
    for name in SMALL_FILES:
        theirs = read_tensors(golden / "flux2" / f"{name}.pt")
        ours = load_file(tmp_path / "out" / f"{name}.safetensors")
        assert set(ours) == set(theirs)
        assert all(np.array_equal(ours[k], v) and ours[k].dtype == v.dtype
                   for k, v in theirs.items())  # fmt: skip


def test_trained_weights_come_out(folders, tmp_path):
    model = released.load(folders / "flux1")
    model.last_single_block.linear2.lora_b[...] += 3.0
    model.cot_adapter.scale_plan[...] = 0.5
    model_folder.save_model(tmp_path / "trained", model, {}, base=folders / "flux1")
    export(tmp_path / "trained", tmp_path / "after", report=lambda _: None)
    export(folders / "flux1", tmp_path / "before", report=lambda _: None)
    changed = {"single_blocks.2.linear2.lora_B.weight", "cot_adapter.scale_planning"}
    for name in SMALL_FILES:
        before = torch.load(tmp_path / "before" / f"{name}.pt", weights_only=True)
        after = torch.load(tmp_path / "after" / f"{name}.pt", weights_only=True)
        assert set(before) == set(after)
        differing = {key for key in before if not torch.equal(before[key], after[key])}
        assert differing == changed & set(before)
        for key in differing & {"single_blocks.2.linear2.lora_B.weight"}:
            assert torch.equal(after[key], before[key] + 3.0)


@pytest.mark.parametrize("family", released.FAMILIES)
def test_merged_transformer(folders, golden, tmp_path, family, monkeypatch):
    """In several files, and back through convert to the release's numbers."""
    monkeypatch.setattr(exporting, "FILE_BYTES", 2_000_000)
    out = tmp_path / "out"
    export(folders / family, out, merged=True, report=lambda _: None)
    files = sorted(out.glob("transformer_merged-*-of-*.safetensors"))
    assert len(files) > 2 and all(path.stat().st_size < 2_010_000 for path in files)
    index = json.loads((out / "transformer_merged.safetensors.index.json").read_text())
    held = {name: path.name for path in files for name in load_file(path)}
    assert index["weight_map"] == held
    merged = open_tensors(out / "transformer_merged.safetensors.index.json")
    base = load_file(golden / family / "base.safetensors")
    lora = read_tensors(golden / family / "lora.pt")
    biases = {k.replace("lora_B.bias", "bias") for k in lora if k.endswith("lora_B.bias")}
    assert set(merged.entries) == set(base) | biases
    for name, tensor in base.items():
        prefix = name.rpartition(".")[0]
        update = 0.0
        if name.endswith(".weight") and f"{prefix}.lora_A.weight" in lora:
            update = lora[f"{prefix}.lora_B.weight"] @ lora[f"{prefix}.lora_A.weight"]
        elif name.endswith(".bias") and f"{prefix}.lora_B.bias" in lora:
            update = lora[f"{prefix}.lora_B.bias"]
        ours = merged.read(name)
        assert ours.dtype == tensor.dtype and np.abs(ours - (tensor + update)).max() < 1e-6
    # lora.pt lies beside it, and is not added a second time.
    released.convert_quietly(released.config_of(golden / family), Paths(out), tmp_path / "again")
    assert released.forward_error(released.load(tmp_path / "again"), golden / family) < 1e-4


def test_merged_folder_has_no_lora_to_export(golden, tmp_path):
    source = golden / "flux2"
    config, paths = released.config_of(source), released.paths_of(source)
    released.convert_quietly(config, paths, tmp_path / "model", merge_lora=True)
    lines: list[str] = []
    export(tmp_path / "model", tmp_path / "out", merged=True, report=lines.append)
    assert lines[0].startswith("lora: merged") and not (tmp_path / "out" / "lora.pt").exists()
    merged = load_file(tmp_path / "out" / "transformer_merged.safetensors")
    lora = read_tensors(paths.lora)
    for key in ("single_blocks.1.linear1", "final_layer.adaLN_modulation.1"):
        assert np.array_equal(merged[f"{key}.bias"], lora[f"{key}.lora_B.bias"])


def test_bfloat16_merges_in_float32(golden, tmp_path):
    source = golden / "flux1"
    config, paths = released.config_of(source), released.paths_of(source)
    released.convert_quietly(config, paths, tmp_path / "model", dtype="bfloat16")
    export(tmp_path / "model", tmp_path / "out", merged=True, report=lambda _: None)
    merged = read_tensors(tmp_path / "out" / "transformer_merged.safetensors")
    base, lora = load_file(paths.base), read_tensors(paths.lora)
    weight = base["single_blocks.0.linear1.weight"].astype(ml_dtypes.bfloat16).astype(np.float32)
    key = "single_blocks.0.linear1.lora_{}.weight"
    exact = weight + lora[key.format("B")] @ lora[key.format("A")]
    ours = merged["single_blocks.0.linear1.weight"]
    assert ours.dtype == ml_dtypes.bfloat16
    # Half a unit in the last of bfloat16's 8 places, and no rounding before that one.
    assert np.all(np.abs(ours.astype(np.float32) - exact) <= 2.0**-8 * 1.001 * np.abs(exact))


def test_errors_leave_nothing(folders, tmp_path, capsys):
    (tmp_path / "there").mkdir()
    for folder, out, expected in (
        (folders / "flux2", tmp_path / "there", "exists already"),
        (tmp_path / "none", tmp_path / "out", "not a model folder"),
    ):
        with pytest.raises(SystemExit):
            cli.main(["export", f"--model-dir={folder}", f"--out={out}"])
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and expected in lines[0]
    command = [sys.executable, "-m", "cotir_jax.cli", "export"]
    command += [f"--model-dir={folders / 'flux2'}", f"--out={tmp_path / 'out'}"]
    for more in ([], ["--format=safetensors"]):
        process = subprocess.run(
            ["sh", "-c", 'ulimit -f 40; exec "$0" "$@"', *command, *more],
            cwd=Path(cli.__file__).parents[1],
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        lines = process.stderr.strip().splitlines()
        assert process.returncode == 1 and len(lines) == 1, process.stderr[-2000:]
        assert "free some" in lines[0]
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
