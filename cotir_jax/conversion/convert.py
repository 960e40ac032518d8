"""Published checkpoints to a model folder: everything is checked, then streamed."""

import dataclasses
import functools
import math
import shutil
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from cotir_jax.checkpoints import model_folder
from cotir_jax.conversion import parts
from cotir_jax.conversion.fresh import FreshWeights
from cotir_jax.conversion.merge_lora import (
    MERGED,
    bias_rows,
    lora_parts,
    merged_config,
    merged_layer,
)
from cotir_jax.conversion.name_tables import assemble_layer
from cotir_jax.conversion.parts import Part
from cotir_jax.conversion.published_folder import find, find_tokenizers
from cotir_jax.conversion.streaming import Streamed, save_streamed
from cotir_jax.conversion.torch_files import DTYPES, Tensors
from cotir_jax.models.presets import CoTIRConfig
from cotir_jax.text.published_tokenizer import read_tokenizer
from cotir_jax.text.tokenizer import BakedTokenizer

_FLOAT32 = np.dtype(np.float32)


class Paths(NamedTuple):
    """What the user names; `base` may be a folder that holds the others too."""

    base: Path
    lora: Path | None = None
    cot_adapter: Path | None = None
    autoencoder: Path | None = None
    text_encoder: Path | None = None
    text_encoder_2: Path | None = None
    tokenizer: Path | None = None
    tokenizer_2: Path | None = None


def convert(
    config: CoTIRConfig,
    paths: Paths,
    out: Path,
    *,
    merge_lora: bool = False,
    dtype: str | None = None,
    report: Callable[[str], None] = print,
) -> dict[str, int]:
    """Writes a model folder from published files.

    Without LoRA or adapter files, LoRA starts as at the beginning of training and the adapter with
    zero scales: the base model.

    Args:
      config: the model that the files should hold.
      paths: the files.
      out: the model folder, which must not exist.
      merge_lora: fold LoRA into the base weights.
      dtype: of base weights, text encoders and their computation; by default the config's own and
        the text encoders' `config.json`.
      report: called with a line for each part, found or missing.

    Returns:
      Numbers of source tensors that were used and of bytes that were written.

    Raises:
      ValueError: for files that are missing, damaged, or of another model. Nothing is written then.
      OSError: when the folder cannot be written.
    """
    if dtype:
        config = dataclasses.replace(config, base_dtype=dtype, dtype=dtype)
    if Path(out).exists():
        raise ValueError(f"{out}: exists already; name another output folder or remove it")
    found = find_parts(config, paths)
    if MERGED.items() <= found["transformer"].metadata.items():
        # Its LoRA, scale included, is in it: a separate one would count twice.
        found.pop("lora", None)
        config = dataclasses.replace(merged_config(config), lora_scale=1.0)
    if merge_lora and "lora" not in found:
        raise ValueError(f"--merge-lora: no lora.pt in {paths.base}; name it with --lora=FILE")
    chosen = plan(config, found, dtype)
    parts.check(chosen)
    tokenizers = _read_tokenizers(config, paths, chosen)
    arrays = {part.name: streamed_arrays(part, merge_lora) for part in chosen}
    total = sum(array.nbytes for part in arrays.values() for array in part.values())
    _check_space(Path(out), total)
    _report_parts(config, chosen, tokenizers, report)

    lora_dtype = config.base_dtype
    if "lora" in found:
        lora_dtype = DTYPES[next(iter(found["lora"].entries.values())).dtype].name
    described: dict[str, Any] = {
        "model": dataclasses.asdict(merged_config(config) if merge_lora else config),
        "text_encoders": {},
        "parts": {},
        "lora": {"dtype": lora_dtype, "merged": merge_lora or config.lora_rank == 0},
        "notes": {"written by": "cotir convert"},
    }
    with model_folder.new_folder(Path(out)) as folder:
        bar = tqdm(total=total, unit="B", unit_scale=True, disable=not sys.stderr.isatty())
        for part in chosen:
            digest = save_streamed(folder / part.name, arrays[part.name], bar.update)
            described["parts"][part.name] = _part_description(part, arrays[part.name], digest)
            if part.name == "autoencoder":
                described["autoencoder"] = dataclasses.asdict(part.config)
            elif part.name != "weights":
                described["text_encoders"][part.name] = dataclasses.asdict(part.config)
        bar.close()
        for kind, (_, tokenizer) in tokenizers.items():
            tokenizer.save(folder / "tokenizers" / kind)
        model_folder.write_description(folder, described)
    used = sum(len(row.tensors) for part in chosen for row, _ in part.rows)
    return {"tensors": used, "bytes": total}


