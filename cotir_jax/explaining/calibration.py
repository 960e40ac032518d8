"""Scores to probabilities, thresholds, and how well degradations are named. numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cotir_jax.bench.words.table import plain_name

# Standard deviation of a Gaussian prior that pulls the logistic's slope towards 1 and its constant
# towards 0: scores that a threshold separates without error would make the slope infinite.
_PRIOR = 20.0
_NEWTON_STEPS = 100


class Calibration(NamedTuple):
    """How scores become probabilities and names, fitted on a validation split.

    Attributes:
      names: degradations that occur in the split.
      slopes, constants: of the logistic `1 / (1 + exp(-(slope * raw + constant)))`, `[names]`.
      thresholds: probabilities from which on a degradation is named, `[names]`.
      pictures: how many pictures were used.
    """

    names: tuple[str, ...]
    slopes: np.ndarray
    constants: np.ndarray
    thresholds: np.ndarray
    pictures: int


def fit_calibration(names: Sequence[str], raw: np.ndarray, truth: np.ndarray) -> Calibration:
    """Fits a logistic and the threshold of best F1 for every degradation.

    Args:
      names: degradations.
      raw: their scores for each picture, `[pictures, names]`.
      truth: whether they are there, `[pictures, names]`, bool.

    Returns:
      The calibration of those degradations that some pictures have and some have not.

    Raises:
      ValueError: when there is none of these.
    """
    kept = [i for i in range(len(names)) if 0 < truth[:, i].sum() < len(truth)]
    if not kept:
        raise ValueError(
            f"{len(truth)} pictures with the same degradations: nothing to calibrate; use a split "
            "with several degradations"
        )
    fits = np.array([_logistic(raw[:, i], truth[:, i]) for i in kept])
    probabilities = sigmoid(raw[:, kept] * fits[:, 0] + fits[:, 1])
    thresholds = [best_threshold(probabilities[:, j], truth[:, i]) for j, i in enumerate(kept)]
    return Calibration(
        tuple(names[i] for i in kept), fits[:, 0], fits[:, 1], np.array(thresholds), len(truth)
    )


def sigmoid(x: np.ndarray) -> np.ndarray:
    """`1 / (1 + exp(-x))`, without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * np.asarray(x, np.float64)))


def best_threshold(scores: np.ndarray, truth: np.ndarray) -> float:
    """Finds the threshold of the best F1, midway between the two scores that it separates.

    Args:
      scores: `[pictures]`.
      truth: `[pictures]`, bool, at least one true.
    """
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(truth[order])
    f1 = 2 * hits / (np.arange(1, len(hits) + 1) + truth.sum())
    # Equal scores are named together or not at all.
    f1[:-1][ranked[:-1] == ranked[1:]] = -1
    last = int(np.argmax(f1))
    below = ranked[last + 1] if last + 1 < len(ranked) else 0.0
    return float((ranked[last] + below) / 2)


def average_precision(scores: np.ndarray, truth: np.ndarray) -> float:
    """Mean of the precision at every true picture, ranked by score; NaN without any.

    Equal scores share one place in the ranking, so the order of the pictures does not matter.
    """
    if not truth.any():
        return float("nan")
    distinct, place = np.unique(-scores, return_inverse=True)
    hits = np.bincount(place, truth, len(distinct))
    ranked = np.cumsum(np.bincount(place, minlength=len(distinct)))
    return float((np.cumsum(hits) / ranked * hits).sum() / truth.sum())


class Accuracy(NamedTuple):
    """How well one degradation is named.

    Attributes:
      name: of the degradation.
      prevalence: share of pictures that have it: what chance gives as precision, at any rate of
        naming, and as average precision.
      named: share of pictures where it is named: what chance gives as recall, at that rate.
      precision: share of those named that have it; NaN where it was never named.
      recall: share of those that have it that were named; NaN where none has it.
      average_precision: of the ranking by score.
    """

    name: str
    prevalence: float
    named: float
    precision: float
    recall: float
    average_precision: float


