"""Reading shards: index, order, prompts, batches. `test_data_faults.py` has what may go wrong.

The shards are written here with tarfile and Pillow. A picture's pixels say where they come from:
(column, row, sample id), with 100 added to the id in the clean one.
"""

import hashlib
import io
import json
import os
import shutil
import tarfile
import time
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from cotir_jax.data import shard_index
from cotir_jax.data.batches import Stage, stage_batches
from cotir_jax.data.shard_index import ShardIndex
from cotir_jax.data.tokenizers import TextTokenizer

WIDTH, HEIGHT, PATCH = 24, 20, 16
COUNTS = {"haze": (4, 1), "low-light_noise": (7,), "snow": (3, 1)}  # samples in each shard
TOKENS = 6


def _png(sample_id, size=(WIDTH, HEIGHT)):
    columns, rows = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    picture = np.stack([columns, rows, np.full_like(rows, sample_id)], axis=2).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG")
    return stream.getvalue()


def _meta(sample_id):
    words = [f"{thought} {sample_id}" for thought in ("scene", "fault", "plan")]
    answers = (
        f"scene description: {words[0]} degradation description: {words[1]} "
        f"enhancement plan: {words[2]} answer: done"
    )
    questions = [f"vague {sample_id}", f"precise {sample_id}"]
    return json.dumps({"cot": {"questions": questions, "answers": answers}, "deg": "x"}).encode()


def _sample(sample_id):
    return {
        "hq.png": _png(100 + sample_id), "lq.png": _png(sample_id), "meta.json": _meta(sample_id)
    }  # fmt: skip


