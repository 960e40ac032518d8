"""Samples made while training: those of the builder, none twice, the same in another process."""

import hashlib
import io
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from support.shards import assert_equal

from cotir_jax.bench.build import build_bench
from cotir_jax.bench.plan import make_plan, make_sample
from cotir_jax.data.batches import Stage, stage_batches
from cotir_jax.data.fresh_samples import FreshSamples
from cotir_jax.data.shard_index import ShardIndex
from cotir_jax.text.tokenizer import Tokens

OPTIONS = {"degradations": "noise,haze,noise+jpeg-compression", "size": 64,
           "samples_per_degradation": 4, "test_per_degradation": 1}  # fmt: skip
_OTHER_PROCESS = """
import hashlib
from cotir_jax.bench.plan import make_plan
from cotir_jax.data.fresh_samples import FreshSamples
samples = FreshSamples(make_plan(**{options!r}))
print(hashlib.sha256(b"".join(samples.read({sample}))).hexdigest())
"""


@pytest.fixture(scope="module")
def samples():
    return FreshSamples(make_plan(**OPTIONS))


def _pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)))


def test_a_sample_is_the_builder_s(samples):
    start, end = samples.ranges[samples.degradations.index("haze")].tolist()
    lq, hq, meta = samples.read(start + 5)
    number = int(samples.name(start + 5).split()[1])
    job = samples.plan.job("train", "haze", range(number, number + 1))
    expected = make_sample(job, number)
    np.testing.assert_array_equal(_pixels(lq), _pixels(expected.lq))
    np.testing.assert_array_equal(_pixels(hq), _pixels(expected.hq))
    assert json.loads(meta) == json.loads(json.dumps(expected.meta))
    assert end - start == samples.counts[0]


def test_sizes_take_turns():
    samples = FreshSamples(make_plan(**OPTIONS), (48, 80))
    start = samples.ranges[0, 0]
    pairs = [samples.read(start + i)[:2] for i in range(4)]
    assert [_pixels(lq).shape for lq, _ in pairs] == [(s, s, 3) for s in (48, 80, 48, 80)]
    assert all(_pixels(lq).shape == _pixels(hq).shape for lq, hq in pairs)


def test_recoloured_samples_keep_what_asks_for_colours():
    plan = make_plan(**OPTIONS | {"degradations": "haze,lost_color"})
    plain, half, all_of_them = (FreshSamples(plan, recoloured=share) for share in (0, 0.5, 1))
    haze, lost = (
        plain.ranges[plain.degradations.index(name), 0] for name in ("haze", "lost_color")
    )
    for i in range(8):
        assert plain.read(lost + i) == all_of_them.read(lost + i)
    cleans = [[_pixels(s.read(haze + i)[1]) for i in range(40)] for s in (plain, half, all_of_them)]
    changed = [
        sum((a != b).any() for a, b in zip(cleans[0], other, strict=True)) for other in cleans
    ]
    assert changed[0] == 0 and 8 <= changed[1] <= 32 and changed[2] == 40
    # The builder's samples know nothing of it.
    job = next(plan.jobs("train", 4))
    assert job.recoloured == 0 and job.drawn == 0


def test_pages_are_drawn_where_nothing_asks_for_colours():
    plan = make_plan(**OPTIONS | {"degradations": "haze,lost_color"})
    plain, some, each = (FreshSamples(plan, drawn=share) for share in (0, 0.25, 1))
    haze, lost = (
        plain.ranges[plain.degradations.index(name), 0] for name in ("haze", "lost_color")
    )
    assert all(plain.read(lost + i) == each.read(lost + i) for i in range(4))
    cleans = [[_pixels(s.read(haze + i)[1]) for i in range(60)] for s in (plain, some, each)]
    changed = [
        sum((a != b).any() for a, b in zip(cleans[0], other, strict=True)) for other in cleans
    ]
    assert changed[0] == 0 and 5 <= changed[1] <= 27 and changed[2] == 60  # 15 expected


def test_no_sample_comes_twice_or_is_in_the_benchmark(samples, tmp_path):
    build_bench(tmp_path / "bench", **OPTIONS)
    index = ShardIndex.build(tmp_path / "bench")
    assert index.degradations == samples.degradations
    assert index.prompts == samples.prompts
    seen = set()
    for start, _ in samples.ranges.tolist():
        seen |= {hashlib.sha256(samples.read(start + i)[0]).hexdigest() for i in range(40)}
    assert len(seen) == 3 * 40
    built = [_pixels(index.read(i)[0]).tobytes() for i in range(3 * 4)]
    fresh = {_pixels(samples.read(start + i)[0]).tobytes()
             for start, _ in samples.ranges.tolist() for i in range(40)}  # fmt: skip
    assert not fresh & set(built)


def test_another_process_makes_the_same(samples):
    sample = int(samples.ranges[1, 0]) + 77
    code = _OTHER_PROCESS.format(options=OPTIONS, sample=sample)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == hashlib.sha256(b"".join(samples.read(sample))).hexdigest()


def test_a_worker_that_unpickles_them_imports_no_jax(samples, tmp_path):
    (tmp_path / "samples.pickle").write_bytes(pickle.dumps(samples))
    code = (
        "import pathlib, pickle, sys\n"
        "samples = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())\n"
        "samples.read(int(samples.ranges[0, 0]))\n"
        "print(*sorted({'cotir_jax', 'jax', 'flax'} & sys.modules.keys()))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "samples.pickle")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert run.stdout.split() == ["cotir_jax"]


def test_batches_continue_from_a_step(samples):
    def tokenizer(text):
        codes = np.zeros(8, np.int32)
        codes[: min(8, len(text))] = [ord(c) % 256 for c in text[:8]]
        return Tokens(codes, codes > 0)

    options = {"seed": 3, "tokenizer": tokenizer, "vague_schedule": ((0, 0.5),), "num_threads": 2}
    stage = Stage(0, 4, 48, 6)
    whole = list(stage_batches(samples, stage, **options))
    rest = list(stage_batches(samples, stage, first_step=2, **options))
    for before, after in zip(whole[2:], rest, strict=True):
        assert_equal(before, after)
    # Balanced: each round has one sample of each degradation.
    np.testing.assert_array_equal(np.sort(whole[0]["group"].reshape(2, 3), axis=1), [[0, 1, 2]] * 2)
