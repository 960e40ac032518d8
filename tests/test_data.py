"""Reading shards: index, order, prompts, batches, resuming, and damaged data.

The shards are written here with tarfile and Pillow. A picture's pixels say where they come from:
(column, row, sample id), with 100 added to the id in the clean one.
"""

import hashlib
import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path

import grain
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from cotir_jax.data import shard_index
from cotir_jax.data.batches import CorruptCounter, Stage, stage_batches
from cotir_jax.data.mixing import locate
from cotir_jax.data.prompts import Prompts, choose_prompt, vague_probability
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


@pytest.fixture(scope="session")
def bench(tmp_path_factory):
    """A sound benchmark, not to be changed."""
    return _write_bench(tmp_path_factory.mktemp("sound") / "bench")


@pytest.fixture
def own_bench(tmp_path, bench):
    """A copy without index, to be damaged."""
    shutil.copytree(bench, tmp_path / "bench", ignore=shutil.ignore_patterns("*.npz"))
    return tmp_path / "bench"


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory):
    numbers = [str(number) for number in range(100)]
    words = ["[PAD]", "[UNK]", "scene", "fault", "plan", "vague", "precise", "line", *numbers]
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(file))
    return file


def _batches(index, tokenizer_file, stage=Stage(0, 12, PATCH, 6), **options):  # noqa: B008
    settings = {"seed": 3, "text_tokens": TOKENS, "vague_schedule": ((0, 0.5),), "num_threads": 2}
    return stage_batches(index, stage, tokenizer_file=tokenizer_file, **settings | options)


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


def test_rounds_are_balanced_and_epochs_are_permutations():
    counts = (5, 7, 4)
    drawn = [locate(n, seed=1, counts=counts) for n in range(3 * 5 * 7 * 4)]
    rounds = [tuple(d for d, _ in drawn[at : at + 3]) for at in range(0, len(drawn), 3)]
    assert all(sorted(one) == [0, 1, 2] for one in rounds)
    # 140 rounds, 6 orders: each about 23 times.
    orders = Counter(rounds)
    assert len(orders) == 6 and min(orders.values()) > 8
    for degradation, count in enumerate(counts):
        places = [place for d, place in drawn if d == degradation]
        epochs = [tuple(places[at : at + count]) for at in range(0, len(places), count)]
        assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
        assert len(set(epochs)) > len(epochs) // 3  # of four samples, 24 orders
    assert drawn != [locate(n, seed=2, counts=counts) for n in range(len(drawn))]


# Prompts


def test_prompt_shares():
    prompts = Prompts(("v0", "v1"), {"snow": ("s0", "s1"), "lost_colour": ("l",), "jpeg-x": ("j",)})

    def shares(vague, degradation="snow", jpeg_type=None):
        rng = np.random.default_rng(0)
        drawn = Counter(
            choose_prompt(rng, prompts, degradation=degradation, questions=("qv", "qp"),
                          jpeg_type=jpeg_type, vague=vague)
            for _ in range(20_000)
        )  # fmt: skip
        return {prompt: count / 20_000 for prompt, count in drawn.items()}

    near = {"abs": 0.015}  # four standard deviations
    assert shares(0.0) == pytest.approx({"s0": 0.35, "s1": 0.35, "qp": 0.3}, **near)
    assert shares(1.0) == pytest.approx({"v0": 0.4, "v1": 0.4, "qv": 0.2}, **near)
    mixed = {"v0": 0.12, "v1": 0.12, "qv": 0.06, "s0": 0.245, "s1": 0.245, "qp": 0.21}
    assert shares(0.3) == pytest.approx(mixed, **near)
    assert shares(0.0, "lost_colour") == pytest.approx({"l": 0.2, "qp": 0.8}, **near)
    assert shares(0.0, jpeg_type="JPEG-X") == pytest.approx({"j": 0.7, "qp": 0.3}, **near)


