"""Model folders: onto a mesh in parts, trained parts apart from their base, damage in one line."""

import json
import shutil
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from support import released, tokenizer_folders

from cotir_jax.checkpoints import model_folder
from cotir_jax.checkpoints.arrays import read_arrays
from cotir_jax.conversion import streaming
from cotir_jax.conversion.streaming import Streamed, save_streamed, storage_shapes
from cotir_jax.models.presets import preset
from cotir_jax.parallel.sharding import make_mesh

BF16 = np.dtype(ml_dtypes.bfloat16)
SHAPES = {"stacked": (3, 1024, 4096), "table": (1999, 2048), "vectors": (40, 60000), "one": (1,),
          "empty": ()}  # fmt: skip


@pytest.fixture(scope="module")
def folder(golden, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("folder") / "model"
    source = golden / "flux2"
    released.convert_quietly(released.config_of(source), released.paths_of(source), out)
    return out


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


@pytest.fixture(scope="module")
def streamed(tmp_path_factory):
    """A checkpoint of arrays of several kinds, and the arrays."""
    path = tmp_path_factory.mktemp("streamed") / "weights"
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.normal(size=shape).astype(BF16 if len(shape) == 3 else np.float32)
        for name, shape in SHAPES.items()
    }
    save_streamed(path, {name: _streamed(name, array) for name, array in arrays.items()})
    return path, arrays


def _streamed(name, array):
    stacked = name in ("stacked", "vectors")
    return Streamed(
        array.shape, array.dtype, stacked, lambda i: array[i] if stacked else array
    )  # fmt: skip


def _bytes_read() -> int:
    metrics = tensorstore.experimental_collect_matching_metrics("/tensorstore/kvstore/file/")
    return sum(metric["values"][0]["value"] for metric in metrics if "bytes_read" in metric["name"])


@pytest.mark.parametrize("spec", [("fsdp", "tensor"), (None, ("fsdp", "tensor")), (None, None)])
def test_values_survive_and_each_byte_is_read_once(streamed, spec):
    path, arrays = streamed
    mesh = make_mesh({"fsdp": 4, "tensor": 2})
    targets = {
        name: jax.ShapeDtypeStruct(
            array.shape,
            array.dtype,
            sharding=NamedSharding(mesh, PartitionSpec(None, *spec) if array.ndim == 3 else
                                   PartitionSpec()),
        )
        for name, array in arrays.items()
    }  # fmt: skip
    before = _bytes_read()
    restored = read_arrays(path, targets)
    size = sum(array.nbytes for array in arrays.values())
    assert size <= _bytes_read() - before < 1.02 * size
    for name, array in arrays.items():
        assert restored[name].sharding == targets[name].sharding
        assert np.array_equal(np.asarray(restored[name]), array)


@pytest.mark.parametrize("spec", [("fsdp", "tensor"), ("fsdp", None), (None, "fsdp")])
def test_a_device_reads_its_part_alone(streamed, spec):
    """What one process of eight with a device each would read, counted by the storage layer."""
    path, arrays = streamed
    mesh = make_mesh({"fsdp": -1})
    sharding = NamedSharding(mesh, PartitionSpec(None, *(a if a == "fsdp" else None for a in spec)))
    index = sharding.devices_indices_map(SHAPES["stacked"])[jax.devices()[5]]
    kvstore = {"driver": "file", "path": str(path / "stacked")}
    store = tensorstore.open({"driver": "zarr3", "kvstore": kvstore}).result()
    before = _bytes_read()
    part = store[index].read().result()
    assert part.size == arrays["stacked"].size / 8
    assert np.array_equal(part, arrays["stacked"][index])
    assert part.nbytes <= _bytes_read() - before < 1.05 * part.nbytes


def test_storage_shapes_at_full_size(monkeypatch):
    """Files of bounded size; chunks that a mesh axis of 8 divides between."""
    shapes = {(19, 3072, 27648): True, (36, 12288, 3072): True, (151936, 4096): False,
              (3072, 3072): False, (3, 3, 512, 512): False, (37, 9216): True}  # fmt: skip
    for shape, stacked in shapes.items():
        array = Streamed(shape, BF16, stacked, lambda _: None)
        file, chunk = storage_shapes(array)
        assert 2 * np.prod(file) <= streaming.FILE_BYTES
        assert all(a % b == 0 for a, b in zip(file, chunk, strict=True))
        if array.nbytes > streaming.SMALL_BYTES:
            assert 2 * np.prod(chunk) <= streaming.CHUNK_BYTES
            assert chunk[-1] * 8 <= shape[-1] and chunk[-2] * 8 <= shape[-2]