def find_parts(config: CoTIRConfig, paths: Paths) -> dict[str, Tensors]:
    """Checkpoints by kind: those in the base folder, and over them what was named on its own.

    Raises:
      ValueError: when a path does not hold what it is named for, or there is no transformer.
    """
    encoders = text_kinds(config)
    named: list[tuple[str, Path | None, Sequence[str]]] = [
        ("--lora", paths.lora, ["lora"]),
        ("--cot-adapter", paths.cot_adapter, ["cot_adapter"]),
        ("--autoencoder", paths.autoencoder, ["autoencoder"]),
        ("--text-encoder", paths.text_encoder, encoders),
        ("--text-encoder-2", paths.text_encoder_2, encoders),
    ]
    found = find(paths.base)
    for option, path, kinds in named:
        if path is None:
            continue
        held = find(path)
        matching = {kind: held[kind] for kind in kinds if kind in held}
        if not matching:
            raise ValueError(
                f"{option}={path}: holds {' and '.join(held)}, expected {' or '.join(kinds)}"
            )
        found |= matching
    if "transformer" not in found:
        raise ValueError(
            f"{paths.base}: holds {' and '.join(found)}, no transformer; expected the "
            ".safetensors of the base model"
        )
    return found


def text_kinds(config: CoTIRConfig) -> list[str]:
    """The text encoders that a model needs."""
    return [config.text_encoder] + ["clip"] * bool(config.pooled_channels)


def plan(config: CoTIRConfig, found: Mapping[str, Tensors], dtype: str | None = None) -> list[Part]:
    """The parts that can be written from what was found.

    Raises:
      ValueError: for parts that do not belong to the model.
    """
    chosen = [parts.transformer_part(config, found)]
    if "autoencoder" in found:
        chosen.append(parts.autoencoder_part(config, found["autoencoder"]))
    for kind in text_kinds(config):
        if kind in found:
            chosen.append(parts.text_part(config, kind, found[kind], dtype))
    return chosen


class _Buffers(threading.local):
    """Each thread's memory for a tensor and for a layer, used again.

    Fresh pages cost more time than reading and transposing into them.
    """

    def __init__(self) -> None:
        self.held: dict[str, np.ndarray] = {}

    def take(self, name: str, size: int) -> np.ndarray:
        if name not in self.held or self.held[name].nbytes < size:
            self.held.pop(name, None)
            self.held[name] = np.empty(size, np.uint8)
        return self.held[name]


def streamed_arrays(part: Part, merge_lora: bool = False) -> dict[str, Streamed]:
    """The arrays of a part, each made layer by layer from its files."""
    rows = {row.path: (row, file) for row, file in part.rows}
    lora = {path for path, (_, file) in rows.items() if file.kind == "lora"}
    kept = {row.path for row in bias_rows(part.config)} if lora else set()
    buffers = _Buffers()

    def layer(path: str, dtype: np.dtype, index: int, own: bool = False) -> np.ndarray:
        """Builds a layer; with `own`, in memory that the next call does not use again."""
        row, file = rows[path]
        shape = tuple(part.variables[path].shape)
        shape = shape[1:] if row.stacked else shape
        read = file.tensors.read
        if own:
            return assemble_layer(row, index, read, shape, dtype)
        into = lambda name: read(name, buffers.take("tensor", file.tensors.nbytes(name)))  # noqa: E731
        buffer = buffers.take("layer", math.prod(shape) * dtype.itemsize)
        return assemble_layer(row, index, into, shape, dtype, buffer)

    def merged(path: str, folded: tuple[str, ...], dtype: np.dtype, index: int) -> np.ndarray:
        base = layer(path, _FLOAT32, index, own=True)
        updates = [layer(name, _FLOAT32, index, own=True) for name in folded]
        return merged_layer(base, part.config.lora_scale, updates).astype(dtype, copy=False)

    arrays = {}
    for path, (row, file) in rows.items():
        if merge_lora and file.kind == "lora" and path not in kept:
            continue  # it is in the base weights now
        dtype = np.dtype(part.variables[path].dtype)
        if file.kind in ("lora", "cot_adapter"):  # stay as they are on disk
            dtype = DTYPES[file.tensors.entries[row.names[0][0]].dtype]
        folded = lora_parts(path, lora) if merge_lora and file.kind == "transformer" else None
        make = functools.partial(layer, path, dtype)
        if folded:
            make = functools.partial(merged, path, folded, dtype)
        shape = tuple(part.variables[path].shape)
        arrays[path] = Streamed(shape, dtype, row.stacked, make)
    return arrays | _fresh_arrays(part)


