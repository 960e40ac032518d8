"""`cotir explain` and `cotir calibrate`: what was wrong with a picture, and how sure that is."""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def add_explain(commands) -> None:
    """Adds `cotir explain`."""
    explain = commands.add_parser("explain", help="say what is wrong with a picture, as JSON")
    explain.add_argument("source", type=Path, nargs="?", metavar="IN", help="picture")
    explain.add_argument(
        "--jsonl", type=Path, help="a test split's test.jsonl: how often what is named is true"
    )
    explain.add_argument("--model-dir", default="nano", help="model folder")
    explain.set_defaults(run=_explain)


def add_calibrate(commands) -> None:
    """Adds `cotir calibrate`."""
    calibrate = commands.add_parser(
        "calibrate", help="set the thresholds of cotir explain, kept in the model folder"
    )
    calibrate.add_argument(
        "--jsonl", type=Path, required=True, help="test.jsonl of a validation split"
    )
    calibrate.add_argument("--model-dir", default="nano", help="model folder")
    calibrate.set_defaults(run=_calibrate)


def _explain(args: argparse.Namespace) -> None:
    from cotir_jax.explaining import calibration, test_split
    from cotir_jax.images.photo import read_photo
    from cotir_jax.restoring.restorer import Restorer

    if (args.source is None) == (args.jsonl is None):
        raise ValueError("name a picture to explain, or a split with --jsonl")
    photo = read_photo(args.source) if args.source else None
    explainer = Restorer.load(args.model_dir).explainer
    if photo is not None:
        print(json.dumps(explainer(photo.pixels).to_json(), indent=1))
        return
    table = test_split.accuracy(*test_split.explain_split(explainer, args.jsonl))
    print(calibration.format_accuracy(table))


def _calibrate(args: argparse.Namespace) -> None:
    from cotir_jax.explaining import test_split
    from cotir_jax.restoring.restorer import Restorer

    explainer = test_split.calibrate(Restorer.load(args.model_dir).explainer, args.jsonl)
    assert explainer.calibration is not None
    for name, threshold in zip(
        explainer.calibration.names, explainer.calibration.thresholds, strict=True
    ):
        print(f"{name}: named from {threshold:.2f} on")
    print(f"{explainer.calibration.pictures} pictures -> {explainer.model.folder}")
