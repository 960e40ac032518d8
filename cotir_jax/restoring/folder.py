"""Restoring a picture or a folder of them, while other pictures are read and written."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cotir_jax import files
from cotir_jax.images.photo import SUFFIXES, Photo, eight_bits, photo_size, read_photo
from cotir_jax.images.pictures import save_picture, side_by_side
from cotir_jax.restoring.restorer import Progress, RestoreOptions, Restorer
from cotir_jax.restoring.result import Restored

REPORT = "report.json"
# Formats that are read; some of them cannot be written.
_READ = (*SUFFIXES, ".bmp", ".ppm", ".pgm", ".gif")
# Not read, but photographs: the report must name them as failed.
_REFUSED = (".heic", ".heif")


class Job(NamedTuple):
    """One picture: where from, where to."""

    source: Path
    target: Path


def restore_path(
    restorer: Restorer,
    source: Path,
    out: Path,
    options: RestoreOptions = RestoreOptions(),  # noqa: B008 (immutable)
    *,
    suffix: str = ".png",
    quality: int = 95,
    compare: bool = False,
    skip_existing: bool = False,
    progress: Progress | None = None,
) -> Iterator[str]:
    """Restores a picture, or a folder and all folders in it.

    While the devices restore a batch, the next one is read and the last one is written. A picture
    that fails does not end a folder; `report.json` in `out` says what became of each.

    Args:
      restorer: a `Restorer`, or what has its `plan_groups` and `restore_group`.
      source: picture file or folder.
      out: a file name for a single picture, or a folder; it is made where needed.
      options: prompt, number of steps and so on.
      suffix: of the files written, as ".png", or "same" for the source's where it can be written.
      quality: see `photo.write_photo`.
      compare: write degraded and restored side by side instead of the restored picture.
      skip_existing: skip pictures whose results exist, whatever those were made with.
      progress: called with how many of how many calls of the program are done, for the current
        picture.

    Yields:
      A line per picture.

    Raises:
      ValueError: for an unreadable single picture; after the last one of a folder when some could
        not be read; for a folder without pictures, or a suffix that cannot be written.
    """
    source, out = Path(source), Path(out)
    if suffix != "same" and suffix not in SUFFIXES:
        raise ValueError(f"format {suffix}: accepted are {', '.join(SUFFIXES)} and same")
    single = not source.is_dir()
    jobs = _plan_jobs(source, out, suffix)
    there = [job for job in jobs if skip_existing and job.target.exists()]
    outcome: dict[str, dict[str, str]] = {
        "restored": {},
        "skipped": {str(job.source): str(job.target) for job in there},
        "failed": {},
    }
    if there:
        jobs = [job for job in jobs if str(job.source) not in outcome["skipped"]]
        yield f"skipped {len(there)} pictures that are in {out} already"
    save = {"quality": quality, "compare": compare}
    for job, text, error in _restore_all(restorer, jobs, options, save, progress):
        if error is None:
            outcome["restored"][str(job.source)] = str(job.target)
            yield text
            continue
        if single:
            raise error
        outcome["failed"][str(job.source)] = text
        yield f"skipped {text}"
    if single:
        return
    _write_json(out / REPORT, outcome)
    if failed := [Path(name).name for name in outcome["failed"]]:
        raise ValueError(
            f"{len(failed)} of {len(jobs)} pictures could not be restored: {failed[:5]}; "
            f"see {out / REPORT}"
        )


def list_folder(folder: Path) -> list[Path]:
    """Pictures in a folder and the folders in it, sorted; hidden ones are left out.

    Raises:
      ValueError: when there is no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such picture or folder; check the path")
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in _READ + _REFUSED
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not found:
        raise ValueError(f"{folder}: holds no pictures ({', '.join(_READ)})")
    return found


def _plan_jobs(source: Path, out: Path, suffix: str) -> list[Job]:
    """Where the results of a picture or of a folder's pictures go."""
    if not source.is_dir() and out.suffix:
        return [Job(source, out)]
    paths, base = [source], source.parent
    if source.is_dir():
        results, base = out.resolve(), source
        # Results of an earlier run may be inside the folder itself.
        paths = [path for path in list_folder(source) if results not in path.resolve().parents]
        if source.resolve() == results:
            raise ValueError(f"{out}: is the folder of the degraded pictures; name another one")
    targets = [path.relative_to(base).with_suffix(_suffix(path, suffix)) for path in paths]
    twice = {target for target, count in Counter(targets).items() if count > 1}
    return [
        # a.jpg and a.png are both kept: a.jpg.png and a.png.png.
        Job(
            path, out / (target.with_name(path.name + target.suffix) if target in twice else target)
        )
        for path, target in zip(paths, targets, strict=True)
    ]


def _suffix(path: Path, suffix: str) -> str:
    if suffix != "same":
        return suffix
    return path.suffix.lower() if path.suffix.lower() in SUFFIXES else ".png"


def _restore_all(
    restorer: Restorer,
    jobs: Sequence[Job],
    options: RestoreOptions,
    save: Mapping[str, Any],
    progress: Progress | None,
) -> Iterator[tuple[Job, str, ValueError | None]]:
    """Each job with a line of text, and the error where it failed."""
    readable, sizes = [], []
    for job in jobs:
        try:
            sizes.append(photo_size(job.source))
            readable.append(job)
        except ValueError as error:
            yield job, str(error), error
    groups = [
        ([readable[index] for index in indices], bucket)
        for indices, bucket in restorer.plan_groups(sizes, options.tile)
    ]
    with ThreadPoolExecutor(2) as readers, ThreadPoolExecutor(2) as writers:
        ahead: list[list[Future]] = []
        writing: list[tuple[Job, np.ndarray, Future]] = []
        for position, (group, bucket) in enumerate(groups):
            for following, _ in groups[position + len(ahead) : position + 2]:
                ahead.append([readers.submit(read_photo, job.source) for job in following])
            photos, read = [], []
            for job, future in zip(group, ahead.pop(0), strict=True):
                try:
                    photos.append(future.result())
                    read.append(job)
                except ValueError as error:
                    yield job, str(error), error
            if not read:
                continue
            try:
                results = restorer.restore_group(photos, bucket, options, progress)
            except ValueError as error:
                yield from ((job, f"{job.source}: {error}", error) for job in read)
                continue
            # One group is written while the next is computed: memory stays bounded.
            yield from _written(writing)
            writing = [
                (job, photo.pixels, writers.submit(_save, job, photo, result, **save))
                for job, photo, result in zip(read, photos, results, strict=True)
            ]
        yield from _written(writing)


def _written(
    writing: Sequence[tuple[Job, np.ndarray, Future]],
) -> Iterator[tuple[Job, str, ValueError | None]]:
    for job, pixels, future in writing:
        note = future.result()  # a full disk ends the run
        height, width = pixels.shape[:2]
        yield job, f"{job.source.name} {width}x{height} -> {job.target}{note}", None


def _save(job: Job, photo: Photo, result: Restored, *, quality: int, compare: bool) -> str:
    """Writes one result; returns text to append to its line."""
    job.target.parent.mkdir(parents=True, exist_ok=True)
    if compare:
        pair = side_by_side([eight_bits(photo.pixels), eight_bits(result.image)])
        save_picture(pair, job.target)
    else:
        result.save(job.target, quality)
    if result.thoughts is None:
        return ""
    _write_json(job.target.with_suffix(".json"), result.thoughts.to_json())
    return f": {result.thoughts}"


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, json.dumps(content, indent=1) + "\n")
