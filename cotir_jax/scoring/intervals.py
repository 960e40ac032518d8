"""How sure a mean over pictures is: bootstrap intervals, the same numbers on every run."""

from __future__ import annotations

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 2000
_SEED = 0
# Resampled values held at once, as float64: 16 MB.
_CHUNK = 2_000_000


def mean_interval(values: np.ndarray) -> tuple[float, float] | None:
    """Percentile bootstrap interval of the mean.

    Pictures are drawn with replacement, `RESAMPLES` times as many as there are; the interval holds
    the middle `CONFIDENCE` of the means. Pictures count as independent: where several are cut from
    one photo, the true uncertainty is larger.

    Args:
        values: float `[pictures]`; NaN where a picture lacks the metric. For the gain of one method
            over another, pass the differences per picture.

    Returns:
        Lower and upper end; None with fewer than two values.

    References:
        Efron and Tibshirani, An introduction to the bootstrap, 1993, chapter 13.
    """
    values = values[~np.isnan(values)]
    count = len(values)
    if count < 2:
        return None
    rng = np.random.default_rng(_SEED)
    rows = max(_CHUNK // count, 1)
    means = [
        values[rng.integers(0, count, (min(rows, RESAMPLES - start), count))].mean(axis=1)
        for start in range(0, RESAMPLES, rows)
    ]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return float(low), float(high)
