"""A training job: makes its data, trains, scores the result and draws it; what `main` runs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from tqdm import tqdm

from cotir_jax.bench.build import build_bench
from cotir_jax.bench.composites import folder_name
from cotir_jax.bench.listing import ListedPicture, read_listing
from cotir_jax.bench.plan import make_plan
from cotir_jax.bench.words.table import plain_name
from cotir_jax.commands.compilation_cache import keep_compiled_programs
from cotir_jax.data.fresh_samples import FreshSamples
from cotir_jax.data.mixing import shares_of
from cotir_jax.images.pictures import contact_sheet, load_picture, save_picture
from cotir_jax.parallel import processes
from cotir_jax.parallel.sharding import make_mesh
from cotir_jax.restoring.restorer import Restorer
from cotir_jax.restoring.test_split import restore_listing
from cotir_jax.scoring import report, scores, summary
from cotir_jax.training.config import Run, check_workdir
from cotir_jax.training.hooks import Interrupted
from cotir_jax.training.loop import train

_SHEET_ROWS = 12


def run_job(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Runs a job from its config to its result; a job that was stopped continues.

    Every process of a job calls it; they share the file system. The first one prints.

    Args:
      config: see `configs/default.py`.
      workdir: the job's folder: data that are built, checkpoints, model, results.

    Returns:
      The last step's metrics with `seconds`, and `evaluated` where the config asks for it; or
      `interrupted` where a signal arrived.

    Raises:
      ValueError: for a config, data or workdir that do not fit.
      FloatingPointError: when a loss is not finite.
    """
    keep_compiled_programs()
    start = time.monotonic()
    run = Run.read(config)
    data_dir = Path(run.data.dir) if run.data.dir else _build_data(run, workdir)
    try:
        result = train(run, workdir, data_dir, _fresh_samples(run))
    except Interrupted as interrupted:
        return {"interrupted": str(interrupted)}
    if run.evaluate.enabled:
        result |= _evaluate(run, workdir, data_dir / "test")
    result["seconds"] = round(time.monotonic() - start, 1)
    if processes.is_first():
        print("\n".join(_closing_lines(run, workdir, result)))
    return result


def _build_data(run: Run, workdir: Path) -> Path:
    """Builds the benchmark of `config.bench` in the workdir, once; other processes wait for it."""
    out, options = workdir / "bench", run.bench_options
    if not out.exists():
        # Building takes minutes: wrong shares are found before.
        trained = [folder_name(name) for name in make_plan(**options).names["train"]]
        shares_of(trained, tuple(run.data.shares))
    check_workdir(run, workdir)
    while not processes.is_first() and not out.exists():
        time.sleep(0.5)
    if not out.exists():
        build_bench(out, **options, workers=run.bench.workers or None)
    return out


def _fresh_samples(run: Run) -> FreshSamples | None:
    """Samples that are made when they are read, where the config asks for them."""
    data = run.data
    if not data.fresh:
        return None
    plan = make_plan(**run.bench_options)
    return FreshSamples(plan, tuple(data.fresh_sizes), data.recoloured, data.drawn)


def _evaluate(run: Run, workdir: Path, test: Path) -> dict[str, Any]:
    """Restores the test split with the run's model, scores it, draws a sheet and a report.

    Each process restores a part of the split with its own devices; process 0 scores all.
    """
    restorer = Restorer.load(workdir / "model", make_mesh({"fsdp": -1}, jax.local_devices()))
    listing, prompts = test / "test.jsonl", run.evaluate.prompts
    out, pictures = workdir / "results" / prompts, read_listing(listing)
    part = jax.process_index(), jax.process_count()
    if processes.is_first():
        print(f"restoring {len(pictures)} test pictures with {workdir / 'model'}", flush=True)
    for _ in tqdm(
        restore_listing(
            lambda picture, prompt: restorer(picture, prompt).image,
            listing,
            out,
            prompts,
            part=part,
        ),
        total=len(pictures[part[0] :: part[1]]),
        desc="test pictures",
        unit="picture",
        disable=None if processes.is_first() else True,
    ):
        pass
    processes.wait_for_all("test split restored")
    if not processes.is_first():
        return {}
    scored = scores.score(test / "hq", {"restored": out}, lq=test / "lq", jsonl=listing)
    summary.write_summary(scored, "restored", out / summary.SUMMARY_NAME)
    figures = summary.summarise(scored, "restored")
    print(summary.format_table(figures))
    report.write_report(scored, workdir / "report")
    _write_sheet(test, out, workdir / "before_after.png", pictures)
    return {"evaluated": figures}


def _write_sheet(test: Path, results: Path, out: Path, pictures: list[ListedPicture]) -> None:
    """Draws degraded, restored and clean pictures, one row for each of the first degradations."""
    rows: dict[str, list] = {}
    for picture in pictures:
        if picture.deg_type not in rows and len(rows) < _SHEET_ROWS:
            paths = (folder / picture.name for folder in (test / "lq", results, test / "hq"))
            rows[picture.deg_type] = [load_picture(path) for path in paths]
    names = [plain_name(name) for name in rows]
    save_picture(contact_sheet(list(rows.values()), names, ["degraded", "restored", "clean"]), out)


def _closing_lines(run: Run, workdir: Path, result: dict[str, Any]) -> list[str]:
    """What a person wants to know at the end: how good, and where everything is."""
    minutes, seconds = divmod(round(result["seconds"]), 60)
    lines = ["", f"{run.steps} steps, {minutes} min {seconds} s"]
    if figures := result.get("evaluated"):
        lines += [
            f"{figures['pictures']} test pictures, {run.evaluate.prompts} prompts, "
            "input -> restored:",
            f"  PSNR {figures['input_psnr']:.2f} -> {figures['psnr']:.2f} dB, "
            f"SSIM {figures['input_ssim']:.3f} -> {figures['ssim']:.3f}",
            f"before/after: {workdir / 'before_after.png'}",
            f"report:       {workdir / 'report' / 'report.html'}",
        ]
    return [
        *lines,
        f"model:        {workdir / 'model'}",
        f"try it:       cotir restore photo.jpg --model-dir={workdir / 'model'}",
    ]
