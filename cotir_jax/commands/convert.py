"""`cotir convert` and `cotir export`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

_CONVERT_PATHS = {
    "base": "the base model: a native .safetensors file, or a folder in native or diffusers layout",
    "cot-adapter": "cot_adapter.pt or .safetensors (default: found in the base folder)",
    "lora": "lora.pt or .safetensors (default: found in the base folder)",
    "autoencoder": "ae.safetensors, or a vae/ folder (default: found in the base folder)",
    "text-encoder": "folder of Qwen3, or of T5 (default: found in the base folder)",
    "text-encoder-2": "folder of CLIP, for the flux1 family",
    "tokenizer": "folder of the text encoder's tokenizer",
    "tokenizer-2": "folder of CLIP's tokenizer",
}


def add_convert(commands: Any) -> None:
    """Adds `cotir convert` to the commands."""
    convert = commands.add_parser("convert", help="published checkpoints to a model folder")
    convert.add_argument("--model", required=True, help="preset, for example klein-4b")
    for name, meaning in _CONVERT_PATHS.items():
        convert.add_argument(f"--{name}", type=Path, help=meaning, required=name == "base")
    convert.add_argument("--out", type=Path, required=True, help="model folder to write")
    convert.add_argument("--merge-lora", action="store_true", help="fold LoRA into the weights")
    convert.add_argument("--overrides", default="", help='preset fields, "hidden_size=256, ..."')
    convert.add_argument("--dtype", choices=("bfloat16", "float32"), help="of base weights")
    convert.set_defaults(run=_convert)


def add_export(commands: Any) -> None:
    """Adds `cotir export` to the commands."""
    export = commands.add_parser("export", help="LoRA and adapter back to PyTorch files")
    export.add_argument("--model-dir", type=Path, required=True, help="model folder")
    export.add_argument("--out", type=Path, required=True, help="folder to write")
    export.add_argument("--format", choices=("pt", "safetensors"), default="pt")
    export.add_argument(
        "--merged", action="store_true", help="also the transformer with LoRA folded in"
    )
    export.set_defaults(run=_export)


def _convert(args: argparse.Namespace) -> None:
    from cotir_jax.conversion.convert import Paths, convert
    from cotir_jax.models.presets import preset
    from cotir_jax.text.tokenizer import TextTokenizer

    paths = Paths(**{name.replace("-", "_"): getattr(args, name.replace("-", "_"))
                     for name in _CONVERT_PATHS})  # fmt: skip
    done = convert(
        preset(args.model, args.overrides),
        paths,
        args.out,
        merge_lora=args.merge_lora,
        dtype=args.dtype,
        # Room for Qwen3's chat template.
        check_tokenizer=lambda folder, kind: TextTokenizer(folder, 77, kind).vocab_size,
        report=lambda line: print(line, flush=True),
    )
    print(f"converted {done['tensors']} tensors to {done['bytes'] / 1e9:.2f} GB in {args.out}")


def _export(args: argparse.Namespace) -> None:
    from cotir_jax.conversion.export import export

    done = export(
        args.model_dir, args.out, file_format=args.format, merged=args.merged, report=print
    )
    print(f"exported {done['tensors']} tensors, {done['bytes'] / 1e9:.2f} GB, to {args.out}")