def test_no_layer_waits_in_memory(tmp_path):
    """At most as many layers as there are workers are made before they are written."""
    written, ahead = [0], []

    def layer(index):
        ahead.append(index - written[0])
        return np.full((1024, 1024), index, np.float32)

    def progress(size):
        written[0] += size // 2**22

    array = Streamed((12, 1024, 1024), np.dtype(np.float32), True, layer)
    save_streamed(tmp_path / "weights", {"a": array}, progress)
    assert len(ahead) == 12 and max(ahead) < streaming.WORKERS


def _changed(model: nnx.Module) -> dict[str, np.ndarray]:
    """As a training step: every LoRA and adapter weight moves, and nothing else."""
    state = nnx.state(model, nnx.Param)
    for variable in model_folder.flat(state).values():
        if model_folder.is_trained(variable):
            variable.set_value(variable.get_value() + 0.25)
    nnx.update(model, state)
    return released.arrays(model)


def test_training_stores_what_it_trained_alone(folder, tmp_path):
    model = released.load(folder)
    expected = _changed(model)
    first, second = tmp_path / "first", tmp_path / "second"
    model_folder.save_model(first, model, {"step": 7}, base=folder)
    again = released.load(first)
    assert all(np.array_equal(expected[k], v) for k, v in released.arrays(again).items())
    with ocp.PyTreeCheckpointer() as checkpointer:
        held = checkpointer.metadata((first / "weights").absolute()).item_metadata.tree
    assert set(held) == {k for k in expected if "lora" in k or "cot_adapter" in k}
    # Training goes on from there: the base stays the first folder.
    expected = _changed(again)
    model_folder.save_model(second, again, {}, base=first)
    shutil.rmtree(first)
    ours = released.arrays(released.load(second))
    assert all(np.array_equal(expected[k], v) for k, v in ours.items())
    described = json.loads((second / "model.json").read_text())
    assert described["base"] == str(folder)


def test_a_base_that_moved(copy, tmp_path):
    model_folder.save_model(tmp_path / "trained", released.load(copy), {}, base=copy)
    copy.rename(tmp_path / "moved")
    with pytest.raises(ValueError, match="trained from is missing; put it back, or write"):
        released.load(tmp_path / "trained")
    path = tmp_path / "trained" / "model.json"
    path.write_text(path.read_text().replace(str(copy), str(tmp_path / "moved")))
    released.load(tmp_path / "trained")


def _line(error) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_damaged_description(copy):
    path = copy / "model.json"
    text = path.read_text()
    fields = json.loads(text)
    for damage in (text[:200], "[]", "{}", json.dumps(fields | {"model": {"name": "x"}}),
                   text.replace('"hidden_size": 128', '"hidden_size": 127')):  # fmt: skip
        path.write_text(damage)
        with pytest.raises(ValueError, match=r"model.json: damaged") as error:
            model_folder.load_config(copy)
        assert "again" in _line(error)


def test_parts_that_are_missing(copy):
    mesh, config = make_mesh({"fsdp": -1}), model_folder.load_config(copy)
    tokenizer = copy / "tokenizers" / "qwen3"
    for load, expected in (
        (lambda: model_folder.load_autoencoder(copy, mesh), "--autoencoder="),
        (lambda: model_folder.load_text_encoders(copy, config, mesh, ()), "--tokenizer="),
        (lambda: model_folder.load_text_encoders(copy, config, mesh, ()), "--text-encoder="),
    ):
        if expected == "--text-encoder=":
            tokenizer.mkdir(parents=True)
            tokenizer_folders.MAKERS["qwen3"](tokenizer)
        with pytest.raises(ValueError, match=expected) as error:
            load()
        assert str(copy) in _line(error)
    file = max((copy / "weights").rglob("*"), key=lambda path: path.stat().st_size)
    content = file.read_bytes()
    for damage in (lambda: file.unlink(), lambda: file.write_bytes(content[: len(content) // 2])):
        damage()
        with pytest.raises(ValueError, match="cannot be read") as error:
            released.load(copy)
        assert str(copy / "weights") in _line(error)
    shutil.rmtree(copy / "weights")
    with pytest.raises(ValueError, match="this part of the model folder is missing") as error:
        released.load(copy)
    assert str(copy / "weights") in _line(error)


def test_another_models_folder(folder):
    mesh = make_mesh({"fsdp": -1})
    with pytest.raises(ValueError, match="hidden_size=128 there, 3072 here"):
        model_folder.load_model(folder, mesh, (), preset("klein-4b"))
