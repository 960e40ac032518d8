"""`cotir verify`: reproduces the release's golden numbers on this machine's backend."""

from __future__ import annotations

import argparse
from pathlib import Path

from cotir_jax.commands.parser import Commands, add_command


def add_verify(commands: Commands) -> None:
    """Adds `cotir verify`."""
    verify = add_command(
        commands,
        "verify",
        "reproduce the release's golden numbers on this machine",
        _verify,
        "cotir verify golden/",
    )
    verify.add_argument("folder", type=Path, help="folder of golden numbers, laid out as published")


def _verify(args: argparse.Namespace) -> None:
    if not args.folder.is_dir():
        raise ValueError(f"{args.folder}: no such folder; name a folder of golden numbers")
    from cotir_jax.commands import golden_checks

    failed = 0
    for check in golden_checks.verify(args.folder):
        failed += not check.passed
        verdict = "PASS" if check.passed else "FAIL"
        print(f"{verdict} {check.name}: relative error {check.error:.2e} (limit {check.limit:.0e})")
    if failed:
        raise ValueError(f"{failed} checks failed")