def _fresh_arrays(part: Part) -> dict[str, Streamed]:
    if not part.fresh:
        return {}
    shapes = {row.path: tuple(part.variables[row.path].shape) for row in part.fresh}
    layers = {row.path: shapes[row.path][row.stacked :] for row in part.fresh}
    dtype = np.dtype(part.config.base_dtype)
    fresh = FreshWeights(part.config, layers, dtype)
    return {
        row.path: Streamed(
            shapes[row.path], dtype, row.stacked,
            functools.partial(fresh.layer, row.path, stacked=row.stacked),
        )
        for row in part.fresh
    }  # fmt: skip


def _read_tokenizers(
    config: CoTIRConfig, paths: Paths, chosen: Sequence[Part]
) -> dict[str, tuple[Path, BakedTokenizer]]:
    """Published folder and tokenizer by text encoder."""
    kinds = text_kinds(config)
    found: dict[str, Path] = {}
    for path in (paths.base, paths.text_encoder, paths.text_encoder_2):
        if path is not None:
            found |= find_tokenizers(path)
    for path, kind in ((paths.tokenizer, kinds[0]), (paths.tokenizer_2, "clip")):
        if path is not None:
            known = find_tokenizers(path)
            found |= {k: known[k] for k in kinds if k in known} or {kind: path}
    sizes = {part.name: part.config for part in chosen}
    read = {}
    for kind in kinds:
        if kind not in found:
            continue
        tokenizer = read_tokenizer(found[kind], kind)
        if kind in sizes and tokenizer.vocab_size > sizes[kind].vocab_size:
            raise ValueError(
                f"{found[kind]}: a tokenizer of {tokenizer.vocab_size} tokens, the {kind} text "
                f"encoder has {sizes[kind].vocab_size}; pass the tokenizer that belongs to it"
            )
        read[kind] = found[kind], tokenizer
    return read


def _check_space(out: Path, total: int) -> None:
    parent = next(p for p in out.absolute().parents if p.exists())
    free = shutil.disk_usage(parent).free
    if free < total:
        raise ValueError(
            f"{out}: needs {total / 1e9:.1f} GB, {parent} has {free / 1e9:.1f} GB free; free some "
            "space or name a folder on another disk"
        )


def _report_parts(
    config: CoTIRConfig,
    chosen: Sequence[Part],
    tokenizers: Mapping[str, tuple[Path, BakedTokenizer]],
    report: Callable[[str], None],
) -> None:
    for part in chosen:
        for file in part.files:
            size = sum(path.stat().st_size for path in file.tensors.files)
            count = len(file.tensors.entries)
            report(f"{file.kind}: {file.tensors.path} ({count} tensors, {size / 1e9:.2f} GB)")
    for kind, (folder, _) in tokenizers.items():
        report(f"tokenizer of {kind}: {folder}")
    held = {file.kind for part in chosen for file in part.files}
    if "lora" not in held and config.lora_rank:
        report("lora: none, starts as at the beginning of training (--lora=FILE)")
    if "cot_adapter" not in held:
        report("cot_adapter: none, starts with zero scales (--cot-adapter=FILE)")
    kinds = text_kinds(config)
    for kind in ["autoencoder", *kinds]:
        if kind not in held:
            report(f"{kind}: none, restoring needs it ({model_folder.OPTIONS[kind]}=PATH)")
    for kind in kinds:
        if kind not in tokenizers:
            report(f"tokenizer of {kind}: none, restoring needs it (--tokenizer=FOLDER)")


def _part_description(part: Part, arrays: Mapping[str, Streamed], digest: str) -> dict[str, Any]:
    files = sorted({path for file in part.files for path in file.tensors.files})
    return {
        "sources": [{"file": str(path.absolute()), "bytes": path.stat().st_size} for path in files],
        "parameters": sum(int(np.prod(array.shape, dtype=np.int64)) for array in arrays.values()),
        "bytes": sum(array.nbytes for array in arrays.values()),
        "dtype": max(arrays.values(), key=lambda array: array.nbytes).dtype.name,
        "digest": digest,
    }
