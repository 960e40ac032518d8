"""Scoring a folder of restored pictures against the clean ones."""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from cotir_jax import image_metrics
from cotir_jax.pictures import list_pictures, load_picture

SUMMARY_NAME = "metrics_summary.txt"

# The release's row; "-" stands where a metric needs a network that is not here.
_ROW_COLUMNS = (
    "clipiqa_plus", "qalign", "liqe", "maclip", "clip_iqa", "psnr", "ssim", "lpips",
)  # fmt: skip
_METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float | None]] = {
    "psnr": image_metrics.psnr,
    "ssim": image_metrics.ssim,
    "ms_ssim": image_metrics.ms_ssim,
}
_DECIMALS = {"psnr": 2, "ssim": 4, "ms_ssim": 4}


def evaluate(
    hq: Path,
    results: Path,
    out: Path | None = None,
    *,
    lq: Path | None = None,
    jsonl: Path | None = None,
) -> dict[str, Any]:
    """Scores every clean picture's result and writes the summary beside the results.

    Files belong together when their names are equal, or else when their names without suffix
    are equal and single in both folders. The figures are means over pictures; their
    definitions are `image_metrics.DEFINITIONS`.

    Args:
      hq: folder of clean pictures.
      results: folder of restored pictures; those without a clean one are counted, not scored.
      out: summary file to write; by default `metrics_summary.txt` in `results`.
      lq: folder of degraded pictures, scored too ("input").
      jsonl: a test split's `test.jsonl`, for means per degradation.

    Returns:
      "pictures", "psnr", "ssim", "ms_ssim" (None when every picture is too small for it),
      "ms_ssim_pictures" (how many were large enough), "input_psnr", "input_ssim",
      "input_ms_ssim" (None without `lq`), "unmatched_results", and "per_degradation": for each
      `deg_type`, in the listing's order, the same figures; empty without `jsonl`.

    Raises:
      ValueError: a folder without pictures, a clean picture without result, degraded picture or
        line in `jsonl` (and the reverse for `jsonl`), unequal sizes, an unreadable picture.
    """
    hq, results = Path(hq), Path(results)
    references = list_pictures(hq)
    candidates = list_pictures(results)
    result_names = _match(references, [path.name for path in candidates], f"a result in {results}")
    restored = [results / name for name in result_names]
    degraded: Sequence[Path | None] = [None] * len(references)
    if lq is not None:
        names = _match(references, [path.name for path in list_pictures(lq)], f"a picture in {lq}")
        degraded = [Path(lq) / name for name in names]
    # Before the pictures are scored, so that a damaged listing does not cost the work.
    degradations = None if jsonl is None else _degradations(references, Path(jsonl))

    scores = _score_all(references, restored, degraded)
    result = _means(scores) | {
        "unmatched_results": len(set(candidates) - set(restored)),
        "per_degradation": {},
    }
    if degradations is not None:
        order = dict.fromkeys(degradations.values())
        result["per_degradation"] = {
            degradation: _means(
                score
                for reference, score in zip(references, scores, strict=True)
                if degradations[reference] == degradation
            )
            for degradation in order
        }
    _write(out or results / SUMMARY_NAME, _summary(result, results.resolve().name))
    return result


def format_table(result: dict[str, Any]) -> str:
    """Lays out what `evaluate` returned: a line per degradation and one for all pictures."""
    with_input = result["input_psnr"] is not None
    keys = [name for key in _METRICS for name in ((f"input_{key}", key) if with_input else (key,))]
    header = ["degradation", "pictures"]
    header += [key.replace("_", " ", 1) if key.startswith("input") else key for key in keys]
    rows = [header]
    for name, figures in (result["per_degradation"] | {"all": result}).items():
        values = [_figure(key.removeprefix("input_"), figures[key]) for key in keys]
        rows.append([name, str(figures["pictures"]), *values])
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]
    small = result["pictures"] - result["ms_ssim_pictures"]
    if small:
        side = image_metrics.MS_SSIM_MIN_SIDE
        lines.append(f"ms_ssim leaves out {small} pictures with a side below {side} pixels")
    if result["unmatched_results"]:
        lines.append(f"{result['unmatched_results']} results without a clean picture: not scored")
    return "\n".join(lines)


