"""Reading shards when something goes wrong: interrupted runs, damaged data, wrong settings.

The shards are those of `test_data.py`.
"""

import logging
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest
from support.shards import (
    HEIGHT,
    PATCH,
    WIDTH,
    assert_equal,
    digest,
    meta_json,
    png,
    read_batches,
    sample_files,
    sample_ids,
    write_shard,
)

from cotir_jax.data.batches import CorruptCounter, Stage
from cotir_jax.data.shard_index import ShardIndex

# Resuming


@pytest.mark.parametrize("num_workers", [0, 2])
def test_continues_from_a_step_with_other_workers_and_rows(bench, tokenizer_file, num_workers):
    index = ShardIndex.build(bench)
    stage = Stage(100, 112, PATCH, 6)
    expected = list(read_batches(index, tokenizer_file, stage))[5:]
    options = {"first_step": 105, "num_workers": num_workers}
    for rows in (tuple(range(6)), (1, 4)):
        iterator = iter(read_batches(index, tokenizer_file, stage, rows=rows, **options))
        found = list(iterator)
        iterator.close()
        for ours, theirs in zip(found, expected, strict=True):
            assert_equal(ours, jax.tree.map(lambda array, rows=list(rows): array[rows], theirs))


_SCRIPT = """
import sys
import jax
jax.devices()  # a backend with its threads is up before workers are made
sys.path[:0] = [{tests!r}]
from support import shards
from cotir_jax.data.shard_index import ShardIndex

def main(argv=None):
    batches = shards.read_batches(ShardIndex.build({bench!r}), {tokenizer!r}, num_workers={workers})
    iterator = iter(batches)
    for batch in iterator:
        print(shards.digest(batch), flush=True)
    iterator.close()

if __name__ == "__main__":
    {start}
"""


def _script(tmp_path, bench, tokenizer_file, workers, start):
    file = tmp_path / "program.py"
    file.write_text(
        _SCRIPT.format(tests=str(Path(__file__).parents[1]), bench=str(bench), start=start,
                       tokenizer=str(tokenizer_file), workers=workers)
    )  # fmt: skip
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
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
    ours = [digest(batch) for batch in read_batches(ShardIndex.build(bench), tokenizer_file)]
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
        "import sys; from cotir_jax.data import shard_index, prompts, mixing, samples;"
        "from cotir_jax.text import tokenizer;"
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
    batches = list(read_batches(index, tokenizer_file, Stage(0, 10, PATCH, 6)))
    corrupt = sum(int(batch["corrupt"].sum()) for batch in batches)
    seen = {i for batch in batches for i in sample_ids(batch)}
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
    files = sample_files(0)
    whole = files["lq.png"]
    files |= {
        "cut picture": {"lq.png": whole[: len(whole) - 40]},
        "changed picture": {"hq.png": whole[:60] + bytes(99) + whole[159:]},
        "no picture": {"hq.png": b"hello"},
        "no JSON": {"meta.json": b'{"cot": '},
        "JSON of another kind": {"meta.json": b"[1]"},
        "no thoughts": {"meta.json": b'{"cot": {"questions": ["a", "b"], "answers": "none"}}'},
        "one question": {"meta.json": meta_json(0).replace(b', "precise 0"', b"")},
        "unequal sizes": {"lq.png": png(0, (WIDTH, HEIGHT + 1))},
    }[kind]
    return files


@pytest.mark.parametrize(
    "kind",
    ["cut picture", "changed picture", "no picture", "no JSON", "JSON of another kind",
     "no thoughts", "one question", "unequal sizes"],
)  # fmt: skip
def test_corrupt_sample_is_skipped_counted_and_named(own_bench, tokenizer_file, caplog, kind):
    shard = own_bench / "image" / "haze" / "000000.tar"
    write_shard(shard, {"bad": _damaged(kind), **{f"key-{i}": sample_files(i) for i in (1, 2, 3)}})
    index = ShardIndex.build(own_bench)
    batches = list(read_batches(index, tokenizer_file, Stage(0, 10, PATCH, 6)))
    # 20 rounds of five: four epochs, and each time the next sample stands in.
    haze = [
        (sample_id, corrupt)
        for batch in batches
        for sample_id, corrupt, d in zip(
            sample_ids(batch), batch["corrupt"].tolist(), batch["group"].tolist(), strict=True
        )
        if d == 0
    ]
    assert Counter(haze) == {(1, 1): 4, (1, 0): 4, (2, 0): 4, (3, 0): 4, (4, 0): 4}
    named = [record for record in caplog.records if f"{shard} bad: " in record.getMessage()]
    assert len(named) == 1 and named[0].levelno == logging.WARNING


def test_all_samples_corrupt(own_bench, tokenizer_file):
    for shard in (own_bench / "image" / "snow").iterdir():
        write_shard(shard, {"bad": _damaged("no picture")})
    batches = read_batches(ShardIndex.build(own_bench), tokenizer_file, num_workers=0)
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
    write_shard(own_bench / "image" / "haze" / "000001.tar", {"bad": _damaged("no JSON")})
    counter = CorruptCounter()
    with pytest.raises(ValueError, match="more than 1 %"):
        for batch in read_batches(
            ShardIndex.build(own_bench), tokenizer_file, Stage(0, 99, PATCH, 6)
        ):
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
        read_batches(ShardIndex.build(bench), tokenizer_file, stage, num_workers=num_workers)
    )
    with pytest.raises(ValueError) as caught:
        next(iterator)
    iterator.close()
    for part in (f"{WIDTH}x{HEIGHT}", "21", "config.train.stages", "config.bench.size", "key-"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": (4, 6)}, "rows .4, 6., expected some of 0 to 5"),
        ({"first_step": 12}, "got first step 12"),
        ({"num_threads": 0}, "config.data.threads=0"),
        ({"num_workers": -1}, "config.data.workers=-1"),
        ({"seed": -1}, "config.seed is -1"),
        ({"stage": Stage(5, 5, 16, 6)}, "config.train.stages"),
        ({"vague_schedule": ((10, 0.5),)}, "config.data.vague"),
        ({"vague_schedule": ((0, 0.5), (0, 0.6))}, "config.data.vague"),
        ({"vague_schedule": ((0, 1.5),)}, "config.data.vague"),
        ({"vague_schedule": ()}, "config.data.vague"),
    ],
)
def test_settings_out_of_range(bench, tokenizer_file, options, message):
    with pytest.raises(ValueError, match=message):
        read_batches(ShardIndex.build(bench), tokenizer_file, **options)
