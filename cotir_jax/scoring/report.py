"""Report of several methods' scores: JSON, a LaTeX table, and a page."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from cotir_jax import files
from cotir_jax.scoring import report_page
from cotir_jax.scoring.intervals import CONFIDENCE, RESAMPLES, mean_interval
from cotir_jax.scoring.scores import INPUT, METRICS, Scores
from cotir_jax.scoring.summary import ROW_COLUMNS, figure, mean

ALL = "all pictures"


def write_report(scores: Scores, folder: Path, gallery: int = 4) -> list[Path]:
    """Writes `metrics.json`, `metrics.tex` and `report.html` into a folder, which is made.

    The page shows up to `gallery` of each method's worst and best pictures.

    Returns:
      The files written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    contents = {
        "metrics.json": json.dumps(as_json(scores), indent=1, allow_nan=False) + "\n",
        "metrics.tex": as_latex(scores),
        "report.html": report_page.render(scores, _groups(scores), gallery),
    }
    for name, text in contents.items():
        files.write_text(folder / name, text)
    return [folder / name for name in contents]


def as_json(scores: Scores) -> dict[str, Any]:
    """Returns all figures: means, intervals and gains of every group, values of every picture."""
    groups = _groups(scores)
    return {
        "pictures": len(scores.references),
        "definitions": {metric: METRICS[metric].definition for metric in scores.metrics},
        "missing": scores.missing,
        "interval": f"{CONFIDENCE:.0%} bootstrap of {RESAMPLES} resamples of the pictures",
        "methods": {
            method: {
                "unmatched_results": scores.unmatched[method],
                **{name: _group_json(scores, method, at) for name, at in groups.items()},
            }
            for method in scores.values
        },
        "per_picture": [_picture_json(scores, at) for at in range(len(scores.references))],
    }


def _groups(scores: Scores) -> dict[str, np.ndarray]:
    """Returns positions of all pictures, of each degradation, and of each subset (`[name]`)."""
    everything = {ALL: np.arange(len(scores.references))}
    degradations = scores.groups(scores.degradations)
    # Single degradations first, then the composites, each in the listing's order.
    ordered = dict(sorted(degradations.items(), key=lambda item: "+" in item[0]))
    subsets = scores.groups(scores.subsets)
    return everything | ordered | {f"[{name}]": at for name, at in subsets.items() if name}


def _group_json(scores: Scores, method: str, at: np.ndarray) -> dict[str, Any]:
    result: dict[str, Any] = {"pictures": len(at)}
    for metric, values in scores.values[method].items():
        result[metric] = {"mean": mean(values[at]), "interval": mean_interval(values[at])}
        if (gains := scores.gains(method, metric)) is not None:
            gain = gains[at]
            result[metric] |= {"gain": mean(gain), "gain_interval": mean_interval(gain)}
    return result


def _picture_json(scores: Scores, at: int) -> dict[str, Any]:
    result: dict[str, Any] = {"name": scores.references[at].name}
    if scores.degradations:
        result |= {"degradation": scores.degradations[at], "subset": scores.subsets[at]}
    for method, values in scores.values.items():
        result[method] = {
            metric: float(column[at]) if np.isfinite(column[at]) else None
            for metric, column in values.items()
        }
    return result


def as_latex(scores: Scores) -> str:
    """Formats a table for a paper (booktabs): the release's columns, then other metrics.

    The best mean of each column is bold; the degraded input does not compete.
    """
    columns = [*ROW_COLUMNS, *(name for name in scores.metrics if name not in ROW_COLUMNS)]
    arrows = {True: r"$\uparrow$", False: r"$\downarrow$"}
    titles = [f"{_tex(METRICS[name].title)} {arrows[METRICS[name].higher_is_better]}"
              for name in columns]  # fmt: skip
    best = {name: _best(scores, name) for name in columns if name in scores.metrics}
    lines = [
        f"% Means over {len(scores.references)} pictures. " + "; ".join(
            METRICS[name].definition for name in scores.metrics),
        r"\begin{tabular}{l" + "c" * len(columns) + "}",
        r"\toprule",
        " & ".join(["method", *titles]) + r" \\",
        r"\midrule",
    ]  # fmt: skip
    for method, values in scores.values.items():
        cells = []
        for name in columns:
            text = figure(name, mean(values[name]) if name in values else None)
            bold = method != INPUT and text == best.get(name) != "-"
            cells.append(rf"\textbf{{{text}}}" if bold else text)
        lines.append(" & ".join([_tex(method), *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _best(scores: Scores, metric: str) -> str:
    """Returns the best mean among the methods, as text, so that equal figures are all bold."""
    means = [mean(values[metric]) for name, values in scores.values.items() if name != INPUT]
    known = [value for value in means if value is not None]
    choose = max if METRICS[metric].higher_is_better else min
    return figure(metric, choose(known, default=None))


def _tex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return text.translate(str.maketrans(special | {sign: f"\\{sign}" for sign in "&%$#_{}"}))
