"""`cotir`: the parser of all commands; each command is a module in `commands/`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from cotir_jax import __version__, files
from cotir_jax.commands import (
    bench,
    calibrate,
    convert,
    demo,
    evaluate,
    explain,
    export,
    export_program,
    quickstart,
    restore,
    verify,
)
from cotir_jax.commands.parser import Parser

# No command imports jax before its arguments are known to be right: help and errors are quick.
_GROUPS = {
    "start here": (quickstart.add_quickstart,),
    "photos": (restore.add_restore, explain.add_explain, demo.add_demo),
    "models": (
        convert.add_convert,
        export.add_export,
        export_program.add_export_program,
        calibrate.add_calibrate,
        verify.add_verify,
    ),
    "benchmarks": (bench.add_bench, evaluate.add_evaluate),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one command; exits with 0 only on success."""
    args = make_parser().parse_args(argv)
    with files.errors_on_one_line(args.debug):
        args.run(args)


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of `cotir`, whose help lists the commands in groups."""
    parser = Parser(
        "cotir",
        usage="cotir [--debug] COMMAND ...",
        description="Restores photos that suffer from any mix of degradations.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"cotir {__version__}")
    parser.add_argument("--debug", action="store_true", help="show tracebacks (default: off)")
    parser.set_defaults(run=lambda _: parser.print_help())
    # argparse cannot group commands: the list is written below, from their parsers.
    commands = parser.add_subparsers(prog="cotir", metavar="COMMAND", help=argparse.SUPPRESS)
    lines = []
    for group, adders in _GROUPS.items():
        known = set(commands.choices)
        for add in adders:
            add(commands)
        lines += ["", f"{group}:"]
        for name in (name for name in commands.choices if name not in known):
            summary = commands.choices[name].description.splitlines()[0]
            lines.append(f"  {name:<16}{summary.removesuffix('.')}")
    lines += [
        "",
        "`cotir COMMAND --help` explains a command. Training is another program:",
        "  python -m cotir_jax.main --config=nano --workdir=/tmp/nano",
        "",
        "example:",
        "  cotir restore photo.jpg --out=restored.png",
    ]
    parser.epilog = "\n".join(lines[1:])
    return parser


if __name__ == "__main__":
    main()
