"""Reading shards: index, order, prompts, batches. `test_data_faults.py` has what may go wrong.

The shards are written here with tarfile and Pillow. A picture's pixels say where they come from:
(column, row, sample id), with 100 added to the id in the clean one.
"""

import io
import os
import shutil
import tarfile
import time
from collections import Counter

import jax
import numpy as np
import pytest
from PIL import Image
from support.shards import (
    COUNTS,
    HEIGHT,
    PATCH,
    TOKENS,
    WIDTH,
    assert_equal,
    meta_json,
    png,
    read_batches,
    sample_files,
    sample_ids,
    write_shard,
)
from tokenizers import Tokenizer

from cotir_jax.data import shard_index
from cotir_jax.data.batches import Stage
from cotir_jax.data.shard_index import ShardIndex
from cotir_jax.text.tokenizer import TextTokenizer

# Index


def test_index_reads_what_tarfile_reads(bench):
    index = ShardIndex.build(bench)
    assert index.degradations == ("haze", "low-light_noise", "snow")
    assert index.counts == (5, 7, 4) and index.truncated == ()
    found = []
    for shard in sorted((bench / "image").rglob("*.tar")):
        with tarfile.open(shard) as tar:
            files = {member.name: tar.extractfile(member).read() for member in tar}
        for key in dict.fromkeys(name.partition(".")[0] for name in files):
            found.append(tuple(files[f"{key}.{field}"] for field in shard_index.FIELDS))
    assert [index.read(sample) for sample in range(16)] == found
    assert index.name(15).endswith("image/snow/000001.tar key-15")


@pytest.mark.parametrize("layout", ["image folder", "shards in root", "spe_prompt"])
def test_other_layouts(own_bench, layout):
    folder = own_bench
    if layout == "image folder":
        folder = own_bench / "image"
    elif layout == "shards in root":
        for inner in (own_bench / "image").iterdir():
            inner.rename(own_bench / inner.name)
        (own_bench / "image").rmdir()
    else:
        (own_bench / "prompts" / "spe_prompt").mkdir()
        for name in COUNTS:
            file = own_bench / "prompts" / f"{name}.txt"
            file.rename(file.parent / "spe_prompt" / file.name)
    index = ShardIndex.build(folder)
    assert index.counts == (5, 7, 4)
    assert index.prompts.precise["snow"] == ("snow line 0", "snow line 1")


