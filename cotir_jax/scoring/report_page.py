"""The report as one HTML file that needs nothing else: tables, plots, pictures with sliders."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from cotir_jax.bench.words.table import plain_name
from cotir_jax.images.pictures import load_picture
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
    methods = list(scores.values)
    colours = {name: _COLOURS[at % len(_COLOURS)] for at, name in enumerate(methods)}
    galleries, pictures = _galleries(scores, gallery)
    return environment.get_template("report.html").render(
        count=len(scores.references),
        methods=methods,
        colours=colours,
        metrics={name: METRICS[name] for name in scores.metrics},
        missing=scores.missing,
        confidence=f"{CONFIDENCE:.0%}",
        resamples=RESAMPLES,
        overview=[_overview_row(scores, method) for method in methods],
        tables={metric: _group_rows(scores, metric, groups) for metric in scores.metrics},
        plots={metric: _dot_plot(scores, metric, groups, colours) for metric in scores.metrics},
        scatter=_scatter(scores, colours),
        galleries=galleries,
        pictures=pictures,
        has_input=INPUT in scores.values,
    )


def _overview_row(scores: Scores, method: str) -> dict[str, Any]:
    return {
        "method": method,
        "cells": [
            _cell(metric, values, scores.gains(method, metric))
            for metric, values in scores.values[method].items()
        ],
    }


def _cell(metric: str, values: np.ndarray, gain: np.ndarray | None = None) -> dict[str, Any]:
    """Makes a table's cell: mean, interval and gain as text, and the number to sort by."""
    average = mean(values)
    cell = {"text": figure(metric, average), "sort": average, "interval": "", "gain": ""}
    ends = mean_interval(values)
    if ends is not None:
        cell["interval"] = f"{figure(metric, ends[0])} to {figure(metric, ends[1])}"
    if gain is not None and (difference := mean(gain)) is not None:
        cell["gain"] = f"{difference:+.{METRICS[metric].decimals}f}"
        cell["better"] = (difference > 0) == METRICS[metric].higher_is_better
    return cell


def _group_rows(
    scores: Scores, metric: str, groups: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
    rows = []
    for name, at in groups.items():
        cells = [_cell(metric, values[metric][at]) for values in scores.values.values()]
        _mark_best(cells, METRICS[metric].higher_is_better)
        rows.append({"name": plain_name(name), "pictures": len(at), "cells": cells})
    return rows


def _mark_best(cells: list[dict[str, Any]], higher_is_better: bool) -> None:
    known = [cell["sort"] for cell in cells if cell["sort"] is not None]
    best = (max if higher_is_better else min)(known, default=None)
    shown = next((cell["text"] for cell in cells if cell["sort"] == best), None)
    for cell in cells:  # all that look the same
        cell["best"] = best is not None and cell["text"] == shown


def _dot_plot(
    scores: Scores, metric: str, groups: Mapping[str, np.ndarray], colours: Mapping[str, str]
) -> dict[str, Any]:
    """Places a row per group and a dot per method with its interval; lengths in SVG units."""
    left, width, top = 360, 620, 8
    row_height = max(22, 3 * len(scores.values) + 6)
    rows, low, high = [], np.inf, -np.inf
    for name, at in groups.items():
        dots = []
        for method, values in scores.values.items():
            average = mean(values[metric][at])
            if average is not None:
                ends = mean_interval(values[metric][at]) or (average, average)
                low, high = min(low, ends[0]), max(high, ends[1])
                dots.append((method, average, ends))
        rows.append((plain_name(name), dots))
    if not np.isfinite(low):
        return {}
    ticks = _ticks(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])

    def x(value: float) -> float:
        return round(left + width * (value - low) / max(high - low, 1e-12), 1)

    return {
        "width": left + width + 30,
        "height": top + row_height * len(rows) + 34,
        "left": left,
        "right": left + width,
        "row_height": row_height,
        "bottom": top + row_height * len(rows),
        "ticks": [(x(tick), f"{tick:g}") for tick in ticks],
        "rows": [
            {
                "name": name,
                "y": top + row_height * (at + 0.5),
                "dots": [
                    {
                        "x": x(average),
                        "low": x(ends[0]),
                        "high": x(ends[1]),
                        "colour": colours[method],
                        "title": f"{method}, {name}: {figure(metric, average)}",
                        # Side by side within the row, so that equal dots do not hide each other.
                        "dy": round(
                            ((order + 0.5) / len(scores.values) - 0.5) * (row_height - 8), 1
                        ),
                    }
                    for order, (method, average, ends) in enumerate(dots)
                ],
            }
            for at, (name, dots) in enumerate(rows)
        ],
    }


def _scatter(scores: Scores, colours: Mapping[str, str]) -> dict[str, Any]:
    """Places a dot per picture: its first metric in the input (across) and in the result (up)."""
    others = [method for method in scores.values if method != INPUT]
    if not scores.metrics or INPUT not in scores.values or not others:
        return {}
    metric = scores.metrics[0]
    before = scores.values[INPUT][metric]
    at = np.unique(np.linspace(0, len(before) - 1, min(len(before), _DOTS)).astype(int))
    after = {method: scores.values[method][metric][at] for method in others}
    both = np.concatenate([before[at], *after.values()])
    both = both[np.isfinite(both)]
    if not len(both):
        return {}
    ticks = _ticks(float(both.min()), float(both.max()))
    low, high = min(float(both.min()), ticks[0]), max(float(both.max()), ticks[-1])
    left, top, side = 60, 10, 420

    def place(value: float) -> float:
        return round(side * (value - low) / max(high - low, 1e-12), 1)

    return {
        "title": METRICS[metric].title,
        "better": "above" if METRICS[metric].higher_is_better else "below",
        "left": left,
        "top": top,
        "side": side,
        "ticks": [(place(tick), f"{tick:g}") for tick in ticks],
        "dots": [
            (
                left + place(float(first)),
                top + side - place(float(second)),
                colours[method],
                f"{method}, {scores.references[position].name}",
            )
            for method, values in after.items()
            for position, first, second in zip(at, before[at], values, strict=True)
            if np.isfinite(first) and np.isfinite(second)
        ],
    }


def _ticks(low: float, high: float) -> list[float]:
    """Chooses round numbers that enclose the range, in four to nine steps."""
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
        worst, best = order[:shown], order[::-1][:shown]
        galleries[method] = {
            title: list(filter(None, (_entry(scores, method, at, pictures) for at in chosen)))
            for title, chosen in (("worst", worst), ("best", best))
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
            pictures[keys[role]] = _data_url(file)
    height, width = load_picture(scores.references[at]).shape[:2]
    metrics = {}
    for metric in scores.metrics:
        values = [scores.values[name][metric][at] for name in (INPUT, method) if name in
                  scores.values]  # fmt: skip
        if np.isfinite(values).all():
            metrics[METRICS[metric].title] = " → ".join(figure(metric, value) for value in values)
    return {
        "name": scores.references[at].name,
        "degradation": plain_name(scores.degradations[at]) if scores.degradations else "",
        "pictures": keys,
        "size": (width, height),
        "metrics": metrics,
    }


def _data_url(file: Path) -> str:
    image = Image.fromarray(load_picture(file))
    image.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
