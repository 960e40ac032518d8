"""Scoring one folder of results, as `cotir evaluate` does."""

from pathlib import Path

from cotir_jax.scoring.scores import score
from cotir_jax.scoring.summary import SUMMARY_NAME, method_names, summarise, write_summary


def evaluate(hq, results, **options):
    """Scores a folder of results and writes its summary into it; returns `summarise`'s figures."""
    (method,) = method_names([Path(results)], options.get("lq") is not None)
    scores = score(hq, {method: Path(results)}, **options)
    write_summary(scores, method, Path(results) / SUMMARY_NAME)
    return summarise(scores, method)
