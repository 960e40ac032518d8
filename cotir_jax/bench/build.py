"""Build a benchmark: clean photos in, shards with thoughts and a test split out."""

import os
import shutil
import sys
import types
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from cotir_jax.bench.composites import (
    COMPOSITES,
    SINGLES,
    apply_chain,
    folder_name,
    sample_chain,
)
from cotir_jax.bench.photos import find_photos, sample_crop, trimmed_photo
from cotir_jax.bench.phrases import prompt_files
from cotir_jax.bench.shards import write_shard, write_test_lines
from cotir_jax.bench.thoughts import write_meta
from cotir_jax.pictures import encode_png

_SHARD_SAMPLES = 256
_SPLITS = ("train", "test")


@dataclass(frozen=True)
class _Job:
    """The samples ``numbers`` of one degradation and split, one of ``photos`` for each."""

    folder: Path
    split: str
    name: str
    numbers: range
    photos: tuple[Path, ...]
    size: int
    seed: int


def build_bench(
    out: Path | str,
    photos: Path | str | None = None,
    *,
    test_photos: Path | str | None = None,
    samples_per_degradation: int = 256,
    test_per_degradation: int = 8,
    size: int = 512,
    seed: int = 0,
    composites: bool = True,
    workers: int | None = None,
    progress: bool = True,
) -> dict[str, dict[str, int]]:
    """Degrade clean photos and write them in CoTIR-Bench's layout (SPEC section 7).

    The bytes depend on the photos, the sizes and ``seed``, not on ``workers``. Everything is
    written to a temporary folder beside ``out`` and renamed, so a failed build leaves nothing.

    Args:
        out: the new benchmark; must not exist, or be an empty folder.
        photos: folder of clean photos; by default those that ship inside scikit-image.
        test_photos: folder of clean test photos; by default some of ``photos`` are set apart.
        samples_per_degradation: training pairs of each degradation and composite.
        test_per_degradation: test pairs of each; 0 writes no test split.
        size: side of the square pictures in pixels.
        composites: also build the composites of up to four degradations.
        workers: processes; by default one per core.
        progress: show a progress bar.

    Returns:
        ``{"train": {degradation folder: samples}, "test": {deg_type: pictures}}``.

    Raises:
        ValueError: ``out`` is not empty, photos are missing, too few or unreadable, or a number
            is out of range.
    """
    out = Path(out)
    _check_arguments(out, samples_per_degradation, test_per_degradation, size, workers)
    train, test = find_photos(_path(photos), _path(test_photos), seed)
    names = (*SINGLES, *COMPOSITES) if composites else SINGLES
    temporary = out.absolute().with_name(f".{out.absolute().name}.{os.getpid()}.part")
    jobs = []
    for split, files, count in (
        ("train", train, samples_per_degradation),
        ("test", test, test_per_degradation),
    ):
        for name in names:
            for start in range(0, count, _SHARD_SAMPLES):
                numbers = range(start, min(start + _SHARD_SAMPLES, count))
                jobs.append(_Job(temporary, split, name, numbers, _turns(files, name, numbers),
                                 size, seed))  # fmt: skip
    try:
        _make_folders(temporary, names, test_per_degradation > 0)
        _write_prompts(temporary / "prompts", names)
        with _pool(workers or os.cpu_count() or 1) as submit:
            _check_photos(train + test, submit)
            rows = _run_jobs(jobs, submit, progress)
        if test_per_degradation:
            write_test_lines(rows, temporary / "test")
        if out.is_dir():
            out.rmdir()
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return {
        "train": {folder_name(name): samples_per_degradation for name in names},
        "test": {name: test_per_degradation for name in names if test_per_degradation},
    }


def _code(name: str) -> int:
    return zlib.crc32(name.encode())  # unlike hash(), the same in every process


def _turns(photos: list[Path], name: str, numbers: range) -> tuple[Path, ...]:
    # Photos take turns, from a start that differs between degradations.
    return tuple(photos[(number + _code(name)) % len(photos)] for number in numbers)


def _path(folder: Path | str | None) -> Path | None:
    return None if folder is None else Path(folder)


def _check_arguments(out: Path, samples: int, tests: int, size: int, workers: int | None) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: exists and is not an empty folder; name another or remove it")
    for name, value, least in (
        ("samples_per_degradation", samples, 1),
        ("test_per_degradation", tests, 0),
        ("size", size, 32),
        ("workers", 1 if workers is None else workers, 1),
    ):
        if value < least:
            raise ValueError(f"{name} is {value}; expected {least} or more")


def _make_folders(root: Path, names: tuple[str, ...], with_test: bool) -> None:
    for name in names:
        (root / "image" / folder_name(name)).mkdir(parents=True)
    if with_test:
        for side in ("lq", "hq"):
            (root / "test" / side).mkdir(parents=True)


