"""Scoring a folder of restored pictures against the clean ones: means, table, summary file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cotir_jax import files
from cotir_jax.bench.words.table import plain_name
from cotir_jax.scoring import full_reference
from cotir_jax.scoring.intervals import CONFIDENCE, mean_interval
from cotir_jax.scoring.scores import INPUT, METRICS, Scores

SUMMARY_NAME = "metrics_summary.txt"

# Columns of the release's row; "-" stands where a metric was not computed.
ROW_COLUMNS = (
    "clipiqa_plus", "qalign", "liqe", "maclip", "clip_iqa", "psnr", "ssim", "lpips",
)  # fmt: skip


def method_names(folders: Sequence[Path], with_input: bool) -> list[str]:
    """Names folders of results by the last part of their paths, or by more where that is taken."""
    parts = [folder.resolve().parts for folder in folders]
    if len(set(parts)) < len(parts):
        raise ValueError("a folder of results is named twice; name each once")
    names = []
    for own in parts:
        length = 1
        while (
            (end := own[-length:]) == (INPUT,)
            and with_input
            or (sum(other[-length:] == end for other in parts) > 1)
        ):
            length += 1
        names.append("/".join(end))
    return names


def summarise(scores: Scores, method: str) -> dict[str, Any]:
    """Computes the means of one method.

    Returns:
      "pictures"; every metric's name with its mean (None where no picture has it) and
      "input_" and its name (None without degraded pictures); "<metric>_pictures" for a metric that
      small pictures lack, and always for MS-SSIM: how many have it; "intervals": of each
      metric's mean; "missing": metrics that were asked for and not computed, with the reason;
      "unmatched_results"; "per_degradation": for each `deg_type`, in the listing's order, the same
      figures; empty without a listing; "per_subset" likewise.
    """

    def by(labels: Sequence[str]) -> dict[str, dict[str, Any]]:
        return {name: _means(scores, method, at) for name, at in scores.groups(labels).items()}

    return _means(scores, method, np.arange(len(scores.references))) | {
        "intervals": {
            metric: mean_interval(values) for metric, values in scores.values[method].items()
        },
        "missing": scores.missing,
        "unmatched_results": scores.unmatched[method],
        "per_degradation": by(scores.degradations),
        "per_subset": by(scores.subsets),
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
    """Returns the mean over the pictures that have the metric; None where none has."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else None


def format_table(result: dict[str, Any]) -> str:
    """Lays out the result of `summarise`: a line per degradation and one for all pictures."""
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
        rows.append([plain_name(name), str(figures["pictures"]), *values])
    return "\n".join([*lay_out(rows), *_remarks(result, metrics)])


def lay_out(rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligns columns, the first to the left, the others to the right; returns lines."""
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
    """Formats a metric's value; "-" where there is none."""
    return "-" if value is None else f"{value:.{METRICS[metric].decimals}f}"


def write_summary(scores: Scores, method: str, path: Path) -> None:
    """Writes definitions and table as comments, then the release's row for input and method."""
    result = summarise(scores, method)
    intervals = [
        f"{METRICS[metric].title} {figure(metric, ends[0])} to {figure(metric, ends[1])}"
        for metric, ends in result["intervals"].items()
        if ends
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
    for name, values in scores.values.items():
        if name in (INPUT, method):
            means = [mean(values[at]) if at in values else None for at in ROW_COLUMNS]
            lines.append(" & ".join((name, *map(figure, ROW_COLUMNS, means))))
    files.write_text(path, "\n".join(lines) + "\n")
