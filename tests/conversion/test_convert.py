"""Published files to model folders: every tensor in its place, from every layout."""

import dataclasses
import gzip
import json
import math
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support import released

from cotir_jax.conversion import parts
from cotir_jax.conversion.convert import Paths, plan, streamed_arrays
from cotir_jax.conversion.name_tables import Row, assemble, disassemble, our_shape
from cotir_jax.conversion.names import transformer
from cotir_jax.conversion.torch_files import Entry, Tensors, read_tensors
from cotir_jax.models.presets import preset

BF16 = np.dtype(ml_dtypes.bfloat16)
# The fields of the published config.json files that this package reads.
QWEN3 = dict(model_type="qwen3", vocab_size=151936, num_hidden_layers=36, num_attention_heads=32,
             num_key_value_heads=8, head_dim=128, rms_norm_eps=1e-6, rope_theta=1e6)  # fmt: skip
TEXT_ENCODERS = {
    "qwen3-4b": QWEN3 | dict(hidden_size=2560, intermediate_size=9728),
    "qwen3-8b": QWEN3 | dict(hidden_size=4096, intermediate_size=12288),
    "t5-v1_1-xxl-encoder": dict(
        model_type="t5", vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=24,
        num_heads=64, feed_forward_proj="gated-gelu", relative_attention_num_buckets=32,
        relative_attention_max_distance=128, layer_norm_epsilon=1e-6, is_gated_act=True),
    "clip-vit-large-patch14-text": dict(
        model_type="clip_text_model", vocab_size=49408, hidden_size=768, intermediate_size=3072,
        num_hidden_layers=12, num_attention_heads=12, max_position_embeddings=77,
        hidden_act="quick_gelu", layer_norm_eps=1e-5, bos_token_id=0, eos_token_id=2),
}  # fmt: skip
OF_MODEL = {
    "kontext-12b": ("flux1", {"t5": "t5-v1_1-xxl-encoder", "clip": "clip-vit-large-patch14-text"}),
    "klein-4b": ("flux2", {"qwen3": "qwen3-4b"}),
    "klein-9b": ("flux2", {"qwen3": "qwen3-8b"}),
}


def _manifest(file: Path, folder: Path) -> Tensors:
    """A checkpoint with the names and shapes of a manifest and no content."""
    shapes = json.loads(gzip.decompress(file.read_bytes()))["tensors"]
    path = folder / file.stem
    return Tensors(path, {name: Entry(path, tuple(s), "BF16", None) for name, s in shapes.items()})


def _full_size(manifests, folder, model, diffusers) -> dict[str, Tensors]:
    suffix = ".diffusers" if diffusers else ""
    autoencoder, encoders = OF_MODEL[model]
    files = {
        "transformer": f"{model}.transformer{suffix}",
        "lora": f"{model}.lora",
        "cot_adapter": f"{model}.cot_adapter",
        "autoencoder": f"{autoencoder}.autoencoder{suffix}",
        **encoders,
    }
    found = {}
    for kind, name in files.items():
        (folder / kind).mkdir()
        if kind in encoders:
            (folder / kind / "config.json").write_text(json.dumps(TEXT_ENCODERS[name]))
        found[kind] = _manifest(manifests / f"{name}.json.gz", folder / kind)
    return found


@pytest.mark.parametrize("diffusers", [False, True], ids=["native", "diffusers"])
@pytest.mark.parametrize("model", OF_MODEL)
def test_every_manifest_converts_abstractly(manifests, tmp_path, model, diffusers):
    found = _full_size(manifests, tmp_path, model, diffusers)
    chosen = plan(preset(model), found)
    parts.check(chosen)
    assert {file.kind for part in chosen for file in part.files} == set(found)
    for part in chosen:
        ours = sum(math.prod(variable.shape) for variable in part.variables.values())
        used, unneeded = 0, 0
        for file in part.files:
            names = {name for row in file.table.rows for layer in row.names for name in layer}
            for name, shape in file.tensors.shapes.items():
                if name in names:
                    used += math.prod(shape)
                else:
                    unneeded += 1
        assert used == ours
        # Nine layers of Qwen3 (11 tensors each), its last norm and head; T5's tied copy; a counter.
        counter = int(preset(model).autoencoder == "flux2")
        expected = {"weights": 0, "autoencoder": counter, "qwen3": 9 * 11 + 2, "t5": 1, "clip": 0}
        assert unneeded == expected[part.name]
        arrays = streamed_arrays(part)
        assert {path: array.shape for path, array in arrays.items()} == {
            path: variable.shape for path, variable in part.variables.items()
        }


def test_each_fault_of_a_full_size_checkpoint_is_found(manifests, tmp_path):
    found = _full_size(manifests, tmp_path, "klein-4b", False)
    entries = found["transformer"].entries
    name = "single_blocks.7.linear2.weight"
    there = entries[name]
    faults = {
        f"missing {name}": {k: v for k, v in entries.items() if k != name},
        "unknown tensor surplus": entries | {"surplus": there},
        f"{name} is F8_E4M3": entries | {name: there._replace(dtype="F8_E4M3")},
        f"{name} gives (12289, 3072)": entries | {name: there._replace(shape=(3072, 12289))},
    }
    for expected, changed in faults.items():
        broken = found | {"transformer": Tensors(found["transformer"].path, changed)}
        with pytest.raises(ValueError, match="^1 tensors do not fit") as error:
            parts.check(plan(preset("klein-4b"), broken))
        assert expected in str(error.value)