def _match(references: list[Path], names: Iterable[str], what: str) -> list[str]:
    """For each clean picture, the one of `names` that belongs to it."""
    available = set(names)
    by_stem: dict[str, list[str]] = {}
    for name in available:
        by_stem.setdefault(Path(name).stem, []).append(name)
    stems = [path.stem for path in references]
    found, missing = [], []
    for path in references:
        same_stem = by_stem.get(path.stem, [])
        if path.name in available:
            found.append(path.name)
        elif len(same_stem) == 1 and stems.count(path.stem) == 1:
            found += same_stem
        else:
            missing.append(path.name)
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(references)} clean pictures lack {what}: "
            f"{_some(missing)}; add those or take the clean ones out"
        )
    return found


def _some(names: list[str], most: int = 20) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def _degradations(references: list[Path], jsonl: Path) -> dict[Path, str]:
    """`deg_type` of each clean picture, in the order of the listing."""
    if not jsonl.is_file():
        raise ValueError(f"{jsonl}: no such file; name the split's test.jsonl or leave it out")
    listed: dict[str, str] = {}
    for number, line in enumerate(jsonl.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name, degradation = Path(row["lq_path"]).name, str(row["deg_type"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{jsonl} line {number}: expected JSON with lq_path and deg_type "
                f"({type(error).__name__}: {error}); rebuild or mend the listing"
            ) from error
        if name in listed:
            raise ValueError(f"{jsonl} line {number}: {name} is listed twice; keep one line")
        listed[name] = degradation
    matched = _match(references, listed, f"a line in {jsonl}")
    absent = sorted(set(listed) - set(matched))
    if absent:
        raise ValueError(
            f"{jsonl} lists {len(absent)} pictures that have no clean one: {_some(absent)}; "
            "add those or take the lines out"
        )
    of_name = {name: path for name, path in zip(matched, references, strict=True)}
    return {of_name[name]: degradation for name, degradation in listed.items()}


def _score_all(
    references: list[Path], restored: list[Path], degraded: Sequence[Path | None]
) -> list[dict[str, float | None]]:
    # Threads: decoding and the window filters release the GIL, and most of the time is there.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        scores = pool.map(_score, references, restored, degraded)
        return list(tqdm(scores, total=len(references), unit="picture", disable=None))


def _score(reference: Path, restored: Path, degraded: Path | None) -> dict[str, float | None]:
    clean = load_picture(reference)
    figures: dict[str, float | None] = {}
    for prefix, path in (("", restored), ("input_", degraded)):
        picture = None if path is None else load_picture(path)
        for key, metric in _METRICS.items():
            try:
                figures[prefix + key] = None if picture is None else metric(picture, clean)
            except ValueError as error:
                raise ValueError(f"{path} against {reference}: {error}") from None
    return figures


def _means(scores: Iterable[dict[str, float | None]]) -> dict[str, Any]:
    """Means over pictures; a figure that no picture has is None."""
    scores = list(scores)
    means: dict[str, Any] = {"pictures": len(scores)}
    for key in scores[0]:
        values = [value for score in scores if (value := score[key]) is not None]
        means[key] = float(np.mean(values)) if values else None
    means["ms_ssim_pictures"] = sum(score["ms_ssim"] is not None for score in scores)
    return means


def _figure(metric: str, value: float | None) -> str:
    return "-" if value is None else f"{value:.{_DECIMALS[metric]}f}"


def _summary(result: dict[str, Any], method: str) -> str:
    """Definitions and table as comments, then the release's row for the input and the method."""
    comments = [
        f"Means over {result['pictures']} pictures, 8-bit RGB, as pyiqa 0.1.15 computes them.",
        *image_metrics.DEFINITIONS,
        "-: not computed here",
        "",
        *format_table(result).splitlines(),
    ]
    lines = [f"# {comment}".rstrip() for comment in comments]
    lines.append(" & ".join(("method", *_ROW_COLUMNS)))
    rows = [(method, "")]
    if result["input_psnr"] is not None:
        rows.insert(0, ("input", "input_"))
    for name, prefix in rows:
        cells = [
            _figure(column, result[prefix + column]) if column in _METRICS else "-"
            for column in _ROW_COLUMNS
        ]
        lines.append(" & ".join((name, *cells)))
    return "\n".join(lines) + "\n"


def _write(path: Path, text: str) -> None:
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
