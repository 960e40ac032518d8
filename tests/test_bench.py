"""The benchmark builder: layout, determinism, separate photos, words, and what it refuses."""

import hashlib
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

from cotir_jax.bench.build import build_bench
from cotir_jax.bench.composites import COMPOSITES, SINGLES, Step, folder_name, sample_chain
from cotir_jax.bench.degradations.sensor import JpegParams, MotionBlurParams, NoiseParams
from cotir_jax.bench.photos import find_photos, sample_crop
from cotir_jax.bench.phrases import FACTS, FIXES, JPEG_TYPES, prompt_files
from cotir_jax.bench.shards import check_bench, read_shard, write_shard
from cotir_jax.bench.thoughts import (
    describe_degradation,
    describe_plan,
    describe_scene,
    numbers_of,
    parse_thoughts,
    write_meta,
)
from cotir_jax.pictures import encode_png, save_picture

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {folder_name(name) for name in (*SINGLES, *COMPOSITES)}
SMALL = {"samples_per_degradation": 2, "test_per_degradation": 1, "size": 48, "progress": False}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Ten photos, each of its own blue level, so that a crop tells where it is from."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(10):
        rng = np.random.default_rng(number)
        photo = rng.integers(60, 200, (70, 90, 3), dtype=np.uint8)
        photo[..., 2] = 20 * number + 30
        save_picture(photo, folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def bench(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("built") / "bench"
    counts = build_bench(out, photos, workers=1, **SMALL)
    assert check_bench(out) == counts
    return out


@pytest.fixture
def copy(bench, tmp_path):
    shutil.copytree(bench, tmp_path / "bench")
    return tmp_path / "bench"


def _digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_layout(bench):
    assert {path.name for path in bench.iterdir()} == {"image", "prompts", "test"}
    assert {path.name for path in (bench / "image").iterdir()} == FOLDERS
    assert "low-light_haze_rain-streak_jpeg-compression" in FOLDERS
    with tarfile.open(bench / "image" / "haze" / "000000.tar") as tar:
        members = tar.getmembers()
        names = [member.name for member in members]
        meta = json.load(tar.extractfile(names[2]))
        sizes = [Image.open(tar.extractfile(name)).size for name in names[:2]]
    assert names == [
        f"haze-00000{n}.{field}" for n in (0, 1) for field in ("hq.png", "lq.png", "meta.json")
    ]
    assert {(member.mtime, member.uid, member.gid) for member in members} == {(0, 0, 0)}
    assert sizes == [(48, 48)] * 2
    assert set(meta) == {"cot", "deg"} and set(meta["cot"]) == {"questions", "answers"}
    assert meta["deg"] == "haze" and len(meta["cot"]["questions"]) == 2


def test_test_split(bench):
    rows = [json.loads(line) for line in (bench / "test" / "test.jsonl").read_text().splitlines()]
    fields = {"id", "lq_path", "deg_type", "subset", "gen_prompt", "spe_prompt"}
    assert [row["deg_type"] for row in rows] == [*SINGLES, *COMPOSITES]
    for row in rows:
        assert set(row) == fields and all(row.values())
        lq = bench / "test" / row["lq_path"]
        assert lq.is_file() and (bench / "test" / "hq" / lq.name).is_file()


def test_photos_of_train_and_test_do_not_overlap(bench):
    seen = {"train": set(), "test": set()}
    for shard in (bench / "image").rglob("*.tar"):
        for _, sample in read_shard(shard):
            seen["train"].add(_photo_of(io.BytesIO(sample["hq.png"])))
    for path in (bench / "test" / "hq").iterdir():
        seen["test"].add(_photo_of(path))
    assert seen["train"] | seen["test"] == set(range(10)) and not seen["train"] & seen["test"]
    assert len(seen["test"]) == 1  # an eighth of ten


def _photo_of(picture):
    blue = np.median(np.asarray(Image.open(picture))[..., 2])
    return round((float(blue) - 30) / 20)


def test_bytes_depend_on_the_seed_alone(bench, photos, tmp_path):
    build_bench(tmp_path / "two", photos, workers=2, **SMALL)
    assert _digests(tmp_path / "two") == _digests(bench)
    # Another process, with other string hashes, from a script without a main guard.
    script = (
        "from cotir_jax.bench.build import build_bench\n"
        f"build_bench({str(tmp_path / 'other')!r}, {str(photos)!r}, workers=2, **{SMALL!r})\n"
        "import sys; assert 'jax' not in sys.modules\n"
    )
    (tmp_path / "script.py").write_text(script)
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, tmp_path / "script.py"], env=environment, check=True)
    assert _digests(tmp_path / "other") == _digests(bench)
    build_bench(tmp_path / "seed", photos, seed=1, workers=1, **SMALL)
    changed = _digests(tmp_path / "seed")
    same = [name for name, digest in _digests(bench).items() if digest == changed.get(name)]
    assert all(name.startswith("prompts/") for name in same)


