"""Scoring a folder of restored pictures against the clean ones: means, table, summary file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cotir_jax.scoring import full_reference
from cotir_jax.scoring.intervals import CONFIDENCE, mean_interval
from cotir_jax.scoring.scores import FAST, INPUT, METRICS, Scores, score

SUMMARY_NAME = "metrics_summary.txt"

# The release's row; "-" stands where a metric needs a network that is not here.
ROW_COLUMNS = (
    "clipiqa_plus", "qalign", "liqe", "maclip", "clip_iqa", "psnr", "ssim", "lpips",
)  # fmt: skip


def evaluate(
    hq: Path,
    results: Path,
    out: Path | None = None,
    *,
    lq: Path | None = None,
    jsonl: Path | None = None,
    metrics: Sequence[str] = FAST,
    lpips_weights: Sequence[Path] = (),
    niqe_parameters: Path | None = None,
) -> dict[str, Any]:
    """Scores every clean picture's result and writes the summary beside the results.

    The figures are means over pictures; their definitions are those of `scores.METRICS`.

    Args:
      hq: folder of clean pictures.
      results: folder of restored pictures; those without a clean one are counted, not scored.
      out: summary file to write; by default `metrics_summary.txt` in `results`.
      lq: folder of degraded pictures, scored too ("input").
      jsonl: a test split's `test.jsonl`, for means per degradation.
      metrics: names of `scores.METRICS`; by default the fast ones.
      lpips_weights: files for LPIPS.
      niqe_parameters: file for NIQE-refit; by default the one that ships.

    Returns:
      See `summarise`.

    Raises:
      ValueError: as `scores.score`.
    """
    method = method_names([Path(results)], lq is not None)[0]
    scores = score(
        hq,
        {method: Path(results)},
        lq=lq,
        jsonl=jsonl,
        metrics=metrics,
        lpips_weights=lpips_weights,
        niqe_parameters=niqe_parameters,
    )
    result = summarise(scores, method)
    write_summary(scores, method, out or Path(results) / SUMMARY_NAME)
    return result


def method_names(folders: Sequence[Path], with_input: bool) -> list[str]:
    """A name for each folder of results: the last part of its path, more where that is taken."""
    parts = [folder.resolve().parts for folder in folders]
    if len(set(parts)) < len(parts):
        raise ValueError("a folder of results is named twice; name each once")
    names = []
    for own in parts:
        length = 1
        while _taken(own[-length:], parts, with_input):
            length += 1
        names.append("/".join(own[-length:]))
    return names


def _taken(end: tuple[str, ...], parts: Sequence[tuple[str, ...]], with_input: bool) -> bool:
    shared = sum(other[-len(end) :] == end for other in parts) > 1
    return shared or (with_input and end == (INPUT,))


def summarise(scores: Scores, method: str) -> dict[str, Any]:
    """Means of one method.

    Returns:
      "pictures"; every metric's name with its mean (None where no picture has it) and
      "input_" and its name (None without degraded pictures); "<metric>_pictures" for a metric that
      small pictures lack, and always for MS-SSIM: how many have it; "intervals": of each
      metric's mean; "missing": metrics that were asked for and not computed, with the reason;
      "unmatched_results"; "per_degradation": for each `deg_type`, in the listing's order, the same
      figures; empty without a listing; "per_subset" likewise.
    """
    everything = np.arange(len(scores.references))
    return _means(scores, method, everything) | {
        "intervals": {
            metric: mean_interval(values) for metric, values in scores.values[method].items()
        },
        "missing": scores.missing,
        "unmatched_results": scores.unmatched[method],
        "per_degradation": {
            name: _means(scores, method, positions)
            for name, positions in scores.groups(scores.degradations).items()
        },
        "per_subset": {
            name: _means(scores, method, positions)
            for name, positions in scores.groups(scores.subsets).items()
        },
    }


def _means(scores: Scores, method: str, positions: np.ndarray) -> dict[str, Any]:
    means: dict[str, Any] = {"pictures": len(positions)}
    inputs = scores.values.get(INPUT, {})
    for metric, values in scores.values[method].items():
        means[metric] = mean(values[positions])
        means[f"input_{metric}"] = mean(inputs[metric][positions]) if inputs else None
        defined = int(np.isfinite(values[positions]).sum())
        if metric == "ms_ssim" or defined < len(positions):
            means[f"{metric}_pictures"] = defined
    return means


def mean(values: np.ndarray) -> float | None:
    """Mean over the pictures that have the metric; None where none has."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else None