def test_another_models_sizes_are_named(manifests, tmp_path):
    for kind in ("transformer", "lora", "cot_adapter"):
        tensors = _manifest(manifests / f"klein-9b.{kind}.json.gz", tmp_path)
        found = {"transformer": _manifest(manifests / "klein-4b.transformer.json.gz", tmp_path)}
        with pytest.raises(ValueError, match=r"these are klein-9b's sizes: --model=klein-9b"):
            parts.check([parts.transformer_part(preset("klein-4b"), found | {kind: tensors})])


@pytest.mark.parametrize("family", released.FAMILIES)
def test_a_release_gives_its_numbers_on_eight_devices(golden, tmp_path, family):
    folder = golden / family
    released.convert_quietly(
        released.config_of(folder), released.paths_of(folder), tmp_path / "model"
    )
    model = released.load(tmp_path / "model")
    assert released.forward_error(model, folder) < 1e-4
    ours = released.arrays(model)
    base = load_file(folder / "base.safetensors")
    assert np.array_equal(ours["img_in.kernel"], base["img_in.weight"].T)
    for layer in range(2):
        theirs = base[f"single_blocks.{layer}.linear1.weight"].T
        assert np.array_equal(ours["single_blocks.linear1.kernel"][layer], theirs)
    described = json.loads((tmp_path / "model" / "model.json").read_text())
    part = described["parts"]["weights"]
    assert part["parameters"] == sum(array.size for array in ours.values())
    assert part["bytes"] == 4 * part["parameters"] and part["dtype"] == "float32"
    assert {Path(source["file"]).name for source in part["sources"]} == {
        "base.safetensors", "lora.pt", "cot_adapter.pt"}  # fmt: skip


@pytest.mark.parametrize("family", released.FAMILIES)
def test_merged_lora_is_the_same_function(golden, tmp_path, family):
    folder = golden / family
    config, paths = released.config_of(folder), released.paths_of(folder)
    released.convert_quietly(config, paths, tmp_path / "model", merge_lora=True)
    model = released.load(tmp_path / "model")
    assert not any("lora_a" in path or "lora_b." in path for path in released.arrays(model))
    assert released.forward_error(model, folder) < 1e-4
    lora = read_tensors(paths.lora)
    update = lora["final_layer.linear.lora_B.weight"] @ lora["final_layer.linear.lora_A.weight"]
    merged = load_file(paths.base)["final_layer.linear.weight"] + update
    ours = released.arrays(model)["final_layer.linear.kernel"].T
    assert np.abs(ours - merged).max() < 1e-6


def test_without_lora_and_adapter_it_is_the_base_model(golden, tmp_path):
    folder = golden / "flux2"
    config, paths = released.config_of(folder), Paths(folder / "base.safetensors")
    lines = released.convert_quietly(config, paths, tmp_path / "model")
    for kind in ("lora", "cot_adapter", "autoencoder", "qwen3", "tokenizer of qwen3"):
        assert any(line.startswith(f"{kind}: none") for line in lines)
    ours = released.arrays(released.load(tmp_path / "model"))
    assert not any(ours[name].any() for name in ours if name.endswith(("lora_b", "lora_bias")))
    assert not any(ours[f"cot_adapter.scale_{thought}"].any() for thought in ("scene", "plan"))
    bound = 1 / math.sqrt(config.hidden_size)
    a = ours["single_blocks.linear1.lora_a"]
    assert 0.9 * bound < np.abs(a).max() <= bound and abs(a.mean()) < 0.1 * bound
    deviation = ours["cot_adapter.blocks.linear1.kernel"].std() * math.sqrt(config.hidden_size)
    assert 0.9 < deviation < 1.1


def _digest(folder: Path) -> str:
    return json.loads((folder / "model.json").read_text())["parts"]["weights"]["digest"]


