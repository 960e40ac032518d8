"""`cotir explain`: what was wrong with a picture, and how sure that is."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from cotir_jax.commands.parser import Commands, add_command


def add_explain(commands: Commands) -> None:
    """Adds `cotir explain`."""
    explain = add_command(
        commands,
        "explain",
        "say what is wrong with a picture, as JSON",
        _explain,
        "cotir explain photo.jpg",
        "cotir explain --jsonl=bench/test/test.jsonl",
    )
    explain.add_argument("source", type=Path, nargs="?", metavar="IN", help="picture")
    explain.add_argument(
        "--jsonl",
        type=Path,
        help="a test split's test.jsonl, to print how often what is named is true "
        "(default: explain IN)",
    )
    explain.add_argument(
        "--model-dir", default="nano", help="model folder, or the name of a packaged model"
    )


def _explain(args: argparse.Namespace) -> None:
    if (args.source is None) == (args.jsonl is None):
        raise ValueError("name a picture to explain, or a split with --jsonl")
    if args.jsonl is not None and not args.jsonl.is_file():
        raise ValueError(f"{args.jsonl}: no such file; name the test.jsonl of a test split")
    from cotir_jax.images.photo import read_photo

    photo = read_photo(args.source) if args.source else None
    from cotir_jax.checkpoints.loaded_model import LoadedModel
    from cotir_jax.explaining import calibration, test_split
    from cotir_jax.explaining.explainer import Explainer

    explainer = Explainer.load(LoadedModel.load(args.model_dir))
    if photo is not None:
        print(json.dumps(explainer(photo.pixels).to_json(), indent=1))
        return
    table = test_split.accuracy(*test_split.explain_split(explainer, args.jsonl))
    print(calibration.format_accuracy(table))
