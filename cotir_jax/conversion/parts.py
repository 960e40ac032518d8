"""The parts of a model folder: which published tensors fill them, checked before any is read."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from flax import nnx

from cotir_jax.checkpoints import model_folder
from cotir_jax.conversion import published_configs
from cotir_jax.conversion.merge_lora import bias_rows
from cotir_jax.conversion.name_tables import Row, Table, account
from cotir_jax.conversion.names import adapter, autoencoder, text, transformer
from cotir_jax.conversion.published_folder import is_diffusers
from cotir_jax.conversion.torch_files import Tensors
from cotir_jax.models.autoencoder import AUTOENCODERS, Autoencoder
from cotir_jax.models.presets import PRESETS, CoTIRConfig
from cotir_jax.models.text_encoders.configs import ENCODERS
from cotir_jax.models.transformer import Transformer
from cotir_jax.text.published_tokenizer import read_json

_FLOATS = ("F64", "F32", "F16", "BF16")
# A text encoder's kind -> what reads its `config.json`, and its names.
_TEXT: dict[str, tuple[Callable[[Mapping[str, Any]], Any], Callable[..., Table]]] = {
    "qwen3": (published_configs.qwen3, text.qwen3),
    "t5": (published_configs.t5, text.t5),
    "clip": (published_configs.clip, text.clip),
}


class File(NamedTuple):
    """A published checkpoint and the names that it should hold.

    Attributes:
      kind: "transformer", "autoencoder", "qwen3", "t5", "clip", "lora" or "cot_adapter".
      table: its names.
      tensors: what it holds.
    """

    kind: str
    table: Table
    tensors: Tensors


@dataclasses.dataclass(frozen=True)
class Part:
    """One checkpoint of a model folder.

    Attributes:
      name: its folder: "weights", "autoencoder", "qwen3", "t5" or "clip".
      config: sizes, a dataclass.
      files: where its arrays come from.
      variables: abstract, by path.
      fresh: rows whose files are absent: these arrays start as training does.
    """

    name: str
    config: Any
    files: Sequence[File]
    variables: Mapping[str, nnx.Variable]
    fresh: Sequence[Row] = ()

    @property
    def rows(self) -> list[tuple[Row, File]]:
        """Rows of the name tables, each with its file."""
        return [(row, file) for file in self.files for row in file.table.rows]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each array by path."""
        return {path: tuple(variable.shape) for path, variable in self.variables.items()}


def transformer_part(config: CoTIRConfig, found: Mapping[str, Tensors]) -> Part:
    """Transformer, LoRA and adapter; the last two may be absent."""
    files = [
        File(kind, transformer_table(config, kind, found[kind]), found[kind])
        for kind in ("transformer", "lora", "cot_adapter")
        if kind in found
    ]
    absent = [adapter.lora(config)] if "lora" not in found and config.lora_rank else []
    absent += [adapter.cot_adapter(config)] if "cot_adapter" not in found else []
    fresh = [row for table in absent for row in table.rows]
    variables = _variables(lambda: Transformer(config, rngs=nnx.Rngs(0)))
    return Part("weights", config, files, variables, fresh)


def transformer_table(config: CoTIRConfig, kind: str, tensors: Tensors) -> Table:
    """Names of one of the three files of a CoTIR, in the spelling that the file has."""
    if kind == "lora":
        return adapter.lora(config)
    if kind == "cot_adapter":
        return adapter.cot_adapter(config)
    table = (transformer.diffusers if is_diffusers(tensors) else transformer.native)(config)
    if config.lora_bias:  # a transformer file that `cotir export --merged` wrote
        return Table([*table.rows, *bias_rows(config)], table.unneeded)
    return table


def _variables(make: Callable[[], nnx.Module]) -> dict[str, nnx.Variable]:
    """Abstract variables of a module by path."""
    return model_folder.flat(model_folder.abstract(make)[1])