def test_shards_split_at_256_samples(tmp_path, monkeypatch):
    # The samples of a shard do not depend on how many there are in all.
    monkeypatch.setattr("cotir_jax.bench.build._SHARD_SAMPLES", 3)
    for number in range(2):
        save_picture(np.full((60, 60, 3), 99, np.uint8), tmp_path / "p" / f"{number}.png")
    options = {"size": 32, "composites": False, "workers": 1, "progress": False}
    build_bench(tmp_path / "b", tmp_path / "p", samples_per_degradation=7, **options)
    haze = sorted((tmp_path / "b" / "image" / "haze").iterdir())
    assert [path.name for path in haze] == ["000000.tar", "000001.tar", "000002.tar"]
    keys = [key for path in haze for key, _ in read_shard(path)]
    assert keys == [f"haze-{number:06d}" for number in range(7)]
    prompts = {path.stem for path in (tmp_path / "b" / "prompts").iterdir()}
    assert prompts == {"gen_prompt", *SINGLES, *JPEG_TYPES}


def test_bundled_photos_build(tmp_path):
    pytest.importorskip("skimage", reason="needs the photographs inside scikit-image")
    train, test = find_photos(None, None, 0)
    assert not set(train) & set(test) and len(train) == 11 and len(test) == 3
    counts = build_bench(tmp_path / "b", composites=False, workers=2, **SMALL)
    assert check_bench(tmp_path / "b") == counts
    assert counts["train"] == dict.fromkeys(SINGLES, 2)


def test_shared_photos_can_be_found():
    folder = ROOT.parent / "shared" / "data" / "photos"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data/photos")
    train, test = find_photos(folder / "train", None, 0)
    assert len(test) == len(train + test) // 8 and not set(train) & set(test)
    assert find_photos(folder / "train", None, 0) == (train, test)
    everything, set5 = find_photos(folder / "train", folder / "test" / "set5", 0)
    assert len(everything) == len(train + test) and len(set5) == 5


def test_crops_avoid_black_corners_and_enlarge_as_little_as_needed():
    photo = np.zeros((400, 400, 3), np.uint8)
    photo[150:, 150:] = np.random.default_rng(0).integers(50, 255, (250, 250, 3))
    dark = [(sample_crop(photo, 64, np.random.default_rng(seed)) < 12).mean() for seed in range(60)]
    assert np.mean(dark) < 0.45 and np.mean(np.array(dark) > 0.95) < 0.05
    tiny = np.tile(np.arange(40, dtype=np.uint8)[:, None, None] * 6, (1, 40, 3))
    crop = sample_crop(tiny, 80, np.random.default_rng(0))
    assert crop.shape == (80, 80, 3) and crop[0].max() < 6 and crop[-1].min() > 220


