"""`cotir convert`: published checkpoints to a model folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from cotir_jax.commands.parser import Commands, add_command

_CONVERT_PATHS = {
    "base": "the base model: a native .safetensors file, or a folder in native or diffusers layout",
    "cot-adapter": "cot_adapter.pt or .safetensors (default: found in the base folder)",
    "lora": "lora.pt or .safetensors (default: found in the base folder)",
    "autoencoder": "ae.safetensors, or a vae/ folder (default: found in the base folder)",
    "text-encoder": "folder of Qwen3, or of T5 (default: found in the base folder)",
    "text-encoder-2": "folder of CLIP, for the flux1 family (default: found in the base folder)",
    "tokenizer": "folder of the text encoder's tokenizer (default: found in the base folder)",
    "tokenizer-2": "folder of CLIP's tokenizer (default: found in the base folder)",
}


def add_convert(commands: Commands) -> None:
    """Adds `cotir convert`."""
    convert = add_command(
        commands,
        "convert",
        "turn published checkpoints into a model folder",
        _convert,
        "cotir convert --model=klein-4b --base=FLUX.2-klein-4B/ --out=klein-4b/",
    )
    convert.add_argument("--model", required=True, help="preset, for example klein-4b")
    for name, meaning in _CONVERT_PATHS.items():
        convert.add_argument(f"--{name}", type=Path, help=meaning, required=name == "base")
    convert.add_argument("--out", type=Path, required=True, help="model folder to write")
    convert.add_argument("--merge-lora", action="store_true", help="fold LoRA into the weights")
    convert.add_argument(
        "--overrides", default="", help='preset fields, "hidden_size=256, ..." (default: none)'
    )
    convert.add_argument(
        "--dtype",
        choices=("bfloat16", "float32"),
        help="dtype of base weights (default: the preset's)",
    )


def _convert(args: argparse.Namespace) -> None:
    from cotir_jax.conversion.convert import Paths, convert
    from cotir_jax.models.presets import preset

    paths = Paths(**{name.replace("-", "_"): getattr(args, name.replace("-", "_"))
                     for name in _CONVERT_PATHS})  # fmt: skip
    done = convert(
        preset(args.model, args.overrides),
        paths,
        args.out,
        merge_lora=args.merge_lora,
        dtype=args.dtype,
        report=lambda line: print(line, flush=True),
    )
    print(f"converted {done['tensors']} tensors to {done['bytes'] / 1e9:.2f} GB in {args.out}")