def test_layouts_and_files_of_the_same_weights_give_the_same_digest(golden, tmp_path):
    folder = golden / "flux2"
    config, paths = released.config_of(folder), released.paths_of(folder)
    released.convert_quietly(config, paths, tmp_path / "native")
    whole = load_file(paths.base)
    # The same numbers under diffusers' names.
    renamed: dict[str, np.ndarray] = {}
    theirs = {row.path: row for row in transformer.diffusers(config).rows}
    for row in transformer.native(config).rows:
        shape = our_shape(row, {name: array.shape for name, array in whole.items()})
        array = assemble(row, whole.__getitem__, shape, np.dtype(np.float32))
        renamed |= disassemble(theirs[row.path], array)
    names = sorted(renamed)
    base = tmp_path / "base" / "transformer"
    base.mkdir(parents=True)
    half = len(names) // 2
    shards = {"a.safetensors": names[:half], "b.safetensors": names[half:]}
    for file, held in shards.items():
        save_file({name: renamed[name] for name in held}, base / file)
    index = {"weight_map": {name: file for file, held in shards.items() for name in held}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    for file in (paths.lora, paths.cot_adapter):
        save_file(read_tensors(file), base.parent / f"{file.stem}.safetensors")
    released.convert_quietly(config, Paths(base.parent), tmp_path / "diffusers")
    assert _digest(tmp_path / "diffusers") == _digest(tmp_path / "native")
    # And another one when a single number differs.
    renamed["x_embedder.weight"][3, 5] += 1
    save_file({name: renamed[name] for name in shards["b.safetensors"]}, base / "b.safetensors")
    released.convert_quietly(config, Paths(base, paths.lora, paths.cot_adapter), tmp_path / "other")
    assert _digest(tmp_path / "other") != _digest(tmp_path / "native")


def test_dtypes(golden, tmp_path):
    """The base in the dtype that is asked for, rounded as PyTorch does; LoRA as it was."""
    torch = pytest.importorskip("torch", reason="PyTorch rounds here")
    folder = golden / "flux1"
    config, paths = released.config_of(folder), released.paths_of(folder)
    half = {k: torch.from_numpy(v).half() for k, v in read_tensors(paths.lora).items()}
    torch.save(half, tmp_path / "lora.pt")
    paths = paths._replace(lora=tmp_path / "lora.pt")
    released.convert_quietly(config, paths, tmp_path / "model", dtype="bfloat16")
    model = released.load(tmp_path / "model")
    assert model.config.base_dtype == model.config.dtype == "bfloat16"
    ours = released.arrays(model)
    theirs = torch.from_numpy(load_file(paths.base)["txt_in.weight"]).bfloat16().float().numpy().T
    assert ours["txt_in.kernel"].dtype == BF16
    assert np.array_equal(ours["txt_in.kernel"].astype(np.float32), theirs)
    described = json.loads((tmp_path / "model" / "model.json").read_text())
    assert described["lora"] == {"dtype": "float16", "merged": False}
    a = half["final_layer.linear.lora_A.weight"].float().numpy().T
    assert np.array_equal(ours["final_layer.linear.lora_a"], a)


def test_native_files_go_before_diffusers_folders(golden, tmp_path):
    folder = golden / "flux1"
    shutil.copy(folder / "base.safetensors", tmp_path / "flux1-kontext-dev.safetensors")
    shutil.copy(golden / "autoencoder_flux1" / "ae.safetensors", tmp_path / "ae.safetensors")
    (tmp_path / "transformer").mkdir()
    other = load_file(folder / "base.safetensors")
    other["img_in.bias"] += 1
    save_file(other, tmp_path / "transformer" / "model.safetensors")
    config = dataclasses.replace(released.config_of(folder), in_channels=64, autoencoder="flux1")
    found = parts.transformer_part(config, _found(tmp_path))
    assert found.files[0].tensors.path.name == "flux1-kontext-dev.safetensors"
    assert set(_found(tmp_path)) == {"transformer", "autoencoder"}


def _found(path):
    from cotir_jax.conversion.published_folder import find

    return find(path)


@pytest.mark.parametrize("dtype", [np.float32, BF16, np.float16])
def test_rows_place_tensors_as_described(dtype):
    rng = np.random.default_rng(0)
    disk = {f"{k}{i}": rng.normal(size=(n, 40)).astype(dtype) for i in range(3)
            for k, n in (("q", 66), ("v", 33))}  # fmt: skip
    disk["conv"] = rng.normal(size=(6, 5, 3, 2)).astype(dtype)
    disk["one"] = rng.normal(size=(6, 5, 1, 1)).astype(dtype)
    joined = tuple((f"q{i}", f"v{i}") for i in range(3))
    expected = {
        Row("a", joined, True): np.stack(
            [np.concatenate([disk[f"q{i}"], disk[f"v{i}"]]).T for i in range(3)]
        ),
        Row("b", (("q1",),), layout="same"): disk["q1"],
        Row("c", (("q1",),), layout="swapped"): np.concatenate(
            [disk["q1"].T[:, 33:], disk["q1"].T[:, :33]], axis=1
        ),
        Row("d", (("conv",),), layout="conv"): np.einsum("oihw->hwio", disk["conv"]),
        Row("e", (("one",),)): disk["one"][:, :, 0, 0].T,
    }
    for row, array in expected.items():
        shape = our_shape(row, {name: tensor.shape for name, tensor in disk.items()})
        assert shape == array.shape
        assert np.array_equal(assemble(row, disk.__getitem__, shape, np.dtype(dtype)), array)
        sizes = [66, 33] if len(row.names[0]) > 1 else None
        for name, tensor in disassemble(row, array, sizes).items():
            assert np.array_equal(tensor, disk[name].reshape(tensor.shape))


def test_flux1_names_are_all_different():
    config = preset("kontext-12b")
    for table in (transformer.native(config), transformer.diffusers(config)):
        names = [name for row in table.rows for layer in row.names for name in layer]
        assert len(names) == len(set(names))
