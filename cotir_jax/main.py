"""Training from a config: `python -m cotir_jax.main --config=configs/nano.py --workdir=W`."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from pathlib import Path

import jax
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags
from tqdm import tqdm

from cotir_jax import files
from cotir_jax.bench.build import build_bench
from cotir_jax.bench.composites import folder_name
from cotir_jax.bench.plan import make_plan
from cotir_jax.compiling import report
from cotir_jax.data.fresh_samples import FreshSamples
from cotir_jax.data.mixing import shares_of
from cotir_jax.images.pictures import contact_sheet, load_picture, save_picture
from cotir_jax.parallel import processes
from cotir_jax.parallel.sharding import make_mesh
from cotir_jax.restoring.restorer import Restorer
from cotir_jax.restoring.test_split import restore_listing
from cotir_jax.scoring import summary
from cotir_jax.training.config import Run, check_workdir
from cotir_jax.training.hooks import Interrupted
from cotir_jax.training.loop import train

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, e.g. configs/nano.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, events, results.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0.")
_NUM_PROCESSES = flags.DEFINE_string("num_processes", None, "Processes of the job.")
_PROCESS_ID = flags.DEFINE_string("process_id", None, "Number of this one, from 0.")
_DEBUG = flags.DEFINE_bool("debug", False, "Show tracebacks.")
_MODE = flags.DEFINE_enum(
    "mode", "train", ["train", "compile"], "Train, or compile for a TPU topology and report."
)
_TOPOLOGY = flags.DEFINE_string("topology", "", "For compile: a slice, as v4:2x2x4 or v5e:4x4.")
_NUM_SLICES = flags.DEFINE_integer("num_slices", 1, "For compile: slices.", lower_bound=1)
_STAGE = flags.DEFINE_integer("stage", None, "For compile: the only stage, from 1; all if absent.")
_OPTIMIZATION_LEVEL = flags.DEFINE_enum(
    "optimization_level",
    None,
    ["O0", "O1", "O2", "O3"],
    "Effort of XLA's compiler; O1 compiles sooner. If absent, the compiler's own choice.",
)
flags.mark_flags_as_required(["config"])
flags.register_multi_flags_validator(
    ["mode", "workdir", "topology"],
    lambda given: given["topology" if given["mode"] == "compile" else "workdir"],
    "training needs --workdir, --mode=compile needs --topology",
)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    logging.getLogger("cotir_jax").setLevel(logging.INFO)
    absl_logging.set_verbosity(absl_logging.WARNING)  # the libraries' own messages
    if _OPTIMIZATION_LEVEL.value:
        jax.config.update("jax_optimization_level", _OPTIMIZATION_LEVEL.value)
    if _MODE.value == "compile":
        with files.errors_on_one_line(_DEBUG.value):
            result = report.report(_CONFIG.value, _TOPOLOGY.value, _NUM_SLICES.value, _STAGE.value)
        print(json.dumps(result))
        sys.exit(0 if result["fits"] else 1)
    with processes.leaving_together(), files.errors_on_one_line(_DEBUG.value):
        processes.initialize(
            processes.find_place(
                _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, os.environ
            )
        )
        workdir = Path(_WORKDIR.value)
        start = time.monotonic()
        run = Run.read(_CONFIG.value)
        data = run.data
        data_dir = Path(data.dir) if data.dir else build_data(run, workdir)
        try:
            fresh = None
            if data.fresh:
                plan = make_plan(**run.bench_options)
                sizes = tuple(data.fresh_sizes)
                fresh = FreshSamples(plan, sizes, data.recoloured, data.drawn)
            result = train(run, workdir, data_dir, fresh)
        except Interrupted as interrupted:
            print_result({"interrupted": str(interrupted)})
            sys.exit(0)
        if run.evaluate.enabled:
            result |= evaluate_run(run, workdir, data_dir)
        result["seconds"] = round(time.monotonic() - start, 1)
        print_result(result)


def print_result(result: dict) -> None:
    """The JSON line at the end, once for all processes."""
    if processes.is_first():
        print(json.dumps(result))


def build_data(run: Run, workdir: Path) -> Path:
    """Builds the benchmark of `config.bench` in the workdir, once; other processes wait for it."""
    out, options = workdir / "bench", run.bench_options
    if not out.exists():
        # Building takes minutes; what is wrong with the shares is known before.
        trained = [folder_name(name) for name in make_plan(**options).names["train"]]
        shares_of(trained, tuple(run.data.shares))
    check_workdir(run, workdir)
    while not processes.is_first() and not out.exists():
        time.sleep(0.5)
    if not out.exists():
        build_bench(out, **options, workers=run.bench.workers or None)
    return out


def evaluate_run(run: Run, workdir: Path, data_dir: Path) -> dict:
    """Restores the test split with the run's model, scores it, and draws a before/after sheet.

    Each process restores a part of the split with its own devices; process 0 scores all.
    """
    mesh = make_mesh({"fsdp": -1}, jax.local_devices())
    restorer = Restorer.load(workdir / "model", mesh)
    test, results, prompts = data_dir / "test", workdir / "results", run.evaluate.prompts
    lines = (test / "test.jsonl").read_text().splitlines()
    part = jax.process_index(), jax.process_count()
    for _ in tqdm(
        restore_listing(
            lambda picture, prompt: restorer(picture, prompt).image,
            test / "test.jsonl",
            results / prompts,
            prompts,
            part=part,
        ),
        total=len(lines) // part[1],
        unit="picture",
        disable=None if processes.is_first() else True,
    ):
        pass
    processes.wait_for_all("test split restored")
    if not processes.is_first():
        return {}
    scores = summary.evaluate(
        test / "hq", results / prompts, lq=test / "lq", jsonl=test / "test.jsonl"
    )
    print(summary.format_table(scores))
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
        sys.exit(f"error: {files.one_line(error)}")
    except flags.Error as error:
        sys.exit(f"error: {files.one_line(error)}")


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