def test_index_is_reused_until_shards_change(own_bench, monkeypatch):
    first = ShardIndex.build(own_bench)
    scans = []
    scan = shard_index._scan
    monkeypatch.setattr(shard_index, "_scan", lambda *given: scans.append(1) or scan(*given))
    again = ShardIndex.build(own_bench)
    assert not scans
    for name in ("shard", "offsets", "sizes", "ranges"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    shard = own_bench / "image" / "snow" / "000001.tar"
    os.utime(shard, ns=(0, 0))
    ShardIndex.build(own_bench)
    assert len(scans) == 1
    write_shard(shard.with_name("000002.tar"), {"new": sample_files(16)})
    assert ShardIndex.build(own_bench).counts == (5, 7, 5)
    shard.unlink()
    assert ShardIndex.build(own_bench).counts == (5, 7, 4)
    (own_bench / "image" / shard_index.INDEX_FILE).write_bytes(b"PK damaged")
    assert ShardIndex.build(own_bench).counts == (5, 7, 4) and len(scans) == 4
    assert not list((own_bench / "image").glob(".*"))


def test_index_stays_in_memory_where_it_cannot_be_kept(own_bench, caplog):
    (own_bench / "image" / shard_index.INDEX_FILE).mkdir()  # root may write anywhere else
    assert ShardIndex.build(own_bench).counts == (5, 7, 4)
    assert "stays in memory" in caplog.text
    assert not list((own_bench / "image").glob(".*"))


def test_split_holds_samples_out(bench, tokenizer_file):
    index, held_out = ShardIndex.build(bench).split(2)
    assert index.counts == (3, 5, 2) and held_out.counts == (2, 2, 2)
    once = next(iter(read_batches(held_out, tokenizer_file, Stage(0, 1, PATCH, 6))))
    assert sorted(sample_ids(once)) == [3, 4, 10, 11, 14, 15]
    seen = {i for batch in read_batches(index, tokenizer_file) for i in sample_ids(batch)}
    assert seen == set(range(16)) - {3, 4, 10, 11, 14, 15}
    assert ShardIndex.build(bench).split(0)[1] is None
    with pytest.raises(ValueError, match=r"config\.data\.validation=4: snow has only 4 samples"):
        ShardIndex.build(bench).split(4)


# Order


def test_shares_reach_the_batches(bench, tokenizer_file):
    index = ShardIndex.build(bench)
    shares = (("low-light+noise", 3), ("snow", 2))
    batches = read_batches(index, tokenizer_file, Stage(0, 2, PATCH, 6), shares=shares)
    assert [Counter(batch["group"].tolist()) for batch in batches] == [{0: 1, 1: 3, 2: 2}] * 2
    for wrong in ("fog", 2), ("snow", 0), ("snow", 1.5):
        with pytest.raises(ValueError, match=r"config\.data\.shares: got .*one of haze, low-light"):
            read_batches(index, tokenizer_file, shares=(wrong,))


def test_schedule_follows_the_global_step(bench, tokenizer_file):
    index = ShardIndex.build(bench)
    words = Tokenizer.from_file(str(tokenizer_file))
    schedule = ((0, 0.0), (103, 1.0))
    stage = Stage(100, 106, PATCH, 8)
    first_words = [
        {words.id_to_token(i) for i in batch["prompt"].ids[:, 0]}
        for batch in read_batches(index, tokenizer_file, stage, vague_schedule=schedule)
    ]
    # Lines of every prompt file begin with an unknown word.
    assert all("vague" not in found for found in first_words[:3])
    assert all("precise" not in found for found in first_words[3:])
    assert any("vague" in found for found in first_words[3:])


# Tokens and batches


def test_tokenizer_pads_and_cuts(tokenizer_file):
    tokenizer = TextTokenizer(tokenizer_file, 4, "minilm")
    ids, mask = tokenizer("plan 3")
    assert ids.dtype == np.int32 and ids.tolist() == [4, 11, 0, 0]
    assert mask.tolist() == [True, True, False, False]
    ids, mask = tokenizer("plan 0 1 2 3 4")
    assert ids.tolist() == [4, 8, 9, 10] and mask.all()
    with pytest.raises(ValueError, match="no such file"):
        TextTokenizer(tokenizer_file.with_name("other.json"), 4, "minilm")
    with pytest.raises(ValueError, match="0 tokens"):
        TextTokenizer(tokenizer_file, 0, "minilm")


def test_batches_hold_aligned_patches_and_their_texts(bench, tokenizer_file):
    index = ShardIndex.build(bench)
    corners, mirrored = set(), set()
    for batch in read_batches(index, tokenizer_file, Stage(0, 30, PATCH, 6)):
        for name in ("lq", "hq"):
            assert batch[name].shape == (6, PATCH, PATCH, 3) and batch[name].dtype == np.uint8
        for kind in ("prompt", "scene", "degradation", "plan"):
            ids, mask = batch[kind]
            assert ids.shape == mask.shape == (6, TOKENS)
            assert ids.dtype == np.int32 and mask.dtype == bool
        assert batch["group"].dtype == batch["corrupt"].dtype == np.int32
        assert not batch["corrupt"].any()
        np.testing.assert_array_equal(batch["hq"], batch["lq"] + np.array([0, 0, 100], np.uint8))
        for row, sample_id in enumerate(sample_ids(batch)):
            patch = batch["lq"][row].astype(int)
            rightwards = patch[0, 1, 0] - patch[0, 0, 0]
            assert (np.diff(patch[..., 0], axis=1) == rightwards).all()
            assert (np.diff(patch[..., 1], axis=0) == 1).all()
            corners.add((patch[0, :, 0].min(), patch[0, 0, 1]))
            mirrored.add(int(rightwards))
            assert batch["group"][row] == (sample_id >= 5) + (sample_id >= 12)
            assert batch["scene"].ids[row].tolist() == [2, 8 + sample_id, 0, 0, 0, 0]
            assert batch["degradation"].ids[row, :2].tolist() == [3, 8 + sample_id]
            assert batch["plan"].ids[row, :2].tolist() == [4, 8 + sample_id]
            assert batch["plan"].mask[row].tolist() == [True, True, False, False, False, False]
    assert mirrored == {-1, 1}
    # 9 x 5 places, 180 draws.
    assert len(corners) > 35 and {c for c, _ in corners} == set(range(9))
    assert {r for _, r in corners} == set(range(5))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_pooled_tokens_are_of_the_prompt(bench, tokenizer_file, num_workers):
    pooled = TextTokenizer(tokenizer_file, 4, "minilm")
    dataset = read_batches(
        ShardIndex.build(bench),
        tokenizer_file,
        Stage(0, 2, PATCH, 6),
        pooled_tokenizer=pooled,
        num_workers=num_workers,
    )
    iterator = iter(dataset)
    for batch in iterator:
        ids, mask = batch["pooled"]
        assert ids.shape == mask.shape == (6, 4)
        assert ids.dtype == np.int32 and mask.dtype == bool
        np.testing.assert_array_equal(ids, batch["prompt"].ids[:, :4])
        np.testing.assert_array_equal(mask, batch["prompt"].mask[:, :4])
    iterator.close()


def test_pictures_that_are_not_rgb(own_bench, tokenizer_file):
    stream = io.BytesIO()
    Image.new("L", (WIDTH, HEIGHT), 77).save(stream, "PNG")
    grey = {"hq.png": stream.getvalue(), "lq.png": png(1), "meta.json": meta_json(1)}
    shutil.rmtree(own_bench / "image")
    write_shard(own_bench / "image" / "haze" / "0.tar", {"a": grey})
    batch = next(iter(read_batches(ShardIndex.build(own_bench), tokenizer_file)))
    assert (batch["hq"] == 77).all()


def test_processes_together_see_what_one_sees(bench, tokenizer_file):
    index = ShardIndex.build(bench)
    whole = list(read_batches(index, tokenizer_file))
    assert len(whole) == 12 and whole[0]["lq"].shape[0] == 6
    parts = [list(read_batches(index, tokenizer_file, rows=(2 * i, 2 * i + 1))) for i in range(3)]
    for step, batch in enumerate(whole):
        joined = jax.tree.map(lambda *x: np.concatenate(x), *(part[step] for part in parts))
        assert_equal(joined, batch)


def test_stages_continue_the_stream(bench, tokenizer_file):
    index = ShardIndex.build(bench)
    whole = list(read_batches(index, tokenizer_file, Stage(0, 6, PATCH, 6)))
    tail = read_batches(index, tokenizer_file, Stage(2, 6, PATCH, 6, first_sample=12))
    for ours, theirs in zip(tail, whole[2:], strict=True):
        assert_equal(ours, theirs)


def test_prefetch_works_ahead(bench, tokenizer_file, monkeypatch):
    index = ShardIndex.build(bench)
    reads = []
    read = ShardIndex.read
    monkeypatch.setattr(ShardIndex, "read", lambda *given: reads.append(1) or read(*given))
    iterator = iter(read_batches(index, tokenizer_file))
    next(iterator)
    deadline = time.monotonic() + 20
    while len(reads) < 18 and time.monotonic() < deadline:
        time.sleep(0.01)  # the training step would run here
    assert len(reads) >= 18  # two batches more than were asked for
    iterator.close()