class AccuracyTable(NamedTuple):
    """How well degradations are named, for each of them and over all pictures.

    Attributes:
      rows: one for each degradation that occurs in the split.
      all_named: share of pictures whose true degradations are all among those named.
      all_named_by_chance: the same if each picture got a random picture's explanation: the mean
        over all pairs of pictures.
      top_named: share of pictures whose highest score belongs to a true degradation.
      top_named_by_chance: likewise by chance.
      pictures: how many.
    """

    rows: tuple[Accuracy, ...]
    all_named: float
    all_named_by_chance: float
    top_named: float
    top_named_by_chance: float
    pictures: int


def measure_accuracy(
    names: Sequence[str], scores: np.ndarray, named: np.ndarray, truth: np.ndarray
) -> AccuracyTable:
    """Compares what was named with the truth.

    Args:
      names: degradations.
      scores: `[pictures, names]`.
      named: `[pictures, names]`, bool.
      truth: `[pictures, names]`, bool.

    Raises:
      ValueError: no pictures, or shapes that differ.
    """
    if not len(scores) or not scores.shape == named.shape == truth.shape:
        raise ValueError(
            f"scores {scores.shape}, named {named.shape} and truth {truth.shape}: expected all "
            "three [pictures, names], with one picture at least"
        )
    rows = []
    for i, name in enumerate(names):
        hits, said, there = (named[:, i] & truth[:, i]).sum(), named[:, i].sum(), truth[:, i].sum()
        if there:
            precision = float(hits / said) if said else float("nan")
            ranking = average_precision(scores[:, i], truth[:, i])
            rows.append(
                Accuracy(
                    name,
                    float(there / len(truth)),
                    float(said / len(truth)),
                    precision,
                    float(hits / there),
                    ranking,
                )
            )
    # missing[a, b]: true degradations of picture a that are not named for picture b.
    missing = truth.astype(np.int32) @ (~named).astype(np.int32).T
    top = scores.argmax(axis=1)
    return AccuracyTable(
        tuple(rows),
        float((np.diag(missing) == 0).mean()),
        float((missing == 0).mean()),
        float(truth[np.arange(len(truth)), top].mean()),
        float(truth.mean(axis=0)[top].mean()),
        len(truth),
    )


def format_accuracy(table: AccuracyTable) -> str:
    """Formats a Markdown table with two lines below it."""
    lines = [
        "| degradation | precision | by chance | recall | by chance | average precision |",
        "|---|---|---|---|---|---|",
    ]
    for row in table.rows:
        values = (row.precision, row.prevalence, row.recall, row.named, row.average_precision)
        cells = " | ".join("-" if np.isnan(value) else f"{100 * value:.0f} %" for value in values)
        lines.append(f"| {plain_name(row.name)} | {cells} |")
    lines += [
        "",
        f"All true degradations are among those named for {100 * table.all_named:.0f} % of "
        f"{table.pictures} pictures (by chance, with another picture's explanation, "
        f"{100 * table.all_named_by_chance:.0f} %).",
        f"The highest score is a true degradation's for {100 * table.top_named:.0f} % "
        f"(by chance {100 * table.top_named_by_chance:.0f} %).",
    ]
    return "\n".join(lines)


def _logistic(raw: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Finds the slope and constant of the largest posterior by Newton's method."""
    features = np.stack([raw, np.ones_like(raw)], axis=1).astype(np.float64)
    mean = np.array([1.0, 0.0])
    fit = np.array([0.0, np.log(truth.mean() / (1 - truth.mean()))])
    for _ in range(_NEWTON_STEPS):
        p = sigmoid(features @ fit)
        gradient = features.T @ (truth - p) - (fit - mean) / _PRIOR**2
        hessian = (features * (p * (1 - p))[:, None]).T @ features + np.eye(2) / _PRIOR**2
        step = np.linalg.solve(hessian, gradient)
        # Newton's steps can overshoot where the slope is steep.
        step *= min(1.0, 10.0 / np.abs(step).max())
        fit = fit + step
        if np.abs(step).max() < 1e-8:
            break
    return float(fit[0]), float(fit[1])
