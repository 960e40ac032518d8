"""The benchmark as ArrayRecord files: the samples of the tar shards, through TFDS and Grain."""

import json
import subprocess
import sys
from pathlib import Path

import grain
import numpy as np
import pytest
import tensorflow_datasets as tfds
from support.small_bench import SMALL, digests, save_photos

from cotir_jax.bench.build import build_bench
from cotir_jax.bench.check import check_bench
from cotir_jax.bench.records import open_split
from cotir_jax.bench.shards import read_shard
from cotir_jax.data.batches import Stage, stage_batches
from cotir_jax.data.shard_index import ShardIndex
from cotir_jax.images.pictures import load_picture
from cotir_jax.text.tokenizer import TextTokenizer

ROOT = Path(__file__).resolve().parents[2]
TOKENIZER = ROOT / "cotir_jax" / "weights" / "minilm" / "tokenizer.json"
OPTIONS = {**SMALL, "samples_per_degradation": 5, "test_per_degradation": 2}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return save_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def tars(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("tar") / "bench"
    build_bench(out, photos, workers=1, **OPTIONS)
    return out


@pytest.fixture(scope="module")
def records(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("records") / "bench"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cotir_jax.bench.build._SHARD_SAMPLES", 2)  # several shards of each
        build_bench(out, photos, workers=1, file_format="array_record", **OPTIONS)
    return out


def _samples(folder):
    return {
        key: sample
        for path in sorted(folder.glob("image/*/*.tar"))
        for key, sample in read_shard(path)
    }


def _check_same(records, tars):
    """The records' samples and their order are the tar shards'; so are the files of the test."""
    expected = _samples(tars)
    source = open_split(records, "train")
    assert len(source) == len(expected)
    for place, (key, sample) in enumerate(expected.items()):
        record = source[place]
        assert record["key"].decode() == key
        assert record["deg"].decode() == json.loads(sample["meta.json"])["deg"]
        found = {"hq.png": record["hq"], "lq.png": record["lq"], "meta.json": record["meta"]}
        assert found == sample
    for folder in ("test", "prompts"):
        assert digests(records / folder) == digests(tars / folder)
    report, of_tars = (check_bench(folder, workers=1) for folder in (records, tars))
    assert report == of_tars and not report.problems


def test_records_are_the_samples_of_the_tar_shards(records, tars):
    _check_same(records, tars)
    assert len(list(records.glob("cotir_bench/1.0.0/*-train.array_record-*"))) > 6
    assert not (records / "image").exists()


def test_tfds_and_grain_read_the_records(records, tars):
    source = tfds.data_source("cotir_bench", split="train", data_dir=records)
    expected = list(_samples(tars).items())
    assert source[7]["key"].decode() == expected[7][0]
    np.testing.assert_array_equal(source[7]["lq"], load_picture(expected[7][1]["lq.png"]))
    keys = [item["key"].decode() for item in grain.MapDataset.source(source).seed(1).shuffle()]
    assert sorted(keys) == [key for key, _ in expected] and keys != sorted(keys)
    rows = [json.loads(line) for line in (tars / "test" / "test.jsonl").read_text().splitlines()]
    test = tfds.data_source("cotir_bench", split="test", data_dir=records)
    by_key = {record["key"].decode(): record for record in test}
    assert set(by_key) == {row["id"] for row in rows}
    for row in rows:
        np.testing.assert_array_equal(
            by_key[row["id"]]["lq"], load_picture(tars / "test" / row["lq_path"])
        )


@pytest.mark.parametrize("workers", [0, 1])
def test_training_batches_are_the_same_from_both(records, tars, workers):
    def batches(folder):
        index, held_out = ShardIndex.build(folder).split(1)
        assert index.counts == (4,) * 6 and held_out.counts == (1,) * 6
        loader = iter(
            stage_batches(
                index,
                Stage(0, 4, 32, 5),
                seed=3,
                tokenizer=TextTokenizer(TOKENIZER, 32, "minilm"),
                vague_schedule=((0, 0.5),),
                num_workers=workers,
                num_threads=2,
            )
        )
        found = list(loader)
        loader.close()
        return found

    for left, right in zip(batches(records), batches(tars), strict=True):
        assert left.keys() == right.keys()
        for name in left:
            np.testing.assert_array_equal(left[name], right[name])


def test_index_of_records_names_samples_and_needs_no_prompt_files(records, tmp_path):
    (tmp_path / "cotir_bench").symlink_to(records / "cotir_bench")
    index, whole = ShardIndex.build(tmp_path), ShardIndex.build(records)
    assert index.prompts == whole.prompts
    assert index.name(5).endswith(" haze_snow-000000") and index.degradations[1] == "haze_snow"
    (records / "cotir_bench" / "1.0.0" / "metadata.json").rename(tmp_path / "kept")
    try:
        with pytest.raises(ValueError, match="metadata.json: cannot be read"):
            ShardIndex.build(records)
    finally:
        (tmp_path / "kept").rename(records / "cotir_bench" / "1.0.0" / "metadata.json")


def test_bytes_of_records_depend_on_the_seed_alone(records, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("cotir_jax.bench.build._SHARD_SAMPLES", 2)
    build_bench(tmp_path / "b", photos, workers=2, file_format="array_record", **OPTIONS)
    assert digests(tmp_path / "b") == digests(records)


def test_writing_and_reading_need_neither_tensorflow_nor_torch_nor_jax(photos, tmp_path):
    script = (
        "import sys\n"
        "from cotir_jax.bench.build import build_bench\n"
        "from cotir_jax.bench.check import check_bench\n"
        f"build_bench({str(tmp_path / 'b')!r}, {str(photos)!r}, workers=1, "
        f"file_format='array_record', **{OPTIONS!r})\n"
        f"assert not check_bench({str(tmp_path / 'b')!r}, workers=1).problems\n"
        "print([name for name in ('tensorflow', 'torch', 'jax') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_beam_gives_the_same_samples(tars, photos, tmp_path):
    pytest.importorskip("apache_beam", reason="needs Apache Beam: pip install cotir_jax[beam]")
    from cotir_jax.bench.tfds_builder import build_with_beam

    options = {name: value for name, value in OPTIONS.items() if name != "progress"}
    direct = ["--runner=DirectRunner", "--direct_num_workers=2",
              "--direct_running_mode=multi_processing"]  # fmt: skip
    counts = build_with_beam(tmp_path / "b", photos, beam_options=direct, **options)
    assert set(counts["train"]) == {path.parent.name for path in tars.glob("image/*/*.tar")}
    _check_same(tmp_path / "b", tars)
    with pytest.raises(ValueError, match="exists; name another folder"):
        build_with_beam(tmp_path / "b", photos, **options)


def test_beam_that_is_not_installed_is_named(photos, tmp_path, monkeypatch):
    from cotir_jax.bench.tfds_builder import build_with_beam

    monkeypatch.setitem(sys.modules, "apache_beam.options.pipeline_options", None)
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(ValueError, match=r"pip install 'cotir_jax\[beam\]'"):
        build_with_beam(tmp_path / "b", photos)
