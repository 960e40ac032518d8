"""Scores to probabilities, thresholds, and how well degradations are named. numpy and scipy."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize, special, stats

from cotir_jax.bench.words.table import plain_name

# Standard deviation of a Gaussian prior that pulls the logistic's slope towards 1 and its constant
# towards 0: scores that a threshold separates without error would make the slope infinite.
_PRIOR = 20.0


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
    slopes, constants = np.array([_logistic(raw[:, i], truth[:, i]) for i in kept]).T
    probabilities = special.expit(raw[:, kept] * slopes + constants)
    thresholds = np.array(list(map(best_threshold, probabilities.T, truth[:, kept].T)))
    return Calibration(tuple(names[i] for i in kept), slopes, constants, thresholds, len(truth))


def _logistic(raw: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Finds the slope and constant of the largest posterior."""
    signs = np.where(truth, 1.0, -1.0)
    features = np.stack([raw, np.ones_like(raw)], axis=1) * signs[:, None]

    def loss(fit: np.ndarray) -> tuple[float, np.ndarray]:
        margins, pull = features @ fit, (fit - (1.0, 0.0)) / _PRIOR
        gradient = pull / _PRIOR - special.expit(-margins) @ features
        return np.logaddexp(0, -margins).sum() + pull @ pull / 2, gradient

    start = 0.0, special.logit(truth.mean())
    return optimize.minimize(loss, start, jac=True, method="BFGS", options={"gtol": 1e-6}).x


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
    """Mean of the precision at every true picture, ranked by score; one at least is true.

    Equal scores share one place in the ranking, so the order of the pictures does not matter.
    """
    hits = stats.rankdata(-scores[truth], "max")
    return float((hits / stats.rankdata(-scores, "max")[truth]).mean())


class Accuracy(NamedTuple):
    """How well one degradation is named.

    Attributes:
      name: of the degradation.
      prevalence: share of pictures that have it: what chance gives as precision, at any rate of
        naming, and as average precision.
      named: share of pictures where it is named: what chance gives as recall, at that rate.
      precision: share of those named that have it; NaN where it was never named.
      recall: share of those that have it that were named.
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
      scores: `[pictures, names]`, of one picture at least.
      named: which degradations were named for which picture, same shape, bool.
      truth: which they have, same shape, bool.
    """
    hits, said, there = (x.sum(axis=0) for x in (named & truth, named, truth))
    rows = [
        Accuracy(
            name,
            prevalence=there[i] / len(truth),
            named=said[i] / len(truth),
            precision=hits[i] / said[i] if said[i] else float("nan"),
            recall=hits[i] / there[i],
            average_precision=average_precision(scores[:, i], truth[:, i]),
        )
        for i, name in enumerate(names)
        if there[i]
    ]
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