def test_vague_probability_steps_up():
    schedule = ((0, 0.2), (10, 0.3), (20, 0.4))
    found = [vague_probability(schedule, step) for step in (0, 9, 10, 19, 20, 99)]
    assert found == [0.2, 0.2, 0.3, 0.3, 0.4, 0.4]


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
    tokenizer = TextTokenizer(tokenizer_file, 4)
    ids, mask = tokenizer("plan 3")
    assert ids.dtype == np.int32 and ids.tolist() == [4, 11, 0, 0]
    assert mask.tolist() == [True, True, False, False]
    ids, mask = tokenizer("plan 0 1 2 3 4")
    assert ids.tolist() == [4, 8, 9, 10] and mask.all()
    with pytest.raises(ValueError, match="no such file"):
        TextTokenizer(tokenizer_file.with_name("other.json"), 4)


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
    parts = [
        list(_batches(index, tokenizer_file, process_index=i, process_count=3)) for i in range(3)
    ]
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


# Resuming


@pytest.mark.parametrize("num_workers", [0, 2])
def test_iterator_state_resumes(tmp_path, bench, tokenizer_file, num_workers):
    index = ShardIndex.build(bench)
    expected = list(_batches(index, tokenizer_file))
    dataset = _batches(index, tokenizer_file, num_workers=num_workers)
    first = iter(dataset)
    for step in range(5):
        _assert_equal(next(first), expected[step])
    with ocp.CheckpointManager(tmp_path / "checkpoints") as manager:
        manager.save(5, args=grain.checkpoint.CheckpointSave(first))
        next(first)
        first.close()
        second = iter(_batches(index, tokenizer_file, num_workers=num_workers))
        manager.restore(5, args=grain.checkpoint.CheckpointRestore(second))
    rest = list(second)
    second.close()
    assert len(rest) == 7
    for ours, theirs in zip(rest, expected[5:], strict=True):
        _assert_equal(ours, theirs)


_SCRIPT = """
import sys
import jax
jax.devices()  # a backend with its threads is up before workers are made
sys.path[:0] = [{tests!r}]
import test_data
from cotir_jax.data.shard_index import ShardIndex

def main(argv=None):
    batches = test_data._batches(ShardIndex.build({bench!r}), {tokenizer!r}, num_workers={workers})
    iterator = iter(batches)
    for batch in iterator:
        print(test_data._digest(batch), flush=True)
    iterator.close()

if __name__ == "__main__":
    {start}
"""


def _script(tmp_path, bench, tokenizer_file, workers, start):
    file = tmp_path / "program.py"
    file.write_text(
        _SCRIPT.format(tests=str(Path(__file__).parent), bench=str(bench), start=start,
                       tokenizer=str(tokenizer_file), workers=workers)
    )  # fmt: skip
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "JAX_PLATFORMS": "cpu"}
    return [sys.executable, str(file)], environment


