"""Bad input to `cotir convert`: one line that names file and fix; nothing is written."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cotir_jax import cli

pytest.importorskip("torch", reason="PyTorch writes the .pt files")
pytest.importorskip("diffusers", reason="diffusers writes the tiny models")
pytest.importorskip("transformers", reason="transformers writes the tiny models")

import torch
from support import tiny_published

MODEL = "klein-4b"


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "klein"
    with contextlib.redirect_stderr(io.StringIO()):
        tiny_published.write_folder(folder, MODEL)
        options = dict(max_shard_size="40KB")
        shutil.rmtree(folder / "transformer")
        tiny_published.write_transformer(folder / "transformer", MODEL, **options)
    return folder


@pytest.fixture
def copy(source, tmp_path) -> Path:
    return Path(shutil.copytree(source, tmp_path / "copy"))


def _convert(base: Path, out: Path, *more: str) -> list[str]:
    arguments = ["convert", f"--model={MODEL}", f"--base={base}", f"--out={out}", *more]
    return [*arguments, f"--overrides={tiny_published.OVERRIDES[MODEL]}"]


def _fails(base: Path, tmp_path: Path, capsys, *expected: str, more: tuple[str, ...] = ()) -> None:
    """The command ends with status 1, one line with all of `expected`, and nothing written."""
    out = tmp_path / "out"
    before = sorted(tmp_path.iterdir())
    capsys.readouterr()
    with pytest.raises(SystemExit) as error:
        cli.main(_convert(base, out, *more))
    assert error.value.code == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    for text in expected:
        assert text in lines[0], lines[0]
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("more", [(), ("--merge-lora",)])
def test_a_complete_folder_converts(source, tmp_path, capsys, more):
    cli.main(_convert(source, tmp_path / "out", *more))
    said = capsys.readouterr().out
    assert "none" not in said and "converted" in said.splitlines()[-1]
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {
        "model.json", "weights", "autoencoder", "qwen3", "tokenizers"}  # fmt: skip
    baked = out / "tokenizers" / "qwen3"
    assert {path.name for path in baked.iterdir()} == {"tokenizer.json", "chat.json"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("file", ["vae/diffusion_pytorch_model.safetensors", "lora.pt"])
def test_truncated_file(copy, tmp_path, capsys, file):
    path = copy / file
    path.write_bytes(path.read_bytes()[:-1000])
    _fails(copy, tmp_path, capsys, str(path), "damaged", "fetch it again")


def test_missing_shard(copy, tmp_path, capsys):
    shard = sorted((copy / "transformer").glob("*-of-*.safetensors"))[1]
    shard.unlink()
    _fails(copy, tmp_path, capsys, str(shard), "not there", "fetch")


def test_index_that_names_another_file(copy, tmp_path, capsys):
    index = next((copy / "transformer").glob("*.index.json"))
    listed = json.loads(index.read_text())
    listed["weight_map"]["x_embedder.weight"] = "elsewhere.safetensors"
    index.write_text(json.dumps(listed))
    _fails(copy, tmp_path, capsys, "elsewhere.safetensors", "named by", "fetch")
    files = sorted({*listed["weight_map"].values()} - {"elsewhere.safetensors"})
    held = load_file(copy / "transformer" / files[0])
    wrong = files[1] if "x_embedder.weight" in held else files[0]
    listed["weight_map"]["x_embedder.weight"] = wrong
    index.write_text(json.dumps(listed))
    _fails(copy, tmp_path, capsys, index.name, "x_embedder.weight", "which lacks it")
    index.write_text("{}")
    _fails(copy, tmp_path, capsys, index.name, "damaged index")


class _Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_pickle_with_code_is_not_run(copy, tmp_path, capsys):
    torch.save({"cot_adapter.scale_degradation": _Bomb(tmp_path / "ran")}, copy / "cot_adapter.pt")
    _fails(copy, tmp_path, capsys, "cot_adapter.pt", "not a plain PyTorch state dict")
    assert not (tmp_path / "ran").exists()
    torch.save({"state": {"a": torch.zeros(2)}}, copy / "cot_adapter.pt")
    _fails(copy, tmp_path, capsys, "cot_adapter.pt", "save only the state dict")


def test_all_misfits_are_counted_in_one_line(copy, tmp_path, capsys):
    lora = torch.load(copy / "lora.pt")
    lora.pop("single_blocks.0.linear1.lora_B.bias")
    lora["surplus"] = torch.zeros(3)
    torch.save(lora, copy / "lora.pt")
    vae = copy / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(vae)
    tensors["encoder.conv_in.bias"] = np.zeros(5, np.float32)
    save_file(tensors, vae)
    expected = ("3 tensors do not fit", str(copy / "lora.pt"), "unknown tensor surplus",
                "missing single_blocks.0.linear1.lora_B.bias", str(vae), "(5,)")  # fmt: skip
    _fails(copy, tmp_path, capsys, *expected)


def test_tensors_in_eight_bits(copy, tmp_path, capsys):
    lora = torch.load(copy / "lora.pt")
    name = next(iter(lora))
    lora[name] = lora[name].to(torch.float8_e4m3fn)
    torch.save(lora, copy / "lora.pt")
    _fails(copy, tmp_path, capsys, str(copy / "lora.pt"), name, "float8_e4m3fn", "BF16")


def test_wrong_tokenizer(copy, tmp_path, capsys):
    for kind in ("t5", "minilm"):
        other = tmp_path / kind
        tiny_published._write_tokenizer(other, kind)
        _fails(copy, tmp_path, capsys, str(other), "qwen3", more=(f"--tokenizer={other}",))
    empty = tmp_path / "empty"
    empty.mkdir()
    _fails(copy, tmp_path, capsys, str(empty), "tokenizer", more=(f"--tokenizer={empty}",))
    (copy / "tokenizer" / "tokenizer.json").write_text("{")
    _fails(copy, tmp_path, capsys, str(copy / "tokenizer"))


def test_text_encoder_of_another_model(copy, tmp_path, capsys):
    config = copy / "text_encoder" / "config.json"
    fields = json.loads(config.read_text())
    config.write_text(json.dumps(fields | {"hidden_size": 64}))
    _fails(copy, tmp_path, capsys, "model.safetensors", "width 192", "needs 96")
    config.write_text(json.dumps(fields | {"vocab_size": 300}))
    _fails(copy, tmp_path, capsys, "do not fit", "embed_tokens")
    config.unlink()
    _fails(copy, tmp_path, capsys, str(config), "not there; fetch it too")


def test_files_under_the_wrong_option(copy, tmp_path, capsys):
    more = (f"--autoencoder={copy / 'lora.pt'}",)
    _fails(copy, tmp_path, capsys, "--autoencoder", "holds lora, expected autoencoder", more=more)
    _fails(copy / "vae", tmp_path, capsys, "vae", "no transformer")
    _fails(copy / "tokenizer", tmp_path, capsys, "no part of a model")
    _fails(tmp_path / "nowhere", tmp_path, capsys, "nowhere", "no such file or folder")


def test_two_files_for_one_part(copy, tmp_path, capsys):
    shutil.copy(copy / "lora.pt", copy / "other.pt")
    _fails(copy, tmp_path, capsys, "lora.pt and other.pt", "name the file itself")


def test_merging_without_lora(copy, tmp_path, capsys):
    (copy / "lora.pt").unlink()
    _fails(copy, tmp_path, capsys, "--merge-lora", "--lora=FILE", more=("--merge-lora",))


def test_output_folder_that_exists(source, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("precious")
    _fails(source, tmp_path, capsys, str(out), "exists already", "another output folder")
    assert (out / "mine").read_text() == "precious"


def test_full_disk(source, tmp_path):
    command = [sys.executable, "-m", "cotir_jax.cli", *_convert(source, tmp_path / "out")]
    process = subprocess.run(
        ["sh", "-c", 'ulimit -f 40; exec "$0" "$@"', *command],  # blocks of 512 bytes
        cwd=Path(cli.__file__).parents[1],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 1, process.stderr[-2000:]
    lines = process.stderr.strip().splitlines()
    assert len(lines) == 1 and "File too large" in lines[0] and "free some" in lines[0], (
        process.stderr
    )
    assert not list(tmp_path.iterdir())


def test_more_than_the_disk_holds(source, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    _fails(source, tmp_path, capsys, "GB free", "another disk")
