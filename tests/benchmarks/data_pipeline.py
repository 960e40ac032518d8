"""Pictures per second of the whole Grain pipeline against bare PNG decoding of the same bytes.

    python tests/benchmarks/data_pipeline.py [--data BENCH_FOLDER] [--threads 2] [--workers 0]

Both sides decode the very same samples, in turns, several times in one process. Bare decoding takes
PNG bytes that already lie in memory and lets Pillow decode them in as many threads (`load()`, no
copy to numpy). The pipeline reads the shards (in the page cache after the first turn), decodes,
crops, mirrors, chooses prompts, parses and tokenises four texts, and stacks batches. The clock
runs from one batch to a later one; starting processes is not counted.
"""

import argparse
import io
import json
import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from cotir_jax.bench.build import build_bench
from cotir_jax.data.batches import Stage, stage_batches
from cotir_jax.data.mixing import locate
from cotir_jax.data.shard_index import ShardIndex
from cotir_jax.text.tokenizer import TextTokenizer

TOKENIZER = Path(__file__).parents[2] / "cotir_jax" / "weights" / "minilm" / "tokenizer.json"


def bare_seconds(pictures: list[bytes], threads: int) -> tuple[float, float]:
    """Seconds, and CPU seconds of this process, to decode all of them."""

    def decode(data: bytes) -> None:
        with Image.open(io.BytesIO(data)) as image:
            image.load()

    with ThreadPoolExecutor(threads) as pool:
        start, cpu = time.perf_counter(), time.process_time()
        for _ in pool.map(decode, pictures):
            pass
        return time.perf_counter() - start, time.process_time() - cpu


def pipeline_seconds(
    index: ShardIndex, steps: int, arguments: argparse.Namespace
) -> tuple[float, float]:
    """Seconds, and CPU seconds of this process, from all threads at work to the last batch."""
    early = _early_batches(arguments)
    stage = Stage(0, steps + early, arguments.patch, arguments.batch)
    iterator = iter(
        stage_batches(
            index,
            stage,
            seed=0,
            tokenizer=TextTokenizer(TOKENIZER, arguments.tokens, "minilm"),
            vague_schedule=((0, 0.3),),
            num_workers=arguments.workers,
            num_threads=arguments.threads,
        )
    )
    for _ in range(early):
        next(iterator)
    start, cpu = time.perf_counter(), time.process_time()
    for _ in range(steps):
        assert not next(iterator)["corrupt"].any()
    seconds = time.perf_counter() - start, time.process_time() - cpu
    iterator.close()
    return seconds


def _early_batches(arguments: argparse.Namespace) -> int:
    # One batch of each thread comes before the clock, in it the start of processes. When the last
    # of these arrives the threads have just begun the next, so nothing measured is done before.
    return max(1, arguments.workers) * arguments.threads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="a CoTIR-Bench folder; default: build one at 512 pixels")
    parser.add_argument("--patch", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=24, help="batches in a turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=64)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = arguments.data
        if not data:
            data = Path(folder) / "bench"
            build_bench(data, samples_per_degradation=8, test_per_degradation=0, composites=False)
        index = ShardIndex.build(data)
        early = _early_batches(arguments) * arguments.batch
        count = arguments.steps * arguments.batch
        pictures = []
        for number in range(early, early + count):
            degradation, place = locate(number, seed=0, counts=index.counts)
            pictures += index.read(int(index.ranges[degradation, 0]) + place)[:2]
        bare, whole, cpu = [], [], []
        for turn in range(arguments.turns + 1):
            seconds = [
                bare_seconds(pictures, max(1, arguments.workers) * arguments.threads),
                pipeline_seconds(index, arguments.steps, arguments),
            ]
            if turn:  # the first turn warms caches
                bare.append(len(pictures) / seconds[0][0])
                whole.append(len(pictures) / seconds[1][0])
                cpu.append(seconds[0][1] / seconds[1][1])
    ratios = [b / a for a, b in zip(bare, whole, strict=True)]
    print(
        json.dumps(
            {
                "pictures": len(pictures),
                "threads": arguments.threads,
                "workers": arguments.workers,
                "bare_pictures_per_second": round(statistics.median(bare), 1),
                "pipeline_pictures_per_second": round(statistics.median(whole), 1),
                "ratio": round(statistics.median(ratios), 3),
                "ratio_min_max": [round(min(ratios), 3), round(max(ratios), 3)],
                # Other programs on the cores disturb this less. Of this process alone.
                "cpu_ratio": None if arguments.workers else round(statistics.median(cpu), 3),
            }
        )
    )


if __name__ == "__main__":
    main()
