"""The benchmark builder: layout, determinism, separate photos, words, and what it refuses."""

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
from support.small_bench import ANSWERS, NAMES, SMALL, digests, save_photos

from cotir_jax.bench.build import build_bench
from cotir_jax.bench.check import check_bench
from cotir_jax.bench.composites import (
    QUICK_COMPOSITES,
    QUICK_SINGLES,
    SEEN,
    SINGLES,
    UNSEEN,
    Step,
    folder_name,
    sample_chain,
)
from cotir_jax.bench.degradations.sensor import JpegParams, MotionBlurParams, NoiseParams
from cotir_jax.bench.photos import choose_crop, cut, find_photos
from cotir_jax.bench.plan import choose_names
from cotir_jax.bench.shards import read_shard
from cotir_jax.bench.words.phrases import JPEG_TYPES
from cotir_jax.bench.words.thoughts import (
    describe_degradation,
    describe_plan,
    describe_scene,
    numbers_of,
    parse_thoughts,
    write_meta,
)
from cotir_jax.images.pictures import save_picture

ROOT = Path(__file__).resolve().parents[2]
TRAINED = [name for name in NAMES if name not in UNSEEN]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return save_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def bench(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("built") / "bench"
    counts = build_bench(out, photos, workers=1, **SMALL)
    report = check_bench(out, workers=1)
    assert (report.train, report.test) == (dict(sorted(counts["train"].items())), counts["test"])
    assert not report.problems
    return out


def test_layout(bench):
    assert {path.name for path in bench.iterdir()} == {"build.json", "image", "prompts", "test"}
    folders = {path.name for path in (bench / "image").iterdir()}
    assert folders == {folder_name(name) for name in TRAINED}
    assert "low-light_haze_rain-streak_jpeg-compression" in folders
    assert not list(bench.parent.glob("*.part"))
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
    assert [row["deg_type"] for row in rows] == list(NAMES)
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
    assert len(seen["train"]) >= 5 and not seen["train"] & seen["test"]
    assert len(seen["test"]) == 1  # an eighth of ten


def _photo_of(picture):
    blue = np.median(np.asarray(Image.open(picture))[..., 2])
    return round((float(blue) - 30) / 20)


def test_bytes_depend_on_the_seed_alone(bench, photos, tmp_path):
    build_bench(tmp_path / "two", photos, workers=2, **SMALL)
    assert digests(tmp_path / "two") == digests(bench)
    # Another process, with other string hashes, from a script without a main guard.
    script = (
        "from cotir_jax.bench.build import build_bench\n"
        f"build_bench({str(tmp_path / 'other')!r}, {str(photos)!r}, workers=2, **{SMALL!r})\n"
        "import sys; assert 'jax' not in sys.modules\n"
    )
    (tmp_path / "script.py").write_text(script)
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, tmp_path / "script.py"], env=environment, check=True)
    assert digests(tmp_path / "other") == digests(bench)
    build_bench(tmp_path / "seed", photos, seed=1, workers=1, **SMALL)
    changed = digests(tmp_path / "seed")
    same = [name for name, digest in digests(bench).items() if digest == changed.get(name)]
    assert all(name.startswith("prompts/") for name in same)


def test_shards_split_at_256_samples(tmp_path, monkeypatch):
    # The samples of a shard do not depend on how many there are in all.
    monkeypatch.setattr("cotir_jax.bench.build._SHARD_SAMPLES", 3)
    for number in range(2):
        save_picture(np.full((60, 60, 3), 99, np.uint8), tmp_path / "p" / f"{number}.png")
    options = {"size": 32, "degradations": "haze", "workers": 1, "progress": False}
    build_bench(tmp_path / "b", tmp_path / "p", samples_per_degradation=7, **options)
    haze = sorted((tmp_path / "b" / "image" / "haze").iterdir())
    assert [path.name for path in haze] == ["000000.tar", "000001.tar", "000002.tar"]
    keys = [key for path in haze for key, _ in read_shard(path)]
    assert keys == [f"haze-{number:06d}" for number in range(7)]
    prompts = {path.stem for path in (tmp_path / "b" / "prompts").iterdir()}
    assert prompts == {"gen_prompt", "haze", *JPEG_TYPES}


def test_bundled_photos_build(tmp_path):
    pytest.importorskip("skimage", reason="needs the photographs inside scikit-image")
    train, test = find_photos(None, None, 0)
    assert not set(train) & set(test) and len(train) == 11 and len(test) == 3
    options = {**SMALL, "degradations": "all", "samples_per_degradation": 1}
    counts = build_bench(tmp_path / "b", composites=False, workers=2, **options)
    report = check_bench(tmp_path / "b")
    assert not report.problems and report.test == counts["test"]
    assert counts["train"] == dict.fromkeys(SINGLES, 1) == report.train


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
    dark = [(_crop(photo, 64, seed) < 12).mean() for seed in range(60)]
    assert np.mean(dark) < 0.45 and np.mean(np.array(dark) > 0.95) < 0.05
    tiny = np.tile(np.arange(40, dtype=np.uint8)[:, None, None] * 6, (1, 40, 3))
    crop = _crop(tiny, 80, 0)
    assert crop.shape == (80, 80, 3) and crop[0].max() < 6 and crop[-1].min() > 220


def _crop(photo, size, seed):
    return cut(photo, choose_crop(photo, size, np.random.default_rng(seed)), size)


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


def test_named_sets_and_names():
    assert choose_names("quick") == (*QUICK_SINGLES, *QUICK_COMPOSITES)
    assert choose_names("all") == (*SINGLES, *SEEN, *UNSEEN)
    assert choose_names("all", composites=False) == SINGLES
    # Parts in the order of application, each name once, sets and names together.
    assert choose_names("snow+haze, haze,haze+snow") == ("haze+snow", "haze")
    assert choose_names(["unseen", "haze"]) == (*UNSEEN, "haze")
    for wrong in ("fog", "haze+haze", "", "haze+"):
        with pytest.raises(ValueError, match="unknown|twice"):
            choose_names(wrong)
    with pytest.raises(ValueError, match="nothing to build"):
        choose_names("unseen", composites=False)


def test_unseen_composites_alone_make_a_test_split(photos, tmp_path):
    options = {**SMALL, "degradations": "unseen", "workers": 1}
    counts = build_bench(tmp_path / "b", photos, **options)
    assert counts == {"train": {}, "test": dict.fromkeys(UNSEEN, 1)}
    report = check_bench(tmp_path / "b", workers=1)
    assert report.test == counts["test"] and not report.problems
    with pytest.raises(ValueError, match="only for the test"):
        build_bench(tmp_path / "c", photos, **{**options, "test_per_degradation": 0})


def test_parse_thoughts():
    expected = ("a red car.", "mild haze, then noise.", "denoise, then dehaze.")
    assert parse_thoughts({"cot": {"answers": ANSWERS}}) == expected
    without_end = ANSWERS.replace(" answer: done.", "").replace("scene", "\nScene")
    assert parse_thoughts({"cot": {"answers": without_end}}) == expected
    for wrong in (
        {},
        {"cot": {"answers": None}},
        {"cot": {"answers": ANSWERS.replace("degradation description:", "")}},
        {"cot": {"answers": ANSWERS.replace("denoise, then dehaze.", "")}},
    ):
        with pytest.raises(ValueError, match=r"cot\.answers"):
            parse_thoughts(wrong)


@pytest.mark.parametrize("name", [*QUICK_SINGLES, *QUICK_COMPOSITES])
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
