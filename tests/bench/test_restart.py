"""A build that was killed goes on where it was, with nothing lost, doubled or mixed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.small_bench import SMALL, digests, save_photos

from cotir_jax.bench.build import build_bench
from cotir_jax.bench.check import check_bench
from cotir_jax.bench.pool import spread_over

ROOT = Path(__file__).resolve().parents[2]
# Shards of three samples, so that there are several; the process ends itself where told to.
SCRIPT = """
import os, signal, sys
from cotir_jax.bench import build
build._SHARD_SAMPLES = 3
out, photos, options, samples = sys.argv[1], sys.argv[2], eval(sys.argv[3]), int(sys.argv[4])
whole = build.make_samples
def until_killed(job):
    global samples
    for sample in whole(job):
        samples -= 1
        if samples < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        yield sample
build.make_samples = until_killed
build.build_bench(out, photos, **options)
"""
OPTIONS = {
    **SMALL,
    "degradations": "haze,noise+haze,snow+flare",
    "samples_per_degradation": 7,
    "test_per_degradation": 4,
    "workers": 1,
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return save_photos(tmp_path_factory.mktemp("photos"))


def _start(out, photos, samples, **changes):
    command = [sys.executable, "-c", SCRIPT, out, photos, repr({**OPTIONS, **changes}), samples]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [str(part) for part in command]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True,
                            start_new_session=True)  # fmt: skip


def _run(*arguments, **changes):
    process = _start(*arguments, **changes)
    _, errors = process.communicate(timeout=500)
    return process.returncode, errors


@pytest.fixture(scope="module")
def uninterrupted(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "bench"
    assert _run(out, photos, 1000) == (0, "")
    assert not check_bench(out, workers=1).problems
    return digests(out)


# In the middle of the first shard, between two shards, among the tests.
@pytest.mark.parametrize("stops", [(1, 7), (3, 3, 12), (16, 3)])
def test_killed_builds_go_on_to_the_same_bytes(photos, tmp_path, uninterrupted, stops):
    out, part = tmp_path / "bench", tmp_path / "bench.part"
    done: dict[str, int] = {}
    for stop in stops:
        assert _run(out, photos, stop)[0] == -signal.SIGKILL
        assert part.is_dir() and not out.exists()
        # What was whole before has not been touched again.
        times = {str(path): path.stat().st_mtime_ns for path in _whole(part)}
        assert done.items() <= times.items()
        done = times
    assert done
    assert _run(out, photos, 1000) == (0, "")
    assert digests(out) == uninterrupted
    assert [path.name for path in tmp_path.iterdir()] == ["bench"]
    # Once more: all is there, and stays.
    assert _run(out, photos, 0) == (0, "") and digests(out) == uninterrupted


@pytest.mark.parametrize("file_format", ["tar", "array_record"])
def test_killed_just_before_the_end_or_just_after_the_beginning(photos, tmp_path, file_format):
    options = {**OPTIONS, "file_format": file_format}
    out, part = tmp_path / "bench", tmp_path / "bench.part"
    part.mkdir()
    (part / ".build.json.123.part").write_text('{"ver')  # never got its name
    build_bench(out, photos, **options)
    whole = digests(out)
    out.rename(part)  # all is there but the last renaming
    build_bench(out, photos, **options)
    assert digests(out) == whole and not part.exists()


def _whole(part):
    return [*part.glob("image/*/[0-9]*.tar"), *part.glob("rows/[a-z]*.jsonl")]


def test_a_killed_group_of_processes_goes_on(photos, tmp_path, uninterrupted):
    out, part = tmp_path / "bench", tmp_path / "bench.part"
    process = _start(out, photos, 1000, workers=2)
    deadline = time.monotonic() + 300
    while not _whole(part) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not out.exists() and _whole(part)
    assert _run(out, photos, 1000) == (0, "")
    assert digests(out) == uninterrupted


def test_workers_end_with_a_killed_parent(photos, tmp_path):
    options = {"samples_per_degradation": 100_000, "size": 64, "workers": 2}
    process = _start(tmp_path / "bench", photos, 10**9, **options)
    deadline = time.monotonic() + 300
    workers: list[str] = []
    while len(workers) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
        workers = _children(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert workers and not [pid for pid in workers if Path(f"/proc/{pid}").exists()]


def test_a_worker_that_dies_is_one_line():
    expected = pytest.raises(ChildProcessError, match="worker process died.*fewer than 2")
    with expected as caught, spread_over(2) as spread:
        list(spread(os._exit, [9]))
    assert "\n" not in str(caught.value)


def _children(pid):
    listing = Path(f"/proc/{pid}/task/{pid}/children")
    if not listing.exists():
        pytest.skip("needs Linux's /proc")
    return listing.read_text().split()


@pytest.fixture
def begun(photos, tmp_path, monkeypatch):
    monkeypatch.setattr("cotir_jax.bench.build._SHARD_SAMPLES", 3)
    assert _run(tmp_path / "bench", photos, 8)[0] == -signal.SIGKILL
    return tmp_path / "bench"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"seed": 1}, "seed was 0, now 1"),
        ({"size": 64}, "size was 48, now 64"),
        ({"degradations": "haze"}, "degradations was"),
        ({"samples_per_degradation": 9}, "samples_per_degradation was 7, now 9"),
        ({"file_format": "array_record"}, "file_format was"),
    ],
)
def test_other_arguments_do_not_continue(photos, begun, change, word):
    part = begun.with_name("bench.part")
    before = digests(part)
    with pytest.raises(ValueError, match=word) as caught:
        build_bench(begun, photos, **{**OPTIONS, **change})
    assert "\n" not in str(caught.value) and str(part) in str(caught.value)
    assert digests(part) == before


def test_other_photos_do_not_continue(photos, begun, tmp_path):
    shutil.copytree(photos, tmp_path / "copy")
    (tmp_path / "copy" / "3.png").rename(tmp_path / "copy" / "33.png")
    with pytest.raises(ValueError, match="photos was '?\"?[0-9]+ files"):
        build_bench(begun, tmp_path / "copy", **OPTIONS)


def test_two_builds_do_not_share_a_folder(photos, tmp_path, monkeypatch):
    monkeypatch.setattr("cotir_jax.bench.build._SHARD_SAMPLES", 3)
    process = _start(tmp_path / "bench", photos, 10**9, samples_per_degradation=100_000)
    record = tmp_path / "bench.part" / "build.json"
    deadline = time.monotonic() + 300
    while not record.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    try:
        with pytest.raises(ValueError, match="another build is at work"):
            build_bench(tmp_path / "bench", photos,
                        **{**OPTIONS, "samples_per_degradation": 100_000})  # fmt: skip
    finally:
        process.kill()
        process.communicate()


def test_foreign_or_spoilt_folders_are_left_alone(photos, begun, tmp_path):
    record = begun.with_name("bench.part") / "build.json"
    record.write_text(record.read_text()[:40])
    with pytest.raises(ValueError, match=r"bench\.part: is no unfinished benchmark"):
        build_bench(begun, photos, **OPTIONS)
    foreign = tmp_path / "other.part"
    foreign.mkdir()
    (foreign / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match=r"other\.part: is no unfinished benchmark"):
        build_bench(tmp_path / "other", photos, **OPTIONS)
    assert [path.name for path in foreign.iterdir()] == ["mine.txt"]


def test_finished_folder_of_other_arguments_is_left_alone(photos, tmp_path):
    build_bench(tmp_path / "b", photos, **OPTIONS)
    before = digests(tmp_path / "b")
    with pytest.raises(ValueError, match="seed was 0, now 5"):
        build_bench(tmp_path / "b", photos, **{**OPTIONS, "seed": 5})
    assert digests(tmp_path / "b") == before
    assert json.loads((tmp_path / "b" / "build.json").read_text())["seed"] == 0
