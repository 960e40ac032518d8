"""`cotir export`: trained LoRA and adapter back to PyTorch files with the release's names."""

from __future__ import annotations

import argparse
from pathlib import Path

from cotir_jax.commands.parser import Commands, add_command


def add_export(commands: Commands) -> None:
    """Adds `cotir export`."""
    export = add_command(
        commands,
        "export",
        "write trained LoRA and adapter as PyTorch files",
        _export,
        "cotir export --model-dir=runs/klein/model --out=exported/",
    )
    export.add_argument("--model-dir", type=Path, required=True, help="model folder")
    export.add_argument("--out", type=Path, required=True, help="folder to write")
    export.add_argument(
        "--format", choices=("pt", "safetensors"), default="pt", help="kind of files"
    )
    export.add_argument(
        "--merged", action="store_true", help="also write the transformer with LoRA folded in"
    )


def _export(args: argparse.Namespace) -> None:
    from cotir_jax.conversion.export import export

    done = export(
        args.model_dir, args.out, file_format=args.format, merged=args.merged, report=print
    )
    print(f"exported {done['tensors']} tensors, {done['bytes'] / 1e9:.2f} GB, to {args.out}")
