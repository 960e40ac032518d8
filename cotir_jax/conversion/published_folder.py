"""What published files and folders hold: which parts of a model, known by their tensors' names."""

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

from cotir_jax.conversion.torch_files import Tensors, open_tensors

# A tensor that only this kind of checkpoint has.
_SIGNS = {
    "transformer": r"double_blocks\.0\.img_attn\.qkv\.weight",
    "transformer (diffusers)": r"transformer_blocks\.0\.attn\.to_q\.weight",
    "autoencoder": r"encoder\.down\.0\.block\.0\.norm1\.weight",
    "autoencoder (diffusers)": r"encoder\.down_blocks\.0\.resnets\.0\.norm1\.weight",
    "qwen3": r"(model\.)?layers\.0\.self_attn\.q_norm\.weight",
    "t5": r"encoder\.block\.0\.layer\.0\.SelfAttention\.q\.weight",
    "clip": r"(text_model\.)?encoder\.layers\.0\.self_attn\.q_proj\.weight",
    "cot_adapter": r"cot_adapter\.scale_degradation",
    "lora": r"single_blocks\.0\.linear1\.lora_A\.weight",
}
# A tokenizer is known by the class that `tokenizer_config.json` names, or by a special token.
_TOKENIZER_CLASSES = {"Qwen2": "qwen3", "T5": "t5", "CLIP": "clip"}
_TOKENIZER_TOKENS = {"<|im_start|>": "qwen3", "<|startoftext|>": "clip", "</s>": "t5"}


def _sign_of(tensors: Tensors) -> str | None:
    """Key of `_SIGNS`, None for anything else."""
    for kind, sign in _SIGNS.items():
        if any(re.fullmatch(sign, name) for name in tensors.entries):
            return kind
    return None


def is_diffusers(tensors: Tensors) -> bool:
    """Whether a transformer or an autoencoder has diffusers' names."""
    return (_sign_of(tensors) or "").endswith("(diffusers)")


def find(path: Path) -> dict[str, Tensors]:
    """The parts of a model in a file, a folder, and the folders directly in it.

    Native files, at the top, go before diffusers folders that hold the same.

    Args:
      path: file or folder.

    Returns:
      Checkpoints by kind.

    Raises:
      ValueError: for damaged files, nothing known, or two files for one part in the same folder.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    folders = [path] if path.is_file() else [path, *sorted(p for p in path.iterdir() if p.is_dir())]
    found: dict[str, Tensors] = {}
    for folder in folders:
        here: dict[str, Tensors] = {}
        for file in [folder] if folder.is_file() else _checkpoints(folder):
            tensors = open_tensors(file)
            kind = (_sign_of(tensors) or "").removesuffix(" (diffusers)")
            if not kind:
                continue
            if kind in here:
                raise ValueError(
                    f"{folder}: holds two files for the {kind}, {here[kind].path.name} and "
                    f"{file.name}; name the file itself"
                )
            here[kind] = tensors
        found = here | found
    if not found:
        raise ValueError(
            f"{path}: holds no part of a model that is known here; expected native or diffusers "
            ".safetensors, lora.pt or cot_adapter.pt"
        )
    return found


def _checkpoints(folder: Path) -> Iterator[Path]:
    """Checkpoint files of a folder; an index stands for the files that it lists."""
    listed: set[str] = set()
    for index in sorted(folder.glob("*.safetensors.index.json")):
        yield index
        # What is wrong with a damaged index, `open_tensors` says.
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
            listed |= set(json.loads(index.read_text())["weight_map"].values())
    for file in sorted(folder.iterdir()):
        if file.suffix in (".safetensors", ".pt", ".pth") and file.name not in listed:
            yield file


def find_tokenizers(path: Path) -> dict[str, Path]:
    """Folders with a tokenizer, by the text encoder that they belong to.

    Args:
      path: such a folder, or one that holds some.

    Raises:
      ValueError: for a damaged tokenizer.
    """
    path = Path(path)
    if not path.is_dir():
        return {}
    found: dict[str, Path] = {}
    for folder in [path, *sorted(p for p in path.iterdir() if p.is_dir())]:
        kind = _tokenizer_kind(folder)
        if kind is not None:
            found.setdefault(kind, folder)
    return found


def _tokenizer_kind(folder: Path) -> str | None:
    files = ("tokenizer_config.json", "tokenizer.json", "vocab.json", "special_tokens_map.json")
    try:
        texts = {
            name: (folder / name).read_text(encoding="utf-8")
            for name in files
            if (folder / name).is_file()
        }
        named = str(json.loads(texts.get(files[0], "{}")).get("tokenizer_class"))
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{folder}: damaged tokenizer ({error}); fetch it again") from None
    for start, kind in _TOKENIZER_CLASSES.items():
        if named.startswith(start):
            return kind
    content = "".join(texts.values())
    return next((kind for token, kind in _TOKENIZER_TOKENS.items() if token in content), None)
