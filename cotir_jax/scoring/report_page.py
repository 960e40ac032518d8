"""The report as one HTML file that needs nothing else: tables, plots, pictures with sliders.

The figures are chosen here; `report.html` lays them out.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from cotir_jax.bench.words.table import plain_name
from cotir_jax.images.pictures import data_url, load_picture
from cotir_jax.scoring.intervals import CONFIDENCE, RESAMPLES, mean_interval
from cotir_jax.scoring.scores import INPUT, METRICS, Scores
from cotir_jax.scoring.summary import figure, mean

# Longer side and JPEG quality of embedded pictures, and the most bytes of them all together.
_SIDE, _QUALITY = 384, 82
_PICTURE_BYTES = 12_000_000
# Dots of one method in the scatter plot: an even choice of the pictures where there are more.
_DOTS = 400
# The first eight are distinct without red against green (Okabe and Ito, 2008).
_COLOURS = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#b8a800",
    "#5e3c99", "#8c510a", "#e7298a", "#1b7837",
)  # fmt: skip


def render(scores: Scores, groups: Mapping[str, np.ndarray], gallery: int = 4) -> str:
    """Draws the page.

    Args:
      scores: from `scores.score`.
      groups: positions of the pictures of each group; the first one is all of them.
      gallery: pictures among the worst and among the best of each method.

    Returns:
      HTML with style, script and pictures inside; it makes no request to anywhere.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    tables = {metric: _group_rows(scores, metric, groups) for metric in scores.metrics}
    galleries, pictures = _galleries(scores, gallery)
    return environment.get_template("report.html").render(
        count=len(scores.references),
        methods=list(scores.values),
        colours={name: _COLOURS[at % len(_COLOURS)] for at, name in enumerate(scores.values)},
        metrics={name: METRICS[name] for name in scores.metrics},
        missing=scores.missing,
        confidence=f"{CONFIDENCE:.0%}",
        resamples=RESAMPLES,
        overview={
            method: [_cell(scores, method, metric, slice(None)) for metric in values]
            for method, values in scores.values.items()
        },
        tables=tables,
        ticks={
            metric: _ticks([end for row in rows for cell in row["cells"] for end in cell["ends"]])
            for metric, rows in tables.items()
        },
        share=lambda value, ticks: (value - ticks[0]) / max(ticks[-1] - ticks[0], 1e-12),
        scatter=_scatter(scores),
        galleries=galleries,
        pictures=pictures,
        has_input=INPUT in scores.values,
    )


def _cell(scores: Scores, method: str, metric: str, at: np.ndarray | slice) -> dict[str, Any]:
    """Makes a table's cell of the pictures `at`.

    Returns:
      Mean, interval and gain as text; "sort", the mean as a number; "ends", those of the interval,
      where there is a mean.
    """
    values = scores.values[method][metric][at]
    average, interval = mean(values), mean_interval(values)
    cell = {
        "method": method,
        "text": figure(metric, average),
        "sort": average,
        "ends": () if average is None else interval or (average, average),
        "interval": " to ".join(figure(metric, end) for end in interval or ()),
        "gain": "",
    }
    gain = scores.gains(method, metric)
    if gain is not None and (difference := mean(gain[at])) is not None:
        cell["gain"] = f"{difference:+.{METRICS[metric].decimals}f}"
        cell["better"] = (difference > 0) == METRICS[metric].higher_is_better
    return cell