def _write_shard(path, samples):
    """Samples by key, each a dict of files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, files in samples.items():
            for field, data in files.items():
                member = tarfile.TarInfo(f"{key}.{field}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def _write_prompts(folder, names=("gen_prompt", *COUNTS)):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / f"{name}.txt").write_text(f"{name} line 0\n\n{name} line 1\n")


def _write_bench(root):
    sample_id = 0
    for name, shards in COUNTS.items():
        for number, count in enumerate(shards):
            ids = range(sample_id, sample_id + count)
            samples = {f"key-{i}": _sample(i) for i in ids}
            _write_shard(root / "image" / name / f"{number:06d}.tar", samples)
            sample_id += count
    _write_prompts(root / "prompts")
    return root


@pytest.fixture(scope="session", name="bench")
def bench_fixture(tmp_path_factory):
    """A sound benchmark, not to be changed."""
    return _write_bench(tmp_path_factory.mktemp("sound") / "bench")


@pytest.fixture(name="own_bench")
def own_bench_fixture(tmp_path, bench):
    """A copy without index, to be damaged."""
    shutil.copytree(bench, tmp_path / "bench", ignore=shutil.ignore_patterns("*.npz"))
    return tmp_path / "bench"


@pytest.fixture(scope="session", name="tokenizer_file")
def tokenizer_file_fixture(tmp_path_factory):
    numbers = [str(number) for number in range(100)]
    words = ["[PAD]", "[UNK]", "scene", "fault", "plan", "vague", "precise", "line", *numbers]
    words += ["[CLS]"]  # by which the kind is known
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(file))
    return file


def _batches(index, tokenizer_file, stage=Stage(0, 12, PATCH, 6), **options):  # noqa: B008
    settings = {"seed": 3, "vague_schedule": ((0, 0.5),), "num_threads": 2}
    tokenizer = TextTokenizer(tokenizer_file, TOKENS, "minilm")
    return stage_batches(index, stage, tokenizer=tokenizer, **settings | options)


def _ids(batch):
    return batch["lq"][:, 0, 0, 2].tolist()


def _digest(batch):
    digest = hashlib.sha256()
    for name in sorted(batch):
        digest.update(f"{name} {batch[name].dtype} {batch[name].shape}".encode())
        digest.update(np.ascontiguousarray(batch[name]).tobytes())
    return digest.hexdigest()


def _assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name].dtype == theirs[name].dtype
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


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
    _write_shard(shard.with_name("000002.tar"), {"new": _sample(16)})
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
    once = next(iter(_batches(held_out, tokenizer_file, Stage(0, 1, PATCH, 6))))
    assert sorted(_ids(once)) == [3, 4, 10, 11, 14, 15]
    seen = {i for batch in _batches(index, tokenizer_file) for i in _ids(batch)}
    assert seen == set(range(16)) - {3, 4, 10, 11, 14, 15}
    assert ShardIndex.build(bench).split(0)[1] is None
    with pytest.raises(ValueError, match=r"config\.data\.validation=4: snow has only 4 samples"):
        ShardIndex.build(bench).split(4)


# Order


def test_shares_reach_the_batches(bench, tokenizer_file):
    index = ShardIndex.build(bench)
    shares = (("low-light+noise", 3), ("snow", 2))
    batches = _batches(index, tokenizer_file, Stage(0, 2, PATCH, 6), shares=shares)
    assert [Counter(batch["degradation"].tolist()) for batch in batches] == [{0: 1, 1: 3, 2: 2}] * 2
    for wrong in ("fog", 2), ("snow", 0), ("snow", 1.5):
        with pytest.raises(ValueError, match=r"config\.data\.shares: got .*one of haze, low-light"):
            _batches(index, tokenizer_file, shares=(wrong,))


def test_schedule_follows_the_global_step(bench, tokenizer_file):
    index = ShardIndex.build(bench)
    words = Tokenizer.from_file(str(tokenizer_file))
    schedule = ((0, 0.0), (103, 1.0))
    stage = Stage(100, 106, PATCH, 8)
    first_words = [
        {words.id_to_token(i) for i in batch["prompt_ids"][:, 0]}
        for batch in _batches(index, tokenizer_file, stage, vague_schedule=schedule)
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
    for batch in _batches(index, tokenizer_file, Stage(0, 30, PATCH, 6)):
        for name in ("lq", "hq"):
            assert batch[name].shape == (6, PATCH, PATCH, 3) and batch[name].dtype == np.uint8
        for kind in ("prompt", "scene", "degradation", "plan"):
            ids, mask = batch[f"{kind}_ids"], batch[f"{kind}_mask"]
            assert ids.shape == mask.shape == (6, TOKENS)
            assert ids.dtype == np.int32 and mask.dtype == bool
        assert batch["degradation"].dtype == batch["corrupt"].dtype == np.int32
        assert not batch["corrupt"].any()
        np.testing.assert_array_equal(batch["hq"], batch["lq"] + np.array([0, 0, 100], np.uint8))
        for row, sample_id in enumerate(_ids(batch)):
            patch = batch["lq"][row].astype(int)
            rightwards = patch[0, 1, 0] - patch[0, 0, 0]
            assert (np.diff(patch[..., 0], axis=1) == rightwards).all()
            assert (np.diff(patch[..., 1], axis=0) == 1).all()
            corners.add((patch[0, :, 0].min(), patch[0, 0, 1]))
            mirrored.add(int(rightwards))
            assert batch["degradation"][row] == (sample_id >= 5) + (sample_id >= 12)
            assert batch["scene_ids"][row].tolist() == [2, 8 + sample_id, 0, 0, 0, 0]
            assert batch["degradation_ids"][row, :2].tolist() == [3, 8 + sample_id]
            assert batch["plan_ids"][row, :2].tolist() == [4, 8 + sample_id]
            assert batch["plan_mask"][row].tolist() == [True, True, False, False, False, False]
    assert mirrored == {-1, 1}
    # 9 x 5 places, 180 draws.
    assert len(corners) > 35 and {c for c, _ in corners} == set(range(9))
    assert {r for _, r in corners} == set(range(5))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_pooled_tokens_are_of_the_prompt(bench, tokenizer_file, num_workers):
    pooled = TextTokenizer(tokenizer_file, 4, "minilm")
    dataset = _batches(
        ShardIndex.build(bench),
        tokenizer_file,
        Stage(0, 2, PATCH, 6),
        pooled_tokenizer=pooled,
        num_workers=num_workers,
    )
    iterator = iter(dataset)
    for batch in iterator:
        assert batch["pooled_ids"].shape == batch["pooled_mask"].shape == (6, 4)
        assert batch["pooled_ids"].dtype == np.int32 and batch["pooled_mask"].dtype == bool
        np.testing.assert_array_equal(batch["pooled_ids"], batch["prompt_ids"][:, :4])
        np.testing.assert_array_equal(batch["pooled_mask"], batch["prompt_mask"][:, :4])
    iterator.close()


def test_pictures_that_are_not_rgb(own_bench, tokenizer_file):
    stream = io.BytesIO()
    Image.new("L", (WIDTH, HEIGHT), 77).save(stream, "PNG")
    grey = {"hq.png": stream.getvalue(), "lq.png": _png(1), "meta.json": _meta(1)}
    shutil.rmtree(own_bench / "image")
    _write_shard(own_bench / "image" / "haze" / "0.tar", {"a": grey})
    batch = next(iter(_batches(ShardIndex.build(own_bench), tokenizer_file)))
    assert (batch["hq"] == 77).all()


def test_processes_together_see_what_one_sees(bench, tokenizer_file):
    index = ShardIndex.build(bench)
    whole = list(_batches(index, tokenizer_file))
    assert len(whole) == 12 and whole[0]["lq"].shape[0] == 6
    parts = [list(_batches(index, tokenizer_file, rows=(2 * i, 2 * i + 1))) for i in range(3)]
    for step, batch in enumerate(whole):
        joined = {name: np.concatenate([part[step][name] for part in parts]) for name in batch}
        _assert_equal(joined, batch)


def test_stages_continue_the_stream(bench, tokenizer_file):
    index = ShardIndex.build(bench)
    whole = list(_batches(index, tokenizer_file, Stage(0, 6, PATCH, 6)))
    tail = _batches(index, tokenizer_file, Stage(2, 6, PATCH, 6), first_sample=12)
    for ours, theirs in zip(tail, whole[2:], strict=True):
        _assert_equal(ours, theirs)


def test_prefetch_works_ahead(bench, tokenizer_file, monkeypatch):
    index = ShardIndex.build(bench)
    reads = []
    read = ShardIndex.read
    monkeypatch.setattr(ShardIndex, "read", lambda *given: reads.append(1) or read(*given))
    iterator = iter(_batches(index, tokenizer_file))
    next(iterator)
    deadline = time.monotonic() + 20
    while len(reads) < 18 and time.monotonic() < deadline:
        time.sleep(0.01)  # the training step would run here
    assert len(reads) >= 18  # two batches more than were asked for
    iterator.close()
