"""Model folders back to published files: LoRA, adapter, and the transformer with LoRA in it."""

import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from cotir_jax.checkpoints import model_folder
from cotir_jax.checkpoints.arrays import read_array, read_shapes
from cotir_jax.checkpoints.new_folder import new_folder
from cotir_jax.conversion.merge_lora import MERGED, bias_rows, lora_parts, merged_layer
from cotir_jax.conversion.name_tables import Row, disassemble
from cotir_jax.conversion.names import adapter, transformer
from cotir_jax.conversion.torch_files import write_pt, write_safetensors
from cotir_jax.models.presets import CoTIRConfig

FORMATS = ("pt", "safetensors")
# Larger transformers are written in several files.
FILE_BYTES = 5 * 10**9

Layout = dict[str, tuple[tuple[int, ...], np.dtype]]


def export(
    folder: Path,
    out: Path,
    *,
    file_format: str = "pt",
    merged: bool = False,
    report: Callable[[str], None] = print,
) -> dict[str, int]:
    """Writes `lora` and `cot_adapter` files with the release's names, shapes and stored dtypes.

    Args:
      folder: model folder.
      out: folder to write, which must not exist.
      file_format: "pt" (a plain state dict; needs PyTorch) or "safetensors".
      merged: also write the transformer with LoRA folded in, native names, as safetensors.
      report: called with a line for each file.

    Returns:
      Numbers of tensors and of bytes that were written.

    Raises:
      ValueError: for a folder that cannot be read, or that holds a merged LoRA and nothing else to
        export.
      OSError: when the files cannot be written.
    """
    if file_format not in FORMATS:
        raise ValueError(f"format {file_format!r}: accepted are {FORMATS}")
    config = model_folder.load_config(folder)
    weights = StoredWeights(folder)
    tables = {"cot_adapter": adapter.cot_adapter(config)}
    if config.lora_rank:
        tables["lora"] = adapter.lora(config)
    else:
        report("lora: merged or absent in this folder, no file")
    done = {"tensors": 0, "bytes": 0}
    with new_folder(out) as temporary:
        for name, table in tables.items():
            path = temporary / f"{name}.{file_format}"
            layout = _layout(table.rows, weights)
            tensors = _tensors(table.rows, weights.read)
            if file_format == "pt":
                write_pt(path, dict(tensors))
            else:
                write_safetensors(path, layout, tensors)
            _count(layout, path, done, report)
        if merged:
            for path, layout in _write_merged(temporary, config, weights):
                _count(layout, path, done, report)
    return done


class StoredWeights:
    """The weights of a model folder on the host, an array at a time.

    Args:
      folder: of the model; what it does not hold is read from its base.

    Raises:
      ValueError: for a folder that cannot be read.
    """

    def __init__(self, folder: Path):
        self.paths: dict[str, Path] = {}
        self.arrays: dict[str, jax.ShapeDtypeStruct] = {}
        # The folder's own arrays go before those of its base.
        for place in (model_folder.root(folder), Path(folder)):
            arrays = read_shapes(place / "weights")
            self.arrays |= arrays
            self.paths |= dict.fromkeys(arrays, place / "weights")

    def read(self, name: str) -> np.ndarray:
        """One array, in its dtype on disk."""
        return read_array(self.paths[name], name)


def _layout(rows: Iterable[Row], weights: StoredWeights) -> Layout:
    """Names, shapes and dtypes of the tensors that `rows` become."""
    layout = {}
    for row in rows:
        array = weights.arrays[row.path]
        shape = array.shape[1:] if row.stacked else array.shape
        for names in row.names:  # transformers' native files join nothing: one name a layer
            layout[names[0]] = (shape[::-1], np.dtype(array.dtype))
    return layout


def _tensors(
    rows: Iterable[Row], read: Callable[[str], np.ndarray]
) -> Iterator[tuple[str, np.ndarray]]:
    for row in rows:
        array = read(row.path)
        for index in range(len(row.names)):
            layer = Row(row.path, row.names[index : index + 1], False, row.layout)
            yield from disassemble(layer, array[index] if row.stacked else array).items()


def _count(layout: Layout, path: Path, done: dict[str, int], report: Callable[[str], None]) -> None:
    size = path.stat().st_size
    done["tensors"] += len(layout)
    done["bytes"] += size
    report(f"{path.name}: {len(layout)} tensors, {size / 1e9:.2f} GB")


def _write_merged(
    folder: Path, config: CoTIRConfig, weights: StoredWeights
) -> Iterator[tuple[Path, Layout]]:
    """Writes the transformer with LoRA in it, in files of at most `FILE_BYTES`."""
    rows = [*transformer.native(config).rows, *bias_rows(config)]
    base_dtype = np.dtype(weights.arrays[rows[0].path].dtype)
    layout = {name: (shape, base_dtype) for name, (shape, _) in _layout(rows, weights).items()}
    tensors = _tensors(rows, lambda path: _merged(path, config, weights).astype(base_dtype))
    files = list(_split(layout))
    index: dict[str, str] = {}
    for number, part in enumerate(files, 1):
        suffix = f"-{number:05d}-of-{len(files):05d}" if len(files) > 1 else ""
        path = folder / f"transformer_merged{suffix}.safetensors"
        write_safetensors(path, part, itertools.islice(tensors, len(part)), MERGED)
        index |= dict.fromkeys(part, path.name)
        yield path, part
    if len(files) > 1:
        total = sum(_nbytes(*entry) for entry in layout.values())
        listing = {"metadata": {"total_size": total}, "weight_map": index}
        path = folder / "transformer_merged.safetensors.index.json"
        path.write_text(json.dumps(listing, indent=1) + "\n")


def _merged(path: str, config: CoTIRConfig, weights: StoredWeights) -> np.ndarray:
    """Reads a base array and folds LoRA into it, a layer at a time."""
    array = weights.read(path)
    if path.endswith(".lora_bias"):
        return np.float32(config.lora_scale) * array.astype(np.float32)
    folded = lora_parts(path, set(weights.arrays)) if config.lora_rank else None
    if not folded:
        return array
    updates = [weights.read(name).astype(np.float32) for name in folded]
    kernel = path.endswith(".kernel")
    if array.ndim == (2 if kernel else 1):
        return merged_layer(array.astype(np.float32), config.lora_scale, updates)
    for index, layer in enumerate(array):
        update = [update[index] for update in updates]
        array[index] = merged_layer(layer.astype(np.float32), config.lora_scale, update)
    return array


def _split(layout: Layout) -> Iterator[Layout]:
    part: Layout = {}
    size = 0
    for name, entry in layout.items():
        nbytes = _nbytes(*entry)
        if part and size + nbytes > FILE_BYTES:
            yield part
            part, size = {}, 0
        part[name] = entry
        size += nbytes
    yield part


def _nbytes(shape: Sequence[int], dtype: np.dtype) -> int:
    return math.prod(shape) * dtype.itemsize