@pytest.mark.parametrize(
    ("workers", "start"),
    [(0, "main()"), (2, "main()"), (2, "from absl import app; app.run(main)")],
    ids=["plain", "plain, workers", "absl, workers"],
)
def test_second_process_is_byte_equal(tmp_path, bench, tokenizer_file, workers, start):
    command, environment = _script(tmp_path, bench, tokenizer_file, workers, start)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    ours = [_digest(batch) for batch in _batches(ShardIndex.build(bench), tokenizer_file)]
    assert done.stdout.split() == ours
    assert "leaked" not in done.stderr and "Traceback" not in done.stderr


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="children are found in /proc")
def test_workers_end_with_a_killed_program(tmp_path, bench, tokenizer_file):
    start = "main(); import time; time.sleep(60)"
    command, environment = _script(tmp_path, bench, tokenizer_file, 2, start)
    # Endless, so that the workers stay until they are ended.
    script = Path(command[1])
    script.write_text(script.read_text().replace("iterator.close()", "import time; time.sleep(60)"))
    program = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        program.stdout.readline()
        workers = _children(program.pid)
        assert len(workers) >= 2
    finally:
        program.send_signal(signal.SIGKILL)
        program.wait()
        program.stdout.close()
    deadline = time.monotonic() + 15
    while any(_alive(worker) for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(_alive(worker) for worker in workers)


def _children(pid):
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def _alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_no_jax_but_through_grain():
    code = (
        "import sys; from cotir_jax.data import shard_index, prompts, mixing, samples, tokenizers;"
        "sys.exit('jax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


# Damaged data


@pytest.mark.parametrize("cut", ["in a picture", "in a header", "between files", "no end"])
def test_truncated_shard(own_bench, tokenizer_file, caplog, cut):
    shard = own_bench / "image" / "low-light_noise" / "000000.tar"
    with tarfile.open(shard) as tar:
        picture = next(member for member in tar if member.name == "key-9.lq.png")
        last = tar.getmembers()[-1]
    end = last.offset_data + -(-last.size // 512) * 512
    length = {
        "in a picture": picture.offset_data + 20,
        "in a header": picture.offset + 100,
        "between files": picture.offset,
        "no end": end,
    }[cut]
    os.truncate(shard, length)
    index = ShardIndex.build(own_bench)
    assert index.truncated == ("low-light_noise/000000.tar",)
    assert f"{shard}: truncated shard" in caplog.text
    assert index.counts[1] == (7 if cut == "no end" else 5)  # the last of five is incomplete
    caplog.clear()
    assert ShardIndex.build(own_bench).truncated == index.truncated  # also from the kept index
    assert f"{shard}: truncated shard" in caplog.text
    batches = list(_batches(index, tokenizer_file, Stage(0, 10, PATCH, 6)))
    corrupt = sum(int(batch["corrupt"].sum()) for batch in batches)
    seen = {i for batch in batches for i in _ids(batch)}
    if cut == "no end":
        assert corrupt == 0 and seen == set(range(16))
    else:
        # 20 rounds of five samples: the incomplete one comes up four times.
        assert corrupt == 4 and seen == set(range(16)) - {9, 10, 11}
        assert f"{shard} key-9: incomplete" in caplog.text


def test_shard_that_is_no_tar(own_bench, caplog):
    (own_bench / "image" / "snow" / "000001.tar").write_bytes(b"<html>not found</html>" * 99)
    index = ShardIndex.build(own_bench)
    assert index.truncated == ("snow/000001.tar",) and index.counts == (5, 7, 3)
    assert "snow/000001.tar: not a tar file" in caplog.text
    (own_bench / "image" / "snow" / "000000.tar").write_bytes(b"")
    with pytest.raises(ValueError, match="snow: its shards hold no complete sample"):
        ShardIndex.build(own_bench)


def _damaged(kind):
    files = _sample(0)
    whole = files["lq.png"]
    files |= {
        "cut picture": {"lq.png": whole[: len(whole) - 40]},
        "changed picture": {"hq.png": whole[:60] + bytes(99) + whole[159:]},
        "no picture": {"hq.png": b"hello"},
        "no JSON": {"meta.json": b'{"cot": '},
        "JSON of another kind": {"meta.json": b"[1]"},
        "no thoughts": {"meta.json": b'{"cot": {"questions": ["a", "b"], "answers": "none"}}'},
        "one question": {"meta.json": _meta(0).replace(b', "precise 0"', b"")},
        "unequal sizes": {"lq.png": _png(0, (WIDTH, HEIGHT + 1))},
    }[kind]
    return files


@pytest.mark.parametrize(
    "kind",
    ["cut picture", "changed picture", "no picture", "no JSON", "JSON of another kind",
     "no thoughts", "one question", "unequal sizes"],
)  # fmt: skip
def test_corrupt_sample_is_skipped_counted_and_named(own_bench, tokenizer_file, caplog, kind):
    shard = own_bench / "image" / "haze" / "000000.tar"
    _write_shard(shard, {"bad": _damaged(kind), **{f"key-{i}": _sample(i) for i in (1, 2, 3)}})
    index = ShardIndex.build(own_bench)
    batches = list(_batches(index, tokenizer_file, Stage(0, 10, PATCH, 6)))
    # 20 rounds of five: four epochs, and each time the next sample stands in.
    haze = [
        (sample_id, corrupt)
        for batch in batches
        for sample_id, corrupt, d in zip(
            _ids(batch), batch["corrupt"].tolist(), batch["degradation"].tolist(), strict=True
        )
        if d == 0
    ]
    assert Counter(haze) == {(1, 1): 4, (1, 0): 4, (2, 0): 4, (3, 0): 4, (4, 0): 4}
    named = [record for record in caplog.records if f"{shard} bad: " in record.getMessage()]
    assert len(named) == 1 and named[0].levelno == logging.WARNING


def test_all_samples_corrupt(own_bench, tokenizer_file):
    for shard in (own_bench / "image" / "snow").iterdir():
        _write_shard(shard, {"bad": _damaged("no picture")})
    batches = _batches(ShardIndex.build(own_bench), tokenizer_file, num_workers=0)
    with pytest.raises(ValueError, match="snow: all 2 samples are corrupt"):
        list(batches)


def test_corrupt_counter():
    counter = CorruptCounter()
    for _ in range(19):
        counter.add(np.zeros(10, np.int32))
    counter.add(np.array([0, 2] + [0] * 8, np.int32))  # 2 of 202: below 1 %
    assert (counter.corrupt, counter.seen) == (2, 202)
    with pytest.raises(ValueError, match="3 of 213 samples were corrupt, more than 1 %"):
        counter.add(np.array([1] + [0] * 9, np.int32))
    early = CorruptCounter()
    early.add(np.ones(4, np.int32))  # too few to judge
    with pytest.raises(ValueError, match="4 of 8 samples"):
        early.finish()
    CorruptCounter().finish()


def test_too_many_corrupt_samples_stop_a_run(own_bench, tokenizer_file):
    _write_shard(own_bench / "image" / "haze" / "000001.tar", {"bad": _damaged("no JSON")})
    counter = CorruptCounter()
    with pytest.raises(ValueError, match="more than 1 %"):
        for batch in _batches(ShardIndex.build(own_bench), tokenizer_file, Stage(0, 99, PATCH, 6)):
            counter.add(batch["corrupt"])
    assert 200 <= counter.seen < 210


# Wrong settings


@pytest.mark.parametrize("name", ["gen_prompt", "haze"])
@pytest.mark.parametrize("empty", [False, True])
def test_missing_prompt_file(own_bench, name, empty):
    file = own_bench / "prompts" / f"{name}.txt"
    file.unlink()
    if empty:
        file.write_text("\n")
    with pytest.raises(ValueError, match=f"prompts/{name}.txt: missing or empty prompt file"):
        ShardIndex.build(own_bench)


def test_missing_or_empty_folder(tmp_path):
    with pytest.raises(ValueError, match=r"no such folder; set config\.data\.dir"):
        ShardIndex.build(tmp_path / "none")
    with pytest.raises(ValueError, match="no shards .*`cotir bench build`"):
        ShardIndex.build(tmp_path)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_patch_larger_than_pictures(bench, tokenizer_file, num_workers):
    stage = Stage(0, 2, HEIGHT + 1, 2)
    iterator = iter(
        _batches(ShardIndex.build(bench), tokenizer_file, stage, num_workers=num_workers)
    )
    with pytest.raises(ValueError) as caught:
        next(iterator)
    iterator.close()
    for part in (f"{WIDTH}x{HEIGHT}", "21", "config.train.stages", "config.bench.size", "key-"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"process_count": 4}, "batch size 6 .* 4 processes"),
        ({"process_index": 1}, "process 1 of 1"),
        ({"num_threads": 0}, "config.data.threads=0"),
        ({"num_workers": -1}, "config.data.workers=-1"),
        ({"seed": -1}, "config.seed is -1"),
        ({"stage": Stage(5, 5, 16, 6)}, "config.train.stages"),
        ({"vague_schedule": ((10, 0.5),)}, "config.data.vague"),
        ({"vague_schedule": ((0, 0.5), (0, 0.6))}, "config.data.vague"),
        ({"vague_schedule": ((0, 1.5),)}, "config.data.vague"),
        ({"vague_schedule": ()}, "config.data.vague"),
        ({"text_tokens": 0}, "0 tokens"),
    ],
)
def test_settings_out_of_range(bench, tokenizer_file, options, message):
    with pytest.raises(ValueError, match=message):
        _batches(ShardIndex.build(bench), tokenizer_file, **options)