def format_table(result: dict[str, Any]) -> str:
    """Lays out what `summarise` returned: a line per degradation and one for all pictures."""
    metrics = [name for name in METRICS if name in result]
    with_input = any(result[f"input_{name}"] is not None for name in metrics)
    keys = [key for name in metrics for key in ((f"input_{name}", name) if with_input else (name,))]
    header = ["degradation", "pictures"]
    header += [key.replace("_", " ", 1) if key.startswith("input") else key for key in keys]
    rows = [header]
    groups = result["per_degradation"]
    if len(result["per_subset"]) > 1:
        groups = groups | {f"[{name}]": row for name, row in result["per_subset"].items()}
    for name, figures in (groups | {"all": result}).items():
        values = [figure(key.removeprefix("input_"), figures[key]) for key in keys]
        rows.append([name, str(figures["pictures"]), *values])
    return "\n".join([*lay_out(rows), *_remarks(result, metrics)])


def lay_out(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of aligned columns, the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]


def _remarks(result: dict[str, Any], metrics: Sequence[str]) -> list[str]:
    remarks = []
    for metric in metrics:
        small = result["pictures"] - result.get(f"{metric}_pictures", result["pictures"])
        if small:
            side = full_reference.MS_SSIM_MIN_SIDE
            why = f"with a side below {side} pixels" if metric == "ms_ssim" else "too small for it"
            remarks.append(f"{metric} leaves out {small} pictures {why}")
    remarks += [f"{metric}: not computed: {why}" for metric, why in result["missing"].items()]
    if result["unmatched_results"]:
        remarks.append(f"{result['unmatched_results']} results without a clean picture: not scored")
    return remarks


def format_overview(scores: Scores) -> str:
    """Lays out several methods: a line each, means over all pictures."""
    rows = [["method", *scores.metrics]]
    for method, values in scores.values.items():
        rows.append([method, *(figure(name, mean(column)) for name, column in values.items())])
    methods = [method for method in scores.values if method != INPUT] or list(scores.values)
    notes: dict[str, None] = {}
    for method in methods:
        notes |= dict.fromkeys(_remarks(summarise(scores, method), scores.metrics))
    return "\n".join([*lay_out(rows), f"means over {len(scores.references)} pictures", *notes])


def figure(metric: str, value: float | None) -> str:
    """A metric's value as text, "-" where there is none."""
    return "-" if value is None else f"{value:.{METRICS[metric].decimals}f}"


def write_summary(scores: Scores, method: str, path: Path) -> None:
    """Writes definitions and table as comments, then the release's row for input and method."""
    result = summarise(scores, method)
    intervals = [
        f"{METRICS[metric].title} {figure(metric, low)} to {figure(metric, high)}"
        for metric, (low, high) in _known(result["intervals"]).items()
    ]
    comments = [
        f"Means over {result['pictures']} pictures, 8-bit RGB; PSNR, SSIM and MS-SSIM as pyiqa "
        "0.1.15 computes them.",
        *(METRICS[metric].definition for metric in scores.metrics),
        f"{CONFIDENCE:.0%} intervals of the means (bootstrap over pictures): "
        + ("; ".join(intervals) or "none, too few pictures"),
        "-: not computed here",
        "",
        *format_table(result).splitlines(),
    ]
    lines = [f"# {comment}".rstrip() for comment in comments]
    lines.append(" & ".join(("method", *ROW_COLUMNS)))
    for name in dict.fromkeys([*([INPUT] if INPUT in scores.values else []), method]):
        values = scores.values[name]
        cells = [
            figure(column, mean(values[column])) if column in values else "-"
            for column in ROW_COLUMNS
        ]
        lines.append(" & ".join((name, *cells)))
    write_text(path, "\n".join(lines) + "\n")


def _known(
    intervals: Mapping[str, tuple[float, float] | None],
) -> dict[str, tuple[float, float]]:
    return {metric: ends for metric, ends in intervals.items() if ends is not None}


def write_text(path: Path, text: str) -> None:
    """Writes a file under a temporary name, then renames it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