def _group_rows(
    scores: Scores, metric: str, groups: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
    rows = []
    for name, at in groups.items():
        cells = [_cell(scores, method, metric, at) for method in scores.values]
        known = [cell for cell in cells if cell["sort"] is not None]
        choose = max if METRICS[metric].higher_is_better else min
        best = choose(known, key=lambda cell: cell["sort"], default={"text": None})
        for cell in cells:  # all that look the same
            cell["best"] = cell["text"] == best["text"]
        rows.append({"name": plain_name(name), "pictures": len(at), "cells": cells})
    return rows


def _scatter(scores: Scores) -> dict[str, Any]:
    """Chooses a dot per picture: its first metric in the input and in the result."""
    if not scores.metrics or INPUT not in scores.values:
        return {}
    metric = scores.metrics[0]
    before = scores.values[INPUT][metric]
    chosen = np.unique(np.linspace(0, len(before) - 1, min(len(before), _DOTS)).astype(int))
    dots = [
        (method, scores.references[at].name, float(before[at]), float(values[metric][at]))
        for method, values in scores.values.items()
        for at in chosen
        if method != INPUT and np.isfinite(before[at] + values[metric][at])
    ]
    ticks = _ticks([value for dot in dots for value in dot[2:]])
    return {"metric": METRICS[metric], "dots": dots, "ticks": ticks} if dots else {}


def _ticks(values: Sequence[float]) -> list[float]:
    """Chooses round numbers that enclose the values, in four to nine steps; none without values."""
    if not values:
        return []
    low, high = min(values), max(values)
    span = max(high - low, 1e-9)
    power = 10 ** np.floor(np.log10(span / 8))
    step = next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= 8)
    first, last = np.floor(low / step), np.ceil(high / step)
    return [float(round(step * number, 10)) for number in np.arange(first, last + 1)]


def _galleries(
    scores: Scores, count: int
) -> tuple[dict[str, dict[str, list[dict[str, Any]]]], dict[str, str]]:
    """Chooses each method's worst and best pictures, by gain over the input in the first metric.

    Returns:
      For each method "worst" and "best" entries that name embedded pictures; and those, as data
      URLs. Methods share the input's and the clean pictures.
    """
    galleries: dict[str, dict[str, list[dict[str, Any]]]] = {}
    pictures: dict[str, str] = {}
    if not scores.metrics:
        return galleries, pictures
    metric = scores.metrics[0]
    for method in scores.values:
        if method == INPUT:
            continue
        gain = scores.gains(method, metric)
        rank = scores.values[method][metric] if gain is None else gain
        rank = rank if METRICS[metric].higher_is_better else -rank
        order = [int(at) for at in np.argsort(rank, kind="stable") if np.isfinite(rank[at])]
        shown = min(count, len(order) // 2) if len(order) > 1 else len(order)
        galleries[method] = {
            title: list(filter(None, (_entry(scores, method, at, pictures) for at in chosen)))
            for title, chosen in (("worst", order[:shown]), ("best", order[::-1][:shown]))
        }
    return galleries, pictures


def _entry(scores: Scores, method: str, at: int, pictures: dict[str, str]) -> dict[str, Any] | None:
    """Makes an entry of a gallery; None when the page holds as many bytes of pictures as it may."""
    if sum(map(len, pictures.values())) > _PICTURE_BYTES:
        return None
    files = {"restored": scores.pictures[method][at], "clean": scores.references[at]}
    if INPUT in scores.pictures:
        files[INPUT] = scores.pictures[INPUT][at]
    keys = {}
    for role, file in files.items():
        keys[role] = f"{role}:{method if role == 'restored' else ''}:{at}"
        if keys[role] not in pictures:
            pictures[keys[role]] = data_url(load_picture(file), _SIDE, _QUALITY)
    height, width = load_picture(scores.references[at]).shape[:2]
    metrics = {}
    for metric in scores.metrics:
        shown = [scores.values[name][metric][at] for name in (INPUT, method)
                 if name in scores.values]  # fmt: skip
        if np.isfinite(shown).all():
            metrics[METRICS[metric].title] = " → ".join(figure(metric, value) for value in shown)
    return {
        "name": scores.references[at].name,
        "degradation": plain_name(scores.degradations[at]) if scores.degradations else "",
        "pictures": keys,
        "size": (width, height),
        "metrics": metrics,
    }