@pytest.mark.parametrize("name", ["empty", "absent", "one"])
def test_too_few_photos(tmp_path, name):
    (tmp_path / "empty").mkdir()
    save_picture(np.zeros((40, 40, 3), np.uint8), tmp_path / "one" / "a.png")
    with pytest.raises(ValueError, match=name):
        build_bench(tmp_path / "out", tmp_path / name, workers=1, **SMALL)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_truncated_photo_is_named_and_nothing_is_left(tmp_path, photos, workers):
    shutil.copytree(photos, tmp_path / "photos")
    whole = (tmp_path / "photos" / "4.png").read_bytes()
    (tmp_path / "photos" / "4.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"4\.png") as caught:
        build_bench(tmp_path / "out", tmp_path / "photos", workers=workers, **SMALL)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_refusals_leave_what_is_there(tmp_path, photos):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match="not an empty folder"):
        build_bench(tmp_path / "out", photos, **SMALL)
    assert (tmp_path / "out" / "mine.txt").read_text() == "keep"
    with pytest.raises(ValueError, match="size is 8"):
        build_bench(tmp_path / "new", photos, **{**SMALL, "size": 8})
    with pytest.raises(ValueError, match="both|among"):
        build_bench(tmp_path / "new", photos, test_photos=photos, **SMALL)


@pytest.mark.parametrize("cut", ["middle", "between members", "header"])
def test_truncated_shard(copy, cut):
    shard = copy / "image" / "snow" / "000000.tar"
    with tarfile.open(shard) as tar:
        third = tar.getmembers()[3].offset
    size = {"middle": third - 700, "between members": third, "header": 200}[cut]
    os.truncate(shard, size)
    with pytest.raises(ValueError, match=r"snow/000000\.tar.*truncated") as caught:
        check_bench(copy)
    assert "1 problem:" in str(caught.value)


def test_spoilt_shard_header(copy):
    shard = copy / "image" / "snow" / "000000.tar"
    with tarfile.open(shard) as tar:
        fourth = tar.getmembers()[3].offset
    data = bytearray(shard.read_bytes())
    data[fourth : fourth + 64] = b"x" * 64
    shard.write_bytes(data)
    with pytest.raises(ValueError, match=r"snow/000000\.tar: broken shard.*bad header"):
        check_bench(copy)


@pytest.mark.parametrize("name", ["gen_prompt", "haze_snow", "jpeg-"])
def test_missing_prompt_file(copy, name):
    for path in (copy / "prompts").glob(f"{name}*.txt"):
        path.unlink()
    with pytest.raises(ValueError, match=rf"{name}.*missing prompt file"):
        check_bench(copy)


def test_bad_samples_are_all_reported(copy):
    good = encode_png(np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8))
    large = encode_png(np.zeros((8, 9, 3), np.uint8))
    cot = {"questions": ["a", "b"], "answers": _ANSWERS}
    samples = [
        ("unequal", good, large, {"cot": cot}),
        ("broken", good, good[:120], {"cot": cot}),
        ("silent", good, good, {"cot": {**cot, "answers": "scene description: nothing more"}}),
        ("unasked", good, good, {"cot": {**cot, "questions": ["a"]}}),
        ("fine", good, good, {"cot": cot}),
    ]
    write_shard(samples, copy / "image" / "haze" / "000001.tar")
    next((copy / "test" / "hq").iterdir()).unlink()
    with pytest.raises(ValueError, match="5 problems") as caught:
        check_bench(copy)
    text = str(caught.value)
    for word in ("unequal: hq and lq", "broken: lq", "silent", "unasked", "hq cannot be read"):
        assert word in text
    assert "fine" not in text and "\n" not in text


def test_other_layouts_check(copy):
    expected = check_bench(copy)
    assert check_bench(copy / "image") == expected
    special = copy / "prompts" / "spe_prompt"
    special.mkdir()
    for path in (copy / "prompts").glob("*.txt"):
        if path.stem != "gen_prompt":
            path.rename(special / path.name)
    for folder in (copy / "image").iterdir():
        folder.rename(copy / folder.name)
    (copy / "image").rmdir()
    assert check_bench(copy) == expected
    with pytest.raises(ValueError, match="no degradation folders"):
        check_bench(copy / "prompts" / "spe_prompt")


_ANSWERS = (
    "scene description: a red car. degradation description: mild haze, then noise. "
    "enhancement plan: denoise, then dehaze. answer: done."
)


