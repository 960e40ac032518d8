"""`bench check`: counts, spoilt shards and samples, other layouts, near duplicates."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.small_bench import ANSWERS, NAMES, SMALL, save_photos

from cotir_jax.bench.build import build_bench
from cotir_jax.bench.check import _grey, _hash, check_bench
from cotir_jax.bench.shards import write_shard
from cotir_jax.images.pictures import encode_png, save_picture

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    photos = save_photos(tmp_path_factory.mktemp("photos"))
    out = tmp_path_factory.mktemp("built") / "bench"
    build_bench(out, photos, workers=1, **SMALL)
    return out


@pytest.fixture
def copy(bench, tmp_path):
    shutil.copytree(bench, tmp_path / "bench")
    return tmp_path / "bench"


def _problems(folder, workers=1):
    report = check_bench(folder, workers=workers)
    assert report.num_problems == len(report.problems)
    assert not any("\n" in problem for problem in report.problems)
    return report.problems


@pytest.mark.parametrize("cut", ["middle", "between members", "header"])
def test_truncated_shard(copy, cut):
    shard = copy / "image" / "noise" / "000000.tar"
    with tarfile.open(shard) as tar:
        third = tar.getmembers()[3].offset
    size = {"middle": third - 700, "between members": third, "header": 200}[cut]
    os.truncate(shard, size)
    (problem,) = _problems(copy)
    assert re.search(r"noise/000000\.tar.*truncated", problem)


def test_spoilt_shard_header(copy):
    shard = copy / "image" / "noise" / "000000.tar"
    with tarfile.open(shard) as tar:
        fourth = tar.getmembers()[3].offset
    data = bytearray(shard.read_bytes())
    data[fourth : fourth + 64] = b"x" * 64
    shard.write_bytes(data)
    (problem,) = _problems(copy, workers=2)
    assert re.search(r"noise/000000\.tar: broken shard.*bad header", problem)


@pytest.mark.parametrize("name", ["gen_prompt", "haze_snow", "jpeg-"])
def test_missing_prompt_file(copy, name):
    for path in (copy / "prompts").glob(f"{name}*.txt"):
        path.unlink()
    problems = _problems(copy)
    assert problems and all(re.search(rf"{name}.*missing prompt", text) for text in problems)
    # Not JPEG's own file alone: also those of the types that its samples name.
    assert name != "jpeg-" or len(problems) >= 2


def test_empty_and_broken_prompt_files(copy):
    (copy / "prompts" / "haze.txt").write_text("\n \n")
    (copy / "prompts" / "noise.txt").write_bytes(b"\xff\xfe\x00")
    empty, broken = _problems(copy)
    assert re.search(r"haze\.txt: empty", empty) and re.search(r"noise\.txt: not UTF-8", broken)


def test_bad_samples_are_all_reported(copy):
    good = encode_png(np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8))
    large = encode_png(np.zeros((8, 9, 3), np.uint8))
    cot = {"questions": ["a", "b"], "answers": ANSWERS}
    samples = [
        ("unequal", good, large, {"cot": cot}),
        ("broken", good, good[:120], {"cot": cot}),
        ("silent", good, good, {"cot": {**cot, "answers": "scene description: nothing more"}}),
        ("unasked", good, good, {"cot": {**cot, "questions": ["a"]}}),
        ("fine", good, good, {"cot": cot}),
        ("between", good, good, {"cot": cot}),
        ("fine", good, good, {"cot": cot}),
    ]
    write_shard(samples, copy / "image" / "haze" / "000001.tar")
    missing = sorted((copy / "test" / "hq").iterdir())[0]
    missing.unlink()
    with open(copy / "test" / "test.jsonl", "a") as lines:
        lines.write("no json\n")
    report = check_bench(copy, workers=1)
    text = "\n".join(report.problems)
    assert report.num_problems == 7
    for word in ("unequal: hq and lq", "broken: lq", "silent", "unasked", "hq cannot be read",
                 "line 8: expected JSON", "fine: the key comes twice"):  # fmt: skip
        assert word in text, word
    assert report.train["haze"] == 2 + len(samples) and report.without_thoughts == {"haze": 1}


def test_other_layouts_check(copy):
    expected = check_bench(copy, workers=1)
    assert expected.num_problems == 0 and sum(expected.train.values()) == 2 * (len(NAMES) - 1)
    assert check_bench(copy / "image", workers=1) == expected
    special = copy / "prompts" / "spe_prompt"
    special.mkdir()
    for path in (copy / "prompts").glob("*.txt"):
        if path.stem != "gen_prompt":
            path.rename(special / path.name)
    for folder in (copy / "image").iterdir():
        folder.rename(copy / folder.name)
    (copy / "image").rmdir()
    assert check_bench(copy, workers=2) == expected
    assert "no degradation folders" in _problems(copy / "prompts" / "spe_prompt")[0]
    with pytest.raises(ValueError, match="no such folder"):
        check_bench(copy / "nowhere")


@pytest.fixture(scope="module")
def scenes():
    """Photographs to compare, and one that is none of them."""
    data = pytest.importorskip("skimage.data", reason="needs scikit-image's photographs")
    return {"coffee": data.coffee(), "chelsea": data.chelsea(), "rocket": data.rocket()}


def test_near_duplicates_between_train_and_test_are_found(copy, scenes):
    def put(key, picture):
        lq = encode_png(picture)
        return key, lq, lq, {"cot": {"questions": ["a", "b"], "answers": ANSWERS}}

    def test_picture(picture):
        save_picture(picture, copy / "test" / "hq" / lq.name)
        save_picture(picture, lq)

    rows = (copy / "test" / "test.jsonl").read_text().splitlines()
    lq = copy / "test" / json.loads(rows[0])["lq_path"]
    coffee = scenes["coffee"][:256, :256]
    test_picture(coffee)
    stream = io.BytesIO()
    Image.fromarray(coffee).save(stream, "JPEG", quality=40)
    changed = {
        "same": coffee,
        "jpeg": np.array(Image.open(stream)),
        "mirrored": coffee[:, ::-1],
        "smaller": np.array(Image.fromarray(coffee).resize((180, 180))),
        "brighter": np.clip(coffee * 0.97 + 6, 0, 255).astype(np.uint8),
    }
    other = {
        "chelsea": scenes["chelsea"][:256, :256],
        "elsewhere": scenes["coffee"][-256:, -256:],
        "inverted": 255 - coffee,
        "black": np.zeros((64, 64, 3), np.uint8),
    }
    shard = copy / "image" / "haze" / "000001.tar"
    write_shard([put(key, picture) for key, picture in {**changed, **other}.items()], shard)
    problems = _problems(copy)
    assert [re.search(r"\.tar (\w+): near duplicate", text)[1] for text in problems] == [*changed]
    assert all(text.endswith(str(copy / "test" / "hq" / lq.name)) for text in problems)
    # Black on both sides says nothing.
    test_picture(other["black"])
    assert not _problems(copy)


def test_hash_is_the_usual_perceptual_hash(scenes):
    imagehash = pytest.importorskip("imagehash", reason="needs imagehash as the oracle")
    for picture in scenes.values():
        image = Image.fromarray(picture)
        expected = int(str(imagehash.phash(image)), 16)
        assert int(_hash(_grey(image))) == expected


def test_command_prints_a_line_per_problem_and_fails(copy):
    command = [sys.executable, "-m", "cotir_jax.cli", "bench", "check", copy, "--workers", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    good = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert good.returncode == 0, good.stderr
    assert json.loads(good.stdout)["train"]["haze"] == 2
    (copy / "prompts" / "haze.txt").unlink()
    (copy / "prompts" / "noise.txt").unlink()
    bad = subprocess.run(command, env=environment, capture_output=True, text=True)
    *problems, counts = bad.stdout.splitlines()
    assert bad.returncode == 1 and "2 problems" in bad.stderr and "Traceback" not in bad.stderr
    assert len(problems) == 2 and all(line.startswith("problem: ") for line in problems)
    assert json.loads(counts)["problems"] == 2
