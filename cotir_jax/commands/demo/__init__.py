"""`cotir demo`: a web page that restores pictures."""

from __future__ import annotations

import argparse

from cotir_jax.commands.parser import Commands, add_command


def add_demo(commands: Commands) -> None:
    """Adds `cotir demo`."""
    demo = add_command(
        commands,
        "demo",
        "serve a web page that restores pictures, on this machine",
        _demo,
        "cotir demo --port=7860",
    )
    demo.add_argument(
        "--model-dir", default="nano", help="model folder, or the name of a packaged model"
    )
    demo.add_argument("--host", default="127.0.0.1", help="address to listen at")
    demo.add_argument("--port", type=int, default=7860, help="port to listen at")
    demo.add_argument(
        "--max-megapixels", type=float, default=24, help="refuse larger pictures, in megapixels"
    )
    demo.add_argument(
        "--max-megabytes", type=float, default=64, help="refuse larger uploads, in megabytes"
    )


def _demo(args: argparse.Namespace) -> None:
    from cotir_jax.commands.compilation_cache import keep_compiled_programs
    from cotir_jax.commands.demo import server

    keep_compiled_programs()
    server.serve(args.model_dir, args.host, args.port, args.max_megapixels, args.max_megabytes)
