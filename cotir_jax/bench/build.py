"""Build a benchmark: clean photos in, shards with thoughts and a test split out.

The work goes on in `<out>.part`, shard by shard, and is renamed when it is complete. A build that
was killed continues there when it is started again.
"""

import fcntl
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from cotir_jax import files
from cotir_jax.bench.composites import folder_name
from cotir_jax.bench.listing import write_listing
from cotir_jax.bench.photos import PhotoPath, fingerprint, trimmed_photo
from cotir_jax.bench.plan import (
    SPLITS,
    Job,
    Plan,
    Sample,
    listed,
    make_plan,
    make_samples,
    prompts_of,
    scene_writer,
)
from cotir_jax.bench.pool import Spread, progress_bar, spread_over
from cotir_jax.bench.records import shard_path
from cotir_jax.bench.shards import write_pair, write_prompts, write_shard

FORMATS = ("tar", "array_record")
RECORD_FILE = "build.json"
_SHARD_SAMPLES = 256
_log = logging.getLogger(__name__)


class _Task(NamedTuple):
    """A job, the file that exists when it is done, and a test job's record shard, if any."""

    job: Job
    path: Path
    records: Path | None = None


def build_bench(
    out: Path | str,
    photos: Path | str | None = None,
    *,
    file_format: str = "tar",
    skip_bad: bool = False,
    workers: int | None = None,
    progress: bool = True,
    **choices: Any,
) -> dict[str, dict[str, int]]:
    """Degrades clean photos and writes them in CoTIR-Bench's layout (docs/design.md, section 7).

    The bytes depend on the photos and the choices, not on `workers`, nor on how often the build
    was killed and started again with the same arguments: it then continues in `<out>.part` at
    the first shard that is not there yet. Memory holds a sample per worker, and recent photos.

    Args:
        out: the new benchmark; must not exist, or be an empty folder.
        photos: folder of clean photos; by default those that ship inside scikit-image.
        file_format: `tar`, or `array_record` for `tfds.data_source` (see `tfds_builder`).
        skip_bad: leave photos that cannot be used out, with a warning, instead of refusing.
        workers: processes; by default one per core.
        progress: show a progress bar.
        choices: further arguments of `plan.make_plan`, such as `size` and `seed`.

    Returns:
        `{"train": {degradation folder: samples}, "test": {deg_type: pictures}}`.

    Raises:
        ValueError: `out` is taken, `<out>.part` was begun with other arguments or another
            build is at work there, photos cannot be used, or what `make_plan` refuses.
    """
    out = Path(out).absolute()
    if file_format not in FORMATS:
        raise ValueError(f"file_format is {file_format!r}; expected one of {', '.join(FORMATS)}")
    if workers is not None and workers < 1:
        raise ValueError(f"workers is {workers}; expected 1 or more")
    if out.exists() and (
        not out.is_dir() or any(out.iterdir()) and not (out / RECORD_FILE).is_file()
    ):
        raise ValueError(f"{out}: exists and is not an empty folder; name another or remove it")
    plan = make_plan(photos, **choices)
    record = _describe(plan, file_format)
    counts = {
        "train": plan.folders("train"),
        "test": {name: plan.counts["test"] for name in plan.names["test"]},
    }
    if out.is_dir() and any(out.iterdir()):  # killed after all was done, or started twice
        _skipped(out, record, "name another folder or remove it")
        return counts
    part = out.with_name(f"{out.name}.part")
    # A build killed before it wrote its record left a temporary file at most.
    begun = part.is_dir() and any(not path.match(".*.part") for path in part.iterdir())
    with spread_over(workers) as spread:
        if begun:
            skipped = _skipped(part, record, "give the same, or remove it to start again")
        else:
            skipped = _unusable(plan, spread, skip_bad)
        plan = _without(plan, skipped)
        part.mkdir(parents=True, exist_ok=True)
        with _locked(part):
            described = json.dumps({**record, "skipped": skipped}, indent=1) + "\n"
            files.write_text(part / RECORD_FILE, described)
            _build(plan, part, file_format, spread, progress)
            if out.is_dir():
                out.rmdir()
            os.replace(part, out)
    return counts


def _describe(plan: Plan, file_format: str) -> dict[str, Any]:
    """Returns what two builds must have in common to be one."""
    maps = {
        "depth": [plan.maps.depth[name] for name in sorted(plan.maps.depth)],
        "rain_masks": plan.maps.rain_masks,
        "snow_masks": plan.maps.snow_masks,
    }
    return {
        "version": version("cotir_jax"),
        "file_format": file_format,
        "samples_per_shard": _SHARD_SAMPLES,
        "samples_per_degradation": plan.counts["train"],
        "test_per_degradation": plan.counts["test"],
        "size": plan.size,
        "seed": plan.seed,
        "degradations": list(plan.names["train"]),
        "test_degradations": list(plan.names["test"]),
        **{f"{split}_photos": fingerprint(plan.photos[split]) for split in SPLITS},
        **{name: fingerprint(paths) if paths else "" for name, paths in maps.items()},
        "scene": list(plan.scene or ()),
    }


def _skipped(folder: Path, record: dict[str, Any], remedy: str) -> dict[str, list[str]]:
    """Returns the photos that an earlier start skipped; refuses the folder of another build."""
    try:
        before = json.loads((folder / RECORD_FILE).read_bytes())
        skipped = before.pop("skipped")
    except (OSError, ValueError, KeyError, AttributeError):
        raise ValueError(
            f"{folder}: is no unfinished benchmark ({RECORD_FILE} is missing or damaged); remove it"
        ) from None
    differ = [name for name in record if before.get(name) != record[name]]
    if differ:
        shown = "; ".join(
            f"{name} was {_short(before.get(name))}, now {_short(record[name])}" for name in differ
        )
        raise ValueError(f"{folder}: holds a build with other arguments ({shown}); {remedy}")
    return skipped


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else f"{text[:40]}... ({len(value)} in all)"