def autoencoder_part(config: CoTIRConfig, tensors: Tensors) -> Part:
    """The autoencoder; its sizes are from the `config.json` next to it, or the release's.

    Raises:
      ValueError: for an autoencoder that does not belong to the model.
    """
    path = tensors.path.parent / "config.json"
    fields = read_json(path)
    try:
        described = "_class_name" in fields or "ch_mult" in fields
        sizes = (
            published_configs.autoencoder(fields) if described else AUTOENCODERS[config.autoencoder]
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    channels = 4 * sizes.latent_channels
    if sizes.kind != config.autoencoder or channels != config.in_channels:
        raise ValueError(
            f"{tensors.path}: a {sizes.kind} autoencoder with {channels} channels per token; "
            f"{config.name} needs {config.autoencoder} with {config.in_channels}"
        )
    names = autoencoder.diffusers if is_diffusers(tensors) else autoencoder.native
    file = File("autoencoder", names(sizes), tensors)
    variables = _variables(lambda: Autoencoder(sizes, rngs=nnx.Rngs(0)))
    return Part("autoencoder", sizes, [file], variables)


def text_part(config: CoTIRConfig, kind: str, tensors: Tensors, dtype: str | None) -> Part:
    """A text encoder; its sizes are from the `config.json` next to it.

    Raises:
      ValueError: without one, or for an encoder that does not belong to the model.
    """
    path = tensors.path.parent / "config.json"
    fields = read_json(path)
    if not fields:
        raise ValueError(f"{path}: not there; fetch it too, it holds the text encoder's sizes")
    read_sizes, names = _TEXT[kind]
    try:
        # Multimodal CLIP folders have the text encoder's fields one level below.
        sizes = read_sizes(fields.get("text_config") or fields)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if dtype:
        sizes = dataclasses.replace(sizes, param_dtype=dtype, dtype=dtype)
    width = sizes.hidden_size if kind == "clip" else sizes.width
    expected = config.pooled_channels if kind == "clip" else config.text_channels
    if width != expected:
        raise ValueError(
            f"{tensors.path}: a {kind} text encoder of width {width}, {config.name} needs "
            f"{expected}; pass the text encoder that belongs to it"
        )
    make, _ = ENCODERS[kind]
    file = File(kind, names(sizes, tensors.entries), tensors)
    return Part(kind, sizes, [file], _variables(lambda: make(sizes, rngs=nnx.Rngs(0))))


def check(parts: Sequence[Part]) -> None:
    """Every tensor used once or unneeded by rule, every array filled once, shapes equal.

    Raises:
      ValueError: one line with the first problems of each file and how many there are.
    """
    lines, count = [], 0
    for part in parts:
        targets = part.shapes
        filled = [row.path for row in part.fresh]
        for file in part.files:
            problems = account(file.table, file.tensors.shapes, targets)
            hint = _hint(file) if problems and part.name == "weights" else ""
            problems += _dtype_problems(file)
            filled += [row.path for row in file.table.rows]
            if problems:
                count += len(problems)
                more = "; ..." if len(problems) > 3 else ""
                lines.append(f"{file.tensors.path}: {'; '.join(problems[:3])}{more}{hint}")
        twice = {path for path in filled if filled.count(path) > 1}
        unfilled = set(targets) - set(filled)
        for what, paths in (("filled twice", twice), ("not filled", unfilled)):
            count += len(paths)
            lines += [f"{part.name}: {what}: {', '.join(sorted(paths)[:3])}"] if paths else []
    if count:
        raise ValueError(f"{count} tensors do not fit, nothing was written: {' | '.join(lines)}")


def _dtype_problems(file: File) -> list[str]:
    entries, problems = file.tensors.entries, []
    for row in file.table.rows:
        names = [name for name in row.tensors if name in entries]
        dtypes = {entries[name].dtype for name in names}
        wrong = [name for name in names if entries[name].dtype not in _FLOATS]
        if wrong:
            dtype = entries[wrong[0]].dtype
            problems.append(f"{wrong[0]} is {dtype}, expected {' or '.join(_FLOATS)}")
        elif len(dtypes) > 1 and file.kind in ("lora", "cot_adapter"):
            problems.append(f"{names[0]} and its like in other layers are {sorted(dtypes)}")
    return problems


def _hint(file: File) -> str:
    """Names the published model that the file does fit."""
    for name, config in PRESETS.items():
        if config.lora_rank == 0:
            continue
        part = transformer_part(config, {file.kind: file.tensors})
        if not account(part.files[0].table, file.tensors.shapes, part.shapes):
            return f" (these are {name}'s sizes: --model={name})"
    return ""
