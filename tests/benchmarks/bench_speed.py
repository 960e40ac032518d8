"""Samples per second per core of the benchmark builder, and where the time goes.

    python tests/benchmarks/bench_speed.py [--photos FOLDER] [--size 256] [--degradations all]

One process makes samples of every degradation in turn, without writing them. Seconds are CPU
seconds, so that other programs on the machine count little. Each part's share is measured by a
clock around its functions; ``--profile`` prints cProfile's list instead.
"""

import argparse
import cProfile
import json
import pstats
import statistics
import time
from collections import defaultdict

from cotir_jax.bench import photos, plan

# What each part of a sample is made by, in cotir_jax.bench.plan.
PARTS = {
    "encode PNG": ("encode_png",),
    "degrade": ("sample_chain", "apply_chain"),
    "crop": ("choose_crop", "cut"),
    "words": ("write_meta",),
    "read photo": ("trimmed_photo", "depth_of_photo"),
}


def put_clocks() -> dict[str, float]:
    """Wrap the functions of each part; returns the CPU seconds that pass in them."""
    seconds: dict[str, float] = defaultdict(float)

    def clocked(function, part):
        def run(*arguments, **options):
            start = time.process_time()
            try:
                return function(*arguments, **options)
            finally:
                seconds[part] += time.process_time() - start

        return run

    for part, names in PARTS.items():
        for name in names:
            setattr(plan, name, clocked(getattr(plan, name), part))
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", help="folder; default: the photographs inside scikit-image")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--degradations", default="all")
    parser.add_argument("--samples", type=int, default=8, help="of each degradation")
    parser.add_argument("--slowest", type=int, default=5, help="degradations to name")
    parser.add_argument("--no-cache", action="store_true", help="read the photo for every sample")
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    if arguments.no_cache:
        photos._CACHE_BYTES = 0
    whole = plan.make_plan(
        arguments.photos,
        samples_per_degradation=arguments.samples,
        size=arguments.size,
        degradations=arguments.degradations,
    )
    jobs = list(whole.jobs("train", arguments.samples))
    for job in jobs:  # imports, tables and photos
        plan.make_sample(job, 0)
    if arguments.profile:
        with cProfile.Profile() as profile:
            for job in jobs:
                list(plan.make_samples(job))
        pstats.Stats(profile).sort_stats("tottime").print_stats(30)
        return
    seconds = put_clocks()
    of_job, size = {}, 0
    for job in jobs:
        start = time.process_time()
        size += sum(len(sample.hq) + len(sample.lq) for sample in plan.make_samples(job))
        of_job[job.name] = (time.process_time() - start) / len(job.numbers)
    total = sum(of_job.values()) * arguments.samples
    count = len(jobs) * arguments.samples
    slowest = sorted(of_job, key=lambda name: -of_job[name])[: arguments.slowest]
    shares = {part: round(100 * seconds[part] / total, 1) for part in PARTS}
    print(
        json.dumps(
            {
                "size": arguments.size,
                "samples": count,
                "samples_per_second_per_core": round(count / total, 1),
                "pictures_per_second_per_core": round(2 * count / total, 1),
                "percent": shares | {"rest": round(100 - sum(shares.values()), 1)},
                "kilobytes_per_picture": round(size / count / 2000, 1),
                "median_ms": round(1000 * statistics.median(of_job.values()), 1),
                "slowest_ms": {name: round(1000 * of_job[name], 1) for name in slowest},
            }
        )
    )


if __name__ == "__main__":
    main()
