"""Sampling steps against quality and time, for a model that restores a test split.

    python tests/benchmarks/restore_speed.py [--model-dir nano] [--steps 1,2,4,5,20] [--jsonl FILE]

Quality: means over the pictures of the split, precise prompts, against the clean ones; definitions
in `cotir_jax.scores.METRICS`. By default the split is built from scikit-image's photographs: two
pictures of 256x256 for each degradation and composite that nano was trained on. Time: seconds for
one picture of 512x512, compiled, median of five in turns with the other numbers of steps.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from cotir_jax import evaluate, scores
from cotir_jax.bench.build import build_bench
from cotir_jax.restore import Restorer
from cotir_jax.restore_split import restore_listing

METRICS = ("psnr", "ssim", "ms_ssim", "ciede2000", "niqe_refit", "piqe")


def measure_time(restorer: Restorer, steps: list[int], side: int = 512) -> dict[int, float]:
    """Seconds for a picture with each number of steps."""
    picture = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    for count in steps:
        restorer.pixels(picture, num_steps=count)
    seconds: dict[int, list[float]] = {count: [] for count in steps}
    for _ in range(5):
        for count in steps:
            start = time.perf_counter()
            restorer.pixels(picture, num_steps=count)
            seconds[count].append(time.perf_counter() - start)
    return {count: statistics.median(taken) for count, taken in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model-dir", default="nano")
    parser.add_argument("--steps", default="1,2,4,5,20")
    parser.add_argument("--jsonl", type=Path, help="a test split's test.jsonl")
    arguments = parser.parse_args()
    steps = [int(count) for count in arguments.steps.split(",")]
    restorer = Restorer.load(arguments.model_dir)
    seconds = measure_time(restorer, steps)
    with tempfile.TemporaryDirectory() as folder:
        listing = arguments.jsonl
        if listing is None:
            build_bench(Path(folder) / "bench", degradations="quick", samples_per_degradation=1,
                        test_per_degradation=2, size=256, seed=7)  # fmt: skip
            listing = Path(folder) / "bench" / "test" / "test.jsonl"
        results = {}
        for count in steps:
            results[f"{count}"] = Path(folder) / f"{count}"
            for _ in restore_listing(
                restorer.pixels, listing, results[f"{count}"], "precise", num_steps=count
            ):
                pass
        scored = scores.score(
            listing.parent / "hq", results, lq=listing.parent / "lq", jsonl=listing, metrics=METRICS
        )
    titles = [scores.METRICS[name].title for name in METRICS]
    print("| steps | seconds | " + " | ".join(titles) + " |\n|" + "---|" * (len(METRICS) + 2))
    for method in (scores.INPUT, *results):
        values = [evaluate.mean(scored.values[method][name]) for name in METRICS]
        means = [evaluate.figure(name, value) for name, value in zip(METRICS, values, strict=True)]
        taken = "-" if method == scores.INPUT else f"{seconds[int(method)]:.2f}"
        print(f"| {method} | {taken} | " + " | ".join(means) + " |")


if __name__ == "__main__":
    main()
