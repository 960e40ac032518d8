"""Model folders: weights ready to use, an Orbax checkpoint per part, described by `model.json`.

    model.json     sizes of every part, where they come from, digests
    weights/       transformer, CoT adapter and LoRA
    autoencoder/   qwen3/   t5/   clip/      the parts that the model has
    tokenizers/    each text encoder's tokenizer, as `text.tokenizer` reads it

A folder that training wrote may hold only LoRA and adapter, and name the folder ("base") that
everything else is read from.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import Mesh

from cotir_jax import files
from cotir_jax.checkpoints.arrays import read_arrays
from cotir_jax.checkpoints.new_folder import new_folder
from cotir_jax.models import presets
from cotir_jax.models.autoencoder import Autoencoder, AutoencoderConfig, PatchAutoencoder
from cotir_jax.models.lora import AdapterParam
from cotir_jax.models.text_encoders.configs import ENCODERS
from cotir_jax.models.transformer import Transformer
from cotir_jax.parallel.sharding import Rules, shardings
from cotir_jax.text.encoder import TextEncoder
from cotir_jax.text.encoders import POOLED_TOKENS, TextEncoders
from cotir_jax.text.tokenizer import TextTokenizer

# Weights that ship with the package.
PACKAGED = Path(__file__).parent.parent / "weights"

# The option of `cotir convert` that adds a part.
OPTIONS = {
    "autoencoder": "--autoencoder",
    "qwen3": "--text-encoder",
    "t5": "--text-encoder",
    "clip": "--text-encoder-2",
}


def save_model(
    folder: Path, model: Transformer, notes: Mapping[str, Any], base: Path | None = None
) -> None:
    """Writes a model folder, replacing an existing one only once the new one is complete.

    Every process of a run calls it; they share the file system.

    Args:
      folder: path of the model folder.
      model: the model to save.
      notes: kept in `model.json` under "notes": where the weights come from.
      base: the model folder that training started from. If given, only LoRA and adapter
        are stored, in float32; everything else is read from there.
    """
    folder = Path(folder).absolute()
    config = model.config
    variables = flat(nnx.state(model, nnx.Param))
    if base is not None:
        base = root(Path(base).absolute())
        variables = {name: v for name, v in variables.items() if is_trained(v)}
    published = config.lora_rank > 0 or base is not None

    def dtype(variable: nnx.Variable) -> str:
        if not published:
            return "bfloat16"
        return "float32" if is_trained(variable) else config.base_dtype

    arrays = {name: jnp.asarray(v[...], dtype(v)) for name, v in variables.items()}
    described: dict[str, Any] = {
        "model": dataclasses.asdict(config),
        "parts": {
            "weights": {
                "parameters": sum(array.size for array in arrays.values()),
                "bytes": sum(array.nbytes for array in arrays.values()),
                "dtype": dtype(next(iter(variables.values()))),
            }
        },
        "lora": {"dtype": "float32", "merged": config.lora_rank == 0 and config.lora_bias},
        "notes": dict(notes),
    }
    if base is not None:
        described["base"] = str(base)
    with new_folder(folder, replace=True) as temporary:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(temporary / "weights", arrays)
        if jax.process_index() == 0:
            write_description(temporary, described)


def write_description(folder: Path, described: Mapping[str, Any]) -> None:
    """Writes `model.json`."""
    (folder / "model.json").write_text(json.dumps(described, indent=1) + "\n")


def description(folder: Path) -> dict[str, Any]:
    """Reads `model.json`.

    Raises:
      ValueError: when the folder has none, or a damaged one.
    """
    path = Path(folder) / "model.json"
    try:
        described = json.loads(path.read_text())
        presets.rebuild(presets.CoTIRConfig, described["model"])
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(
            f"{folder}: not a model folder (no model.json); cotir convert and training write them"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = files.one_line(error)
        raise ValueError(f"{path}: damaged ({reason}); write the model folder again") from None
    return described


def find(folder: str | Path) -> Path:
    """Path of a model folder; a bare name that is no folder means one shipped with the package."""
    path = Path(folder)
    packaged = PACKAGED / path.name
    bare = path.name == str(folder) and not (path / "model.json").exists()
    return packaged if bare and (packaged.is_dir() or not path.exists()) else path


def load_config(folder: Path) -> presets.CoTIRConfig:
    """Reads the sizes of the model in a folder.

    Raises:
      ValueError: when it is not a model folder.
    """
    return presets.rebuild(presets.CoTIRConfig, description(folder)["model"])


def root(folder: Path) -> Path:
    """The folder that holds the parts that training does not write: this one, or its base.

    Raises:
      ValueError: when the base is missing.
    """
    base = description(folder).get("base")
    if base is None:
        return Path(folder)
    if not (Path(base) / "model.json").is_file():
        raise ValueError(
            f"{base}: the model folder that {folder} was trained from is missing; put it back, "
            f'or write its new place as "base" in {Path(folder) / "model.json"}'
        )
    return root(Path(base))


def load_model(
    folder: Path, mesh: Mesh, rules: Rules, config: presets.CoTIRConfig | None = None
) -> Transformer:
    """Loads the transformer of a model folder onto a mesh; each device reads its own part.

    Args:
      folder: from `save_model` or `cotir convert`.
      mesh: devices that will hold it.
      rules: logical axis -> mesh axis.
      config: the sizes that are expected; by default those of the folder.

    Raises:
      ValueError: for damaged weights, or weights of another model.
    """
    folder = Path(folder)
    stored = load_config(folder)
    config = config or stored
    if differing := _differing(stored, config):
        raise ValueError(
            f"{folder} holds {stored.name} with other sizes than this {config.name}: {differing}"
        )
    structure, state = abstract(lambda: Transformer(config, rngs=nnx.Rngs(0)))
    targets, variables = _targets(state, mesh, rules), flat(state)
    base = root(folder)
    own = {name for name, v in variables.items() if base == folder or is_trained(v)}
    weights = read_arrays(folder / "weights", {name: targets[name] for name in own})
    if base != folder:
        others = {name: target for name, target in targets.items() if name not in own}
        weights |= read_arrays(base / "weights", others)
    return _merge(structure, state, weights)


def load_autoencoder(folder: Path, mesh: Mesh) -> Autoencoder | PatchAutoencoder:
    """Loads the autoencoder of a model folder, replicated on every device.

    Raises:
      ValueError: when the folder lacks it, or it is damaged.
    """
    config = load_config(folder)
    if config.autoencoder == "patch":
        return PatchAutoencoder(config.patch)
    return _load_part(folder, "autoencoder", Autoencoder, AutoencoderConfig, mesh, ())


def load_text_encoders(
    folder: Path, config: presets.CoTIRConfig, mesh: Mesh, rules: Rules, cache_gb: float = 1.0
) -> TextEncoders:
    """Loads the text encoders that a model was trained with.

    Args:
      folder: the model folder; not read for MiniLM, which is part of the package.
      config: the model's sizes.
      mesh: devices that will hold them.
      rules: logical axis -> mesh axis.
      cache_gb: memory for embeddings of texts that come again.

    Raises:
      ValueError: when the folder lacks an encoder or its tokenizer, or it is damaged.
    """
    if config.text_encoder == "minilm":
        return TextEncoders(TextEncoder.minilm(config.text_tokens, cache_gb=cache_gb), None)

    def load(kind: str, tokens: int) -> TextEncoder:
        path = root(folder) / "tokenizers" / kind
        if not path.is_dir():
            option = "--tokenizer-2" if kind == "clip" else "--tokenizer"
            raise ValueError(
                f"{folder}: holds no tokenizer for {kind}; convert the model again with "
                f"{option}=FOLDER"
            )
        tokenizer = TextTokenizer(path, tokens, kind)
        module = _load_part(folder, kind, *ENCODERS[kind], mesh, rules)
        # FLUX.1 reads T5 and CLIP without a padding mask.
        uses_mask = kind == "qwen3"
        return TextEncoder(module, tokenizer, mesh=mesh, cache_gb=cache_gb, uses_mask=uses_mask)

    pooled = load("clip", POOLED_TOKENS) if config.pooled_channels else None
    return TextEncoders(load(config.text_encoder, config.text_tokens), pooled)


def is_trained(variable: nnx.Variable) -> bool:
    """Whether a weight is LoRA's or the adapter's, which training a published model changes."""
    return isinstance(variable, nnx.LoRAParam | AdapterParam)


def abstract(make: Callable[[], nnx.Module]) -> tuple[nnx.GraphDef, nnx.State]:
    """Structure and state of a module with shapes in place of arrays."""
    return jax.eval_shape(lambda: nnx.split(make()))


def flat(state: nnx.State) -> dict[str, nnx.Variable]:
    """Variables by their path, joined by dots."""
    return {".".join(map(str, path)): variable for path, variable in nnx.to_flat_state(state)}


def _load_part(
    folder: Path, part: str, make: Callable[..., Any], config: type, mesh: Mesh, rules: Rules
) -> Any:
    """Loads a part that training does not write, of the sizes in its folder's `model.json`."""
    base = root(folder)
    described = description(base)
    sizes = (described | described.get("text_encoders", {})).get(part)
    if sizes is None:
        raise ValueError(
            f"{base}: holds no {part}; convert the model again with {OPTIONS[part]}=PATH"
        )
    try:
        built: Any = presets.rebuild(config, sizes)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{base / 'model.json'}: damaged ({error}); convert it again") from None
    structure, state = abstract(lambda: make(built, rngs=nnx.Rngs(0)))
    return _merge(structure, state, read_arrays(base / part, _targets(state, mesh, rules)))


def _targets(state: nnx.State, mesh: Mesh, rules: Rules) -> dict[str, jax.ShapeDtypeStruct]:
    placed = jax.tree.map(
        lambda leaf, sharding: leaf.update(sharding=sharding), state, shardings(state, mesh, rules)
    )
    return {name: variable.get_value() for name, variable in flat(placed).items()}


def _merge(structure: nnx.GraphDef, state: nnx.State, weights: Mapping[str, jax.Array]) -> Any:
    for name, variable in flat(state).items():
        variable.set_value(weights[name])
    return nnx.merge(structure, state)


def _differing(stored: presets.CoTIRConfig, config: presets.CoTIRConfig) -> str:
    """Fields that fix shapes or the meaning of weights, where they differ."""
    free = {"name", "dtype", "base_dtype", "remat", "num_steps", "lora_scale", "guidance", "tile"}
    theirs, ours = dataclasses.asdict(stored), dataclasses.asdict(config)
    fields = [name for name in theirs if name not in free and theirs[name] != ours[name]]
    return ", ".join(f"{name}={theirs[name]} there, {ours[name]} here" for name in fields[:4])
