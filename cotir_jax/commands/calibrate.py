"""`cotir calibrate`: sets the thresholds of `cotir explain` on a validation split."""

from __future__ import annotations

import argparse
from pathlib import Path

from cotir_jax.commands.parser import Commands, add_command


def add_calibrate(commands: Commands) -> None:
    """Adds `cotir calibrate`."""
    calibrate = add_command(
        commands,
        "calibrate",
        "set the thresholds of `cotir explain`, kept in the model folder",
        _calibrate,
        "cotir calibrate --model-dir=runs/nano/model --jsonl=validation/test/test.jsonl",
    )
    calibrate.add_argument(
        "--jsonl", type=Path, required=True, help="test.jsonl of a validation split"
    )
    calibrate.add_argument(
        "--model-dir", default="nano", help="model folder, or the name of a packaged model"
    )


def _calibrate(args: argparse.Namespace) -> None:
    if not args.jsonl.is_file():
        raise ValueError(f"{args.jsonl}: no such file; name the test.jsonl of a validation split")
    from cotir_jax.checkpoints.loaded_model import LoadedModel
    from cotir_jax.explaining import explainer, test_split

    model = LoadedModel.load(args.model_dir)
    loaded = explainer.Explainer.load(model)
    assert model.folder is not None
    fitted = test_split.calibrate(loaded, args.jsonl)
    explainer.save_file(model.folder / explainer.FILE_NAME, loaded.read_out, fitted)
    for name, threshold in zip(fitted.names, fitted.thresholds, strict=True):
        print(f"{name}: named from {threshold:.2f} on")
    print(f"{fitted.pictures} pictures -> {model.folder}")