def _unusable(plan: Plan, spread: Spread, skip_bad: bool) -> dict[str, list[str]]:
    """Returns the names of photos that cannot be used, by split; checked before hours of work."""
    skipped: dict[str, list[str]] = {}
    problems = []
    for split, paths in plan.photos.items():
        found = [(path.name, problem) for path, problem in spread(_problem, paths) if problem]
        skipped[split] = sorted(name for name, _ in found)
        problems += sorted(problem for _, problem in found)
    if problems and not skip_bad:
        rest = f"; and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise ValueError("; ".join(problems[:10]) + rest)
    for problem in problems:
        _log.warning("skipped: %s", problem)
    return skipped


def _problem(path: PhotoPath) -> str:
    try:
        trimmed_photo(path)
    except ValueError as error:
        return str(error)
    return ""


def _without(plan: Plan, skipped: dict[str, list[str]]) -> Plan:
    photos = {}
    for split, paths in plan.photos.items():
        bad = set(skipped[split])
        photos[split] = [path for path in paths if path.name not in bad]
        if not photos[split]:
            raise ValueError(f"none of the {len(paths)} {split} photos can be used; give others")
    return replace(plan, photos=photos)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    # The lock goes with the process, however that ends.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise ValueError(
            f"{folder}: another build is at work there; wait for it, or name another folder"
        ) from None
    finally:
        os.close(descriptor)


def _build(plan: Plan, part: Path, file_format: str, spread: Spread, progress: bool) -> None:
    for stale in part.rglob(".*.part"):
        stale.unlink()
    write_prompts(part / "prompts", prompts_of(plan))
    tasks = {split: _tasks(plan, split, part, file_format) for split in SPLITS}
    for task in (*tasks["train"], *tasks["test"]):
        for path in (task.path, task.records or task.path):
            path.parent.mkdir(parents=True, exist_ok=True)
    _run([*tasks["train"], *tasks["test"]], spread, progress)
    if tasks["test"]:
        lines = b"".join(task.path.read_bytes() for task in tasks["test"])
        files.write_bytes(part / "test" / "test.jsonl", lines)
    if file_format == "array_record":
        from cotir_jax.bench.tfds_builder import write_info

        write_info(plan, part, {split: _lengths(tasks[split]) for split in SPLITS})
    shutil.rmtree(part / "rows", ignore_errors=True)  # needed until the build is complete


def _lengths(tasks: list[_Task]) -> list[int]:
    return [len(task.job.numbers) for task in tasks]


def _tasks(plan: Plan, split: str, part: Path, file_format: str) -> list[_Task]:
    jobs = list(plan.jobs(split, _SHARD_SAMPLES))
    # Record shards are numbered by place in the split, whatever the order of work.
    numbers = {at: number for number, at in enumerate(sorted(job.position for job in jobs))}
    tasks = []
    for job in jobs:
        folder, start, shard = folder_name(job.name), job.numbers.start, None
        if file_format == "array_record":
            shard = shard_path(part, split, numbers[job.position], len(jobs))
        if split == "test":
            tasks.append(_Task(job, part / "rows" / f"{folder}-{start:06d}.jsonl", shard))
        else:
            tar = part / "image" / folder / f"{start // _SHARD_SAMPLES:06d}.tar"
            tasks.append(_Task(job, shard or tar))
    return tasks


def _run(tasks: list[_Task], spread: Spread, progress: bool) -> None:
    missing = [task for task in tasks if not task.path.exists()]
    total, left = (sum(_lengths(some)) for some in (tasks, missing))
    measured, reason = 0, ""
    with progress_bar(total, "pair", "bench", progress, done=total - left) as bar:
        for task, (failed, problem) in spread(_do, missing):
            bar.update(len(task.job.numbers))
            measured, reason = measured + failed, problem or reason
    if measured:
        _log.warning("%d scene sentences are measured ones, for want of answers: %s",
                     measured, reason)  # fmt: skip


def _do(task: _Task) -> tuple[int, str]:
    """Does a task; returns how many scene sentences the endpoint did not give, and why."""
    writer = scene_writer(task.job.scene) if task.job.scene else None
    before = writer.failed if writer else 0
    _write(task)
    return (writer.failed - before, writer.problem) if writer else (0, "")


def _write(task: _Task) -> None:
    """Writes one shard, or some of one degradation's test pictures and their lines."""
    samples = make_samples(task.job)
    if task.job.split == "train":
        if task.path.suffix == ".tar":
            write_shard(samples, task.path)
        else:
            _write_records(task.job, samples, task.path)
        return
    folder = task.path.parents[1] / "test"
    kept = []
    for sample in samples:
        write_pair(folder, sample.key, sample.hq, sample.lq)
        kept.append(sample if task.records else sample._replace(hq=b"", lq=b""))
    if task.records:
        _write_records(task.job, kept, task.records)
    write_listing((listed(task.job, sample.key, sample.meta) for sample in kept), task.path)


def _write_records(job: Job, samples: Iterable[Sample], path: Path) -> None:
    from cotir_jax.bench.tfds_builder import write_records  # TFDS takes a while to import

    write_records(job, samples, path)