def test_parse_thoughts():
    expected = ("a red car.", "mild haze, then noise.", "denoise, then dehaze.")
    assert parse_thoughts({"cot": {"answers": _ANSWERS}}) == expected
    without_end = _ANSWERS.replace(" answer: done.", "").replace("scene", "\nScene")
    assert parse_thoughts({"cot": {"answers": without_end}}) == expected
    for wrong in (
        {},
        {"cot": {"answers": None}},
        {"cot": {"answers": _ANSWERS.replace("degradation description:", "")}},
        {"cot": {"answers": _ANSWERS.replace("denoise, then dehaze.", "")}},
    ):
        with pytest.raises(ValueError, match=r"cot\.answers"):
            parse_thoughts(wrong)


@pytest.mark.parametrize("name", [*SINGLES, *COMPOSITES])
def test_words_follow_the_parameters(name):
    picture = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    texts = set()
    for seed in range(40):
        rng = np.random.default_rng(seed)
        chain = sample_chain(name, 160, rng)
        meta = write_meta(picture, chain, name, rng)
        scene, degradation, plan = parse_thoughts(meta)
        texts.add(plan)
        for text in (scene, degradation, plan):
            assert len(text.split()) <= 40 and text[0].isupper() and text.endswith(".")
            assert "{" not in text
        place = 0
        for step in chain:
            if step.implied:
                continue
            numbers = numbers_of(step)
            # Strength words and numbers stand in the text in the order of application.
            place = degradation.lower().index(numbers["strength"], place) + 1
            rest = [value for key, value in numbers.items() if re.search(r"\d", value)]
            assert any(value in degradation for value in rest)
    assert len(texts) >= 6
    assert ("jpeg_type" in meta) == (name == "jpeg-compression")


def test_numbers_in_words_are_the_parameters():
    def step(name, params):
        return numbers_of(Step(name, params, 0.9))

    assert step("noise", NoiseParams("gaussian", sigma=25.5 / 255))["sigma"] == "26"
    assert step("noise", NoiseParams("poisson", photons=0.5 * 25.5**2))["sigma"] == "10"
    assert step("jpeg-compression", JpegParams(9, True))["quality"] == "9"
    motion = step("motion-blur", MotionBlurParams(12.34, -0.2, 0.0))
    assert motion == {
        "strength": "severe", "length": "12.3", "degrees": "0", "bend": "0.0", "path": "straight",
    }  # fmt: skip
    chain = [Step("haze", sample_chain("haze", 64, np.random.default_rng(0))[0].params, 0.1),
             Step("jpeg-compression", JpegParams(9, True), 0.9)]  # fmt: skip
    rng = np.random.default_rng(1)
    assert re.match("(A )?[Mm]ild .*severe", describe_degradation(chain, rng))
    plans = [describe_plan(chain, rng) for _ in range(20)]
    assert all(re.search("(JPEG|compression).*haze", plan) for plan in plans)
    for quality, kind in ((8, "jpeg-heavy"), (20, "jpeg-medium"), (40, "jpeg-light")):
        lone = [Step("jpeg-compression", JpegParams(quality, True), 0.5)]
        meta = write_meta(np.zeros((8, 8, 3), np.uint8), lone, "jpeg-compression", rng)
        assert meta["jpeg_type"] == kind


@pytest.mark.parametrize(
    ("colour", "words"),
    [((200, 20, 20), "red"), ((20, 180, 20), "green"), ((20, 30, 220), "blue"),
     ((128, 128, 128), "no colour"), ((250, 250, 250), "very bright"), ((9, 9, 9), "very dark")],
)  # fmt: skip
def test_scene_words(colour, words):
    picture = np.empty((64, 64, 3), np.uint8)
    picture[:] = colour
    text = describe_scene(picture, np.random.default_rng(0)).lower()
    assert words in text and "smooth" in text and "evenly lit" in text and "low" in text
    picture[:32] = 255 - np.array(colour, np.uint8)
    assert "evenly" not in describe_scene(picture, np.random.default_rng(0)) or colour[0] == 128


def test_prompt_files():
    files = prompt_files()
    assert set(files) == {"gen_prompt", *FOLDERS, *JPEG_TYPES}
    assert len(files["gen_prompt"]) >= 25
    for name, lines in files.items():
        assert len(lines) >= 15 and len(set(lines)) == len(lines), name
        assert all(line and line[-1] in ".?" and "{" not in line for line in lines)
    assert set(FACTS) == set(FIXES) == set(SINGLES)
