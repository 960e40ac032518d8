r"""Explains all pictures of a split, to calibrate explanations or measure how often they are true.

For nano:

    cotir bench build --photos=OTHERS/ --test-photos=VALIDATION/ --samples=1 --test-samples=6 \
        --size=256 --seed=4 --degradations=all --out=val/
    cotir calibrate --model-dir=nano --jsonl=val/test/test.jsonl
    cotir explain --model-dir=nano --jsonl=test/test/test.jsonl     # docs/explaining.md
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from cotir_jax.bench.composites import SINGLES
from cotir_jax.bench.listing import find_lq, read_listing
from cotir_jax.explaining import calibration
from cotir_jax.explaining.explainer import Explainer, Explanation
from cotir_jax.images.pictures import load_picture


def calibrate(explainer: Explainer, listing: Path) -> calibration.Calibration:
    """Calibrates on a validation split: neither training's nor the one that is reported.

    Args:
      explainer: calibrated already or not.
      listing: the split's `test.jsonl`.

    Raises:
      ValueError: for a damaged listing, or a split with too few kinds of degradations.
    """
    thoughts, types = split_thoughts(explainer, listing)
    raw = explainer.raw_scores(thoughts)[:, : len(SINGLES)]
    return calibration.fit_calibration(SINGLES, raw, truth_table(types))


def explain_split(explainer: Explainer, listing: Path) -> tuple[list[Explanation], list[str]]:
    """Explanations of a split's pictures, and their true degradations, joined by `+`."""
    thoughts, types = split_thoughts(explainer, listing)
    return [explainer.read(one) for one in thoughts], types


def split_thoughts(explainer: Explainer, listing: Path) -> tuple[np.ndarray, list[str]]:
    """Pooled thoughts `[pictures, 3, channels]` of a split's degraded pictures, and the truth."""
    rows = read_listing(listing)
    thoughts = [
        explainer.thoughts(load_picture(find_lq(listing, row)))
        for row in tqdm(rows, desc="explain", unit="picture", disable=None)
    ]
    return np.stack(thoughts), [row.deg_type for row in rows]


def accuracy(
    explanations: Sequence[Explanation], types: Sequence[str]
) -> calibration.AccuracyTable:
    """How well degradations are named; a degradation that is not reported counts as score 0.

    Args:
      explanations: of pictures.
      types: their true degradations, several joined by `+`.
    """
    scores = np.zeros((len(explanations), len(SINGLES)))
    named = np.zeros(scores.shape, bool)
    for row, explanation in enumerate(explanations):
        for reading in explanation.degradations:
            column = SINGLES.index(reading.name)
            scores[row, column], named[row, column] = reading.score, reading.named
    return calibration.measure_accuracy(SINGLES, scores, named, truth_table(types))


def truth_table(types: Sequence[str]) -> np.ndarray:
    """`[pictures, 19]`, bool: which degradations are in names joined by `+`.

    Raises:
      ValueError: for a name that the benchmark does not have.
    """
    unknown = sorted({part for name in types for part in name.split("+")} - set(SINGLES))
    if unknown:
        raise ValueError(f"unknown degradation {unknown[0]!r}; expected {', '.join(SINGLES)}")
    return np.array([[name in parts.split("+") for name in SINGLES] for parts in types])
