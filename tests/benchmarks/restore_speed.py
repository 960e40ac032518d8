"""Sampling steps and int8 weights against quality and time, on a test split.

    python tests/benchmarks/restore_speed.py [--model-dir nano] [--steps 1,2,4,5,20] [--jsonl FILE]

Quality: means over the pictures of the split, precise prompts, against the clean ones; definitions
in `cotir_jax.scoring.scores.METRICS`. By default the split is built from scikit-image:  two
pictures of 256x256 for each degradation and composite that nano was trained on. Time: seconds for
one picture of 512x512, compiled, median of five in turns with the other numbers of steps.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from cotir_jax.bench.build import build_bench
from cotir_jax.restoring.restorer import Restorer
from cotir_jax.restoring.test_split import restore_listing
from cotir_jax.scoring import scores, summary

METRICS = ("psnr", "ssim", "ms_ssim", "ciede2000", "piqe")


def measure_time(ways: dict[str, tuple[Restorer, int]], side: int = 512) -> dict[str, float]:
    """Seconds for a picture by each way of restoring, which take turns."""
    picture = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(6):
        for name, (restorer, steps) in ways.items():
            start = time.perf_counter()
            restorer(picture, num_steps=steps)
            if turn:  # the first compiles
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model-dir", default="nano")
    parser.add_argument("--steps", default="1,2,4,5,20")
    parser.add_argument("--jsonl", type=Path, help="a test split's test.jsonl")
    arguments = parser.parse_args()
    restorer = Restorer.load(arguments.model_dir)
    ways = {count: (restorer, int(count)) for count in arguments.steps.split(",")}
    int8 = Restorer.load(arguments.model_dir, int8=True)
    ways["int8, 1"] = int8, 1
    seconds = measure_time(ways)
    for name, one in (("as loaded", restorer), ("int8", int8)):
        held = sum(array.nbytes for array in jax.tree.leaves(one.weights))
        print(f"weights {name}: {held / 1e6:.1f} MB")
    with tempfile.TemporaryDirectory() as folder:
        listing = arguments.jsonl
        if listing is None:
            build_bench(Path(folder) / "bench", degradations="quick", samples_per_degradation=1,
                        test_per_degradation=2, size=256, seed=7)  # fmt: skip
            listing = Path(folder) / "bench" / "test" / "test.jsonl"
        results = {}
        for name, (one, steps) in ways.items():
            results[name] = Path(folder) / name
            for _ in restore_listing(
                lambda picture, prompt, one=one, steps=steps: (
                    one(picture, prompt, num_steps=steps).image
                ),
                listing,
                results[name],
                "precise",
            ):
                pass
        scored = scores.score(
            listing.parent / "hq", results, lq=listing.parent / "lq", jsonl=listing, metrics=METRICS
        )
    titles = [scores.METRICS[name].title for name in METRICS]
    print("| steps | seconds | " + " | ".join(titles) + " |\n|" + "---|" * (len(METRICS) + 2))
    for method in (scores.INPUT, *results):
        values = [summary.mean(scored.values[method][name]) for name in METRICS]
        means = [summary.figure(name, value) for name, value in zip(METRICS, values, strict=True)]
        taken = "-" if method == scores.INPUT else f"{seconds[method]:.2f}"
        print(f"| {method} | {taken} | " + " | ".join(means) + " |")


if __name__ == "__main__":
    main()
