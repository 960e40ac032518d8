"""`cotir export-program`: the restore program as a file that needs only jax."""

from __future__ import annotations

import argparse
from pathlib import Path

from cotir_jax.commands.parser import Commands, add_command
from cotir_jax.commands.restore import read_prompt


def add_export_program(commands: Commands) -> None:
    """Adds `cotir export-program`."""
    export = add_command(
        commands,
        "export-program",
        "write the restore program as a file that needs only jax",
        _export_program,
        "cotir export-program --size=512x768 --out=restore.bin",
    )
    export.add_argument(
        "--model-dir", default="nano", help="model folder, or the name of a packaged model"
    )
    export.add_argument("--out", type=Path, required=True, metavar="FILE", help="file to write")
    export.add_argument("--size", default="512x512", help="HEIGHTxWIDTH of the pictures it takes")
    export.add_argument(
        "--prompt",
        help="what is wrong with them, or a .txt file with it (default: a request to restore)",
    )
    export.add_argument("--steps", type=int, help="sampling steps (default: the model's)")
    export.add_argument("--platforms", default="cpu,cuda,tpu", help="where it will run")


def _export_program(args: argparse.Namespace) -> None:
    try:
        height, width = map(int, args.size.split("x"))
    except ValueError:
        raise ValueError(f"--size={args.size}: expected HEIGHTxWIDTH, as 512x768") from None
    prompt = read_prompt(args.prompt)
    from cotir_jax.restoring import export_program, restorer

    written = export_program.export_program(
        restorer.Restorer.load(args.model_dir),
        args.out,
        (height, width),
        prompt or restorer.DEFAULT_PROMPT,
        args.steps,
        args.platforms.split(","),
    )
    print(f"{written / 1e6:.1f} MB -> {args.out}")
