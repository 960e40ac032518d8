"""What all parsers of `cotir` share: help with defaults and an example, errors on one line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any, NoReturn

Commands = Any  # what `add_subparsers` returns; argparse keeps its class private


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line that names the help to read."""

    def error(self, message: str) -> NoReturn:
        """Prints the error on one line and exits with status 2."""
        line = " ".join(message.split())
        print(f"error: {line}; see `{self.prog} --help`", file=sys.stderr)
        sys.exit(2)


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Appends an option's default to its help, unless the text says it in words."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if not action.option_strings or action.required or "default" in text:
            return text
        if action.default is False:
            return f"{text} (default: off)"
        shown = action.default not in (None, argparse.SUPPRESS)
        return f"{text} (default: %(default)s)" if shown else text


def add_command(
    commands: Commands,
    name: str,
    summary: str,
    run: Callable[[argparse.Namespace], None],
    *examples: str,
    details: str = "",
) -> argparse.ArgumentParser:
    """Adds a command, or an action of a command.

    Args:
      commands: where to add it.
      name: what people type.
      summary: one line for the list of commands, lower case, without a full stop.
      run: called with the parsed arguments.
      examples: complete command lines, shown at the end of the help.
      details: further lines of help.

    Returns:
      Its parser, to add arguments to.
    """
    parser = commands.add_parser(
        name,
        help=summary,
        description="\n".join(filter(None, (f"{summary[0].upper()}{summary[1:]}.", details))),
        epilog="\n  ".join(("example:" if len(examples) == 1 else "examples:", *examples)),
        formatter_class=HelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def add_actions(
    commands: Commands, name: str, summary: str, *examples: str
) -> argparse._SubParsersAction:
    """Adds a command that has actions; without one it prints its help."""
    parser = add_command(commands, name, summary, lambda _: parser.print_help(), *examples)
    return parser.add_subparsers(title="actions", metavar="ACTION")
