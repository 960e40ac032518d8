"""How sure a mean over pictures is: bootstrap intervals, the same numbers on every run."""

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 2000
_SEED = 0
_VALUES_AT_ONCE = 2_000_000  # resampled, as float64: 16 MB


def mean_interval(values: np.ndarray) -> tuple[float, float] | None:
    """Returns the percentile bootstrap interval of the mean, the middle `CONFIDENCE` of the means.

    Pictures count as independent: where several are cut from one photo, the true uncertainty is
    larger.

    Args:
        values: float `[pictures]`, gains for example; NaN where a picture lacks the metric.

    Returns:
        Lower and upper end; None with fewer than two values.
    """
    values = values[~np.isnan(values)]
    if len(values) < 2:
        return None
    from scipy import stats  # a second that training need not wait for

    ends = stats.bootstrap(
        (values,),
        np.mean,
        confidence_level=CONFIDENCE,
        n_resamples=RESAMPLES,
        method="percentile",
        batch=max(_VALUES_AT_ONCE // len(values), 1),
        rng=np.random.default_rng(_SEED),
    ).confidence_interval
    return float(ends.low), float(ends.high)