def _write_prompts(folder: Path, names: tuple[str, ...]) -> None:
    folder.mkdir()
    unused = {folder_name(name) for name in COMPOSITES} - {folder_name(name) for name in names}
    for name, lines in prompt_files().items():
        if name not in unused:
            (folder / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


@contextmanager
def _pool(workers: int) -> Iterator[Callable[..., Future]]:
    """Give a ``submit`` that runs functions in ``workers`` processes, or here where it is one.

    Processes are spawned, never forked, because the caller may have started JAX's threads.
    """
    if workers == 1:
        yield _run_here
        return
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))

    def submit(function: Callable[..., Any], *arguments: Any) -> Future:
        # Spawned workers import the program's main module again: JAX and all, or a script
        # without a guard. Ours need nothing of it, so an empty one stands in while they start.
        main = sys.modules["__main__"]
        sys.modules["__main__"] = types.ModuleType("__main__")
        try:
            return pool.submit(function, *arguments)
        finally:
            sys.modules["__main__"] = main

    try:
        yield submit
    except BrokenProcessPool:
        raise RuntimeError(
            f"a worker process died, perhaps for want of memory; try fewer than {workers} workers"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _run_here(function: Callable[..., Any], *arguments: Any) -> Future:
    future: Future = Future()
    try:
        future.set_result(function(*arguments))
    except ValueError as error:
        future.set_exception(error)
    return future


def _check_photos(paths: list[Path], submit: Callable[..., Future]) -> None:
    # Before hours of work rather than after; all bad files at once.
    step = 16
    found = [submit(_photo_problems, paths[at : at + step]) for at in range(0, len(paths), step)]
    problems = [problem for future in found for problem in future.result()]
    if problems:
        rest = f"; and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise ValueError("; ".join(problems[:10]) + rest)


def _photo_problems(paths: list[Path]) -> list[str]:
    problems = []
    for path in paths:
        try:
            trimmed_photo(path)
        except ValueError as error:
            problems.append(str(error))
    return problems


def _run_jobs(
    jobs: list[_Job], submit: Callable[..., Future], progress: bool
) -> list[dict[str, str]]:
    """Run all jobs; returns the lines of ``test.jsonl`` in the jobs' order."""
    # A bar on a terminal, a line every ten seconds in a log.
    every = 0.1 if sys.stderr.isatty() else 10.0
    total = sum(len(job.numbers) for job in jobs)
    bar = tqdm(total=total, unit="pair", desc="bench", disable=not progress, mininterval=every)
    with bar:
        if submit is _run_here:  # no processes: nothing to wait for, so report as we go
            rows = []
            for job in jobs:
                rows += _do_job(job)
                bar.update(len(job.numbers))
            return rows
        futures = {submit(_do_job, job): job for job in jobs}
        for future in as_completed(futures):
            future.result()
            bar.update(len(futures[future].numbers))
        return [row for future in futures for row in future.result()]


def _do_job(job: _Job) -> list[dict[str, str]]:
    """Write one shard, or one degradation's test pictures; returns lines of ``test.jsonl``."""
    folder = folder_name(job.name)
    if job.split == "train":
        path = job.folder / "image" / folder / f"{job.numbers.start // _SHARD_SAMPLES:06d}.tar"
        write_shard((_make_sample(job, number) for number in job.numbers), path)
        return []
    rows = []
    for number in job.numbers:
        key, hq, lq, meta = _make_sample(job, number)
        for side, data in (("hq", hq), ("lq", lq)):
            (job.folder / "test" / side / f"{key}.png").write_bytes(data)
        vague, precise = meta["cot"]["questions"]
        subset = "composite" if "+" in job.name else "single"
        rows.append({
            "id": key, "lq_path": f"lq/{key}.png", "deg_type": job.name, "subset": subset,
            "gen_prompt": vague, "spe_prompt": precise,
        })  # fmt: skip
    return rows


def _make_sample(job: _Job, number: int) -> tuple[str, bytes, bytes, dict[str, Any]]:
    # One generator per sample, so that no split of the work changes the outcome.
    rng = np.random.default_rng([job.seed, _SPLITS.index(job.split), _code(job.name), number])
    photo = trimmed_photo(job.photos[number - job.numbers.start])
    clean = sample_crop(photo, job.size, rng)
    chain = sample_chain(job.name, job.size, rng)
    degraded = apply_chain(clean, chain, rng)
    meta = write_meta(clean, chain, job.name, rng)
    key = f"{folder_name(job.name)}-{number:06d}"
    # Level 1: encoding is most of the time, and higher levels save few bytes on photos.
    return key, encode_png(clean, 1), encode_png(degraded, 1), meta
