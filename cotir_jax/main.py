"""Training from a config: `python -m cotir_jax.main --config=configs/nano.py --workdir=W`."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from pathlib import Path

import jax
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags
from tqdm import tqdm

from cotir_jax import errors, evaluate, restore, run_config, training_loop
from cotir_jax.bench.build import build_bench
from cotir_jax.pictures import contact_sheet, load_picture, save_picture

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, e.g. configs/nano.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, events, results.")
_DEBUG = flags.DEFINE_bool("debug", False, "Show tracebacks.")
flags.mark_flags_as_required(["config", "workdir"])


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    logging.getLogger("cotir_jax").setLevel(logging.INFO)
    absl_logging.set_verbosity(absl_logging.WARNING)  # the libraries' own messages
    with errors.one_line(_DEBUG.value):
        config, workdir = _CONFIG.value, Path(_WORKDIR.value)
        start = time.monotonic()
        run_config.check_config(config)
        data_dir = Path(config.data.dir) if config.data.dir else build_data(config, workdir)
        try:
            result = training_loop.run_training(config, workdir, data_dir)
        except training_loop.Interrupted as interrupted:
            print(json.dumps({"interrupted": str(interrupted)}))
            sys.exit(0)
        if config.evaluate.enabled and jax.process_index() == 0:
            result |= evaluate_run(config, workdir, data_dir)
        result["seconds"] = round(time.monotonic() - start, 1)
        print(json.dumps(result))


def build_data(config, workdir: Path) -> Path:
    """Builds the benchmark of `config.bench` in the workdir, once."""
    run_config.check_workdir(config, workdir)
    out, bench = workdir / "bench", config.bench
    if not out.exists():
        build_bench(
            out,
            Path(bench.photos) if bench.photos else None,
            test_photos=Path(bench.test_photos) if bench.test_photos else None,
            samples_per_degradation=bench.samples_per_degradation,
            test_per_degradation=bench.test_per_degradation,
            size=bench.size,
            seed=bench.seed,
            composites=bench.composites,
            workers=bench.workers or None,
        )
    return out


def evaluate_run(config, workdir: Path, data_dir: Path) -> dict:
    """Restores the test split with the run's model, scores it, and draws a before/after sheet."""
    restorer = restore.Restorer.load(workdir / "model")
    test, results, prompts = data_dir / "test", workdir / "results", config.evaluate.prompts
    lines = (test / "test.jsonl").read_text().splitlines()
    for _ in tqdm(
        restore.restore_test_split(restorer, test, results, prompts),
        total=len(lines),
        unit="picture",
        disable=None,
    ):
        pass
    scores = evaluate.evaluate(
        test / "hq", results / prompts, lq=test / "lq", jsonl=test / "test.jsonl"
    )
    print(evaluate.format_table(scores))
    write_sheet(test, results / prompts, workdir / "before_after.png", lines)
    return {"evaluated": scores}


def write_sheet(test: Path, results: Path, out: Path, lines: list[str], most: int = 12) -> None:
    """Draws degraded, restored and clean pictures, one row for each of the first degradations."""
    rows: dict[str, list] = {}
    for line in lines:
        sample = json.loads(line)
        name = Path(sample["lq_path"]).name
        if sample["deg_type"] not in rows and len(rows) < most:
            paths = (test / "lq" / name, results / name, test / "hq" / name)
            rows[sample["deg_type"]] = [load_picture(path) for path in paths]
    columns = ["degraded", "restored", "clean"]
    save_picture(contact_sheet(list(rows.values()), list(rows), columns), out)


def parse_flags(argv: list[str]) -> list[str]:
    """Parses flags; a misspelt config field is one line that names the accepted ones."""
    try:
        return flags.FLAGS(argv)
    except (AttributeError, KeyError, TypeError) as error:
        fields = [re.match(r"--config\.([\w.]+)", arg) for arg in argv]
        flags.FLAGS.unparse_flags()
        # The config file's flag looks for overrides in sys.argv by itself.
        sys.argv = [arg for arg in argv if not arg.startswith("--config.")]
        flags.FLAGS(sys.argv)
        for field in filter(None, fields):
            node = _CONFIG.value
            for name in field[1].split("."):
                if not hasattr(node, "keys") or name not in node:
                    accepted = sorted(node.keys()) if hasattr(node, "keys") else "no fields"
                    sys.exit(f"error: config has no field {field[1]!r}: accepted are {accepted}")
                node = node[name]
        sys.exit(f"error: {' '.join(str(error).split())}")
    except flags.Error as error:
        sys.exit(f"error: {' '.join(str(error).split())}")


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
