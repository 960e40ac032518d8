"""Scoring folders: every clean picture counts, means, per degradation, the summary file."""

import json

import numpy as np
import pytest
from PIL import Image
from skimage import data
from skimage.metrics import peak_signal_noise_ratio
from support.scoring import evaluate

from cotir_jax.scoring import full_reference
from cotir_jax.scoring.summary import format_table

DEGRADATIONS = {"a.png": "noise", "b.png": "haze", "c.png": "noise"}
NOISE = {"results": (3, 9, 20), "lq": (15, 25, 40)}


def _save(folder, name, picture):
    folder.mkdir(exist_ok=True)
    Image.fromarray(picture).save(folder / name)


@pytest.fixture
def split(tmp_path):
    """Three clean pictures with results and inputs of different noise, and their listing."""
    rng = np.random.default_rng(0)
    pictures = {"hq": {}, "results": {}, "lq": {}}
    for index, name in enumerate(DEGRADATIONS):
        clean = data.astronaut()[60 * index : 60 * index + 170, 100:300]
        pictures["hq"][name] = clean
        for folder, deviations in NOISE.items():
            noise = rng.normal(0, deviations[index], clean.shape)
            pictures[folder][name] = np.clip(clean + noise, 0, 255).astype(np.uint8)
    for folder, named in pictures.items():
        for name, picture in named.items():
            _save(tmp_path / folder, name, picture)
    rows = [
        {"id": name[0], "lq_path": f"lq/{name}", "deg_type": kind, "subset": "single"}
        for name, kind in DEGRADATIONS.items()
    ]
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return tmp_path, pictures


def _psnrs(pictures, folder, names=DEGRADATIONS):
    return [peak_signal_noise_ratio(pictures["hq"][name], pictures[folder][name]) for name in names]


def test_means_over_pictures(split):
    root, pictures = split
    result = evaluate(root / "hq", root / "results", lq=root / "lq")
    assert result["pictures"] == result["ms_ssim_pictures"] == 3
    assert result["psnr"] == pytest.approx(np.mean(_psnrs(pictures, "results")), abs=1e-3)
    assert result["input_psnr"] == pytest.approx(np.mean(_psnrs(pictures, "lq")), abs=1e-3)
    for key, metric in (("ssim", full_reference.ssim), ("ms_ssim", full_reference.ms_ssim)):
        for prefix, folder in (("", "results"), ("input_", "lq")):
            expected = [metric(pictures[folder][n], pictures["hq"][n]) for n in DEGRADATIONS]
            assert result[prefix + key] == pytest.approx(np.mean(expected), abs=1e-12)
    assert result["per_degradation"] == {}
    json.dumps(result)


def test_means_per_degradation(split):
    root, pictures = split
    result = evaluate(root / "hq", root / "results", lq=root / "lq", jsonl=root / "test.jsonl")
    table = result["per_degradation"]
    assert list(table) == ["noise", "haze"]
    assert [table[kind]["pictures"] for kind in table] == [2, 1]
    for prefix, folder in (("", "results"), ("input_", "lq")):
        noise = np.mean(_psnrs(pictures, folder, ["a.png", "c.png"]))
        (haze,) = _psnrs(pictures, folder, ["b.png"])
        assert table["noise"][f"{prefix}psnr"] == pytest.approx(noise, abs=1e-3)
        assert table["haze"][f"{prefix}psnr"] == pytest.approx(haze, abs=1e-3)


def test_summary_has_the_releases_row(split):
    root, _ = split
    result = evaluate(root / "hq", root / "results", lq=root / "lq", jsonl=root / "test.jsonl")
    lines = (root / "results" / "metrics_summary.txt").read_text().splitlines()
    assert lines[-3:] == [
        "method & clipiqa_plus & qalign & liqe & maclip & clip_iqa & psnr & ssim & lpips",
        f"input & - & - & - & - & - & {result['input_psnr']:.2f} & {result['input_ssim']:.4f} & -",
        f"results & - & - & - & - & - & {result['psnr']:.2f} & {result['ssim']:.4f} & -",
    ]
    comments = lines[:-3]
    assert all(line.startswith("#") for line in comments)
    assert "3 pictures" in comments[0]
    assert [line[2:] for line in comments[-4:]] == format_table(result).splitlines()
    assert sorted(path.name for path in (root / "results").iterdir()) == [
        "a.png", "b.png", "c.png", "metrics_summary.txt",
    ]  # fmt: skip


def test_table_lines_up(split):
    root, _ = split
    result = evaluate(root / "hq", root / "results", lq=root / "lq", jsonl=root / "test.jsonl")
    lines = format_table(result).splitlines()
    assert [line.split()[0] for line in lines] == ["degradation", "noise", "haze", "all"]
    assert len({len(line) for line in lines}) == 1
    assert lines[-1].split()[1:4] == ["3", f"{result['input_psnr']:.2f}", f"{result['psnr']:.2f}"]


@pytest.mark.parametrize("folder", ["results", "lq"])
def test_no_clean_picture_is_skipped(split, folder):
    root, _ = split
    (root / folder / "a.png").unlink()
    (root / folder / "c.png").unlink()
    with pytest.raises(ValueError, match=f"2 of 3 .*{folder}: a.png, c.png;"):
        evaluate(root / "hq", root / "results", lq=root / "lq")
    assert not (root / "results" / "metrics_summary.txt").exists()


def test_suffix_may_differ_when_the_stem_is_single(split):
    root, pictures = split
    (root / "results" / "b.png").unlink()
    _save(root / "results", "b.bmp", pictures["results"]["b.png"])
    by_stem = evaluate(root / "hq", root / "results")
    assert by_stem["psnr"] == pytest.approx(np.mean(_psnrs(pictures, "results")), abs=1e-3)
    _save(root / "results", "b.tif", pictures["hq"]["b.png"])
    with pytest.raises(ValueError, match="1 of 3 .*: b.png;"):
        evaluate(root / "hq", root / "results")


def test_equal_name_comes_before_equal_stem(split):
    root, pictures = split
    expected = evaluate(root / "hq", root / "results")
    _save(root / "results", "b.bmp", pictures["hq"]["b.png"])
    result = evaluate(root / "hq", root / "results")
    assert result["psnr"] == expected["psnr"]
    assert result["unmatched_results"] == 1
    assert "1 results without a clean picture" in format_table(result)


def test_one_result_serves_one_clean_picture(split):
    root, pictures = split
    _save(root / "hq", "b.bmp", pictures["hq"]["b.png"])
    with pytest.raises(ValueError, match="1 of 4 .*: b.bmp;"):
        evaluate(root / "hq", root / "results")


def test_sizes_must_agree(split):
    root, pictures = split
    _save(root / "results", "b.png", pictures["results"]["b.png"][:-1])
    with pytest.raises(ValueError, match="results/b.png .*200x169.*200x170"):
        evaluate(root / "hq", root / "results")
    assert not (root / "results" / "metrics_summary.txt").exists()


def test_small_pictures_have_no_ms_ssim(split):
    root, pictures = split
    for folder in ("hq", "results"):
        _save(root / folder, "b.png", pictures[folder]["b.png"][:100])
    result = evaluate(root / "hq", root / "results", jsonl=root / "test.jsonl")
    assert result["ms_ssim_pictures"] == 2
    expected = [
        full_reference.ms_ssim(pictures["results"][name], pictures["hq"][name])
        for name in ("a.png", "c.png")
    ]
    assert result["ms_ssim"] == pytest.approx(np.mean(expected))
    assert result["per_degradation"]["haze"]["ms_ssim"] is None
    assert "leaves out 1 pictures" in format_table(result)
    assert result["input_psnr"] is None


def test_empty_and_missing_folders(split):
    root, _ = split
    (root / "empty").mkdir()
    for hq, results in (("empty", "results"), ("hq", "empty"), ("hq", "nowhere")):
        with pytest.raises(ValueError, match="empty|nowhere"):
            evaluate(root / hq, root / results)


def test_truncated_result_is_named(split):
    root, _ = split
    path = root / "results" / "c.png"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match="c.png"):
        evaluate(root / "hq", root / "results")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[:2], "1 of 3 clean pictures lack a line in .*: c.png"),
        (lambda lines: [*lines, lines[0].replace("a.png", "d.png")], "lists 1 .*: d.png"),
        (lambda lines: [*lines, lines[0]], "line 4: a.png is listed twice"),
        (lambda lines: [*lines, '{"id": 1}'], "line 4: .*KeyError: 'lq_path'"),
        (lambda lines: [lines[0][:-5], *lines[1:]], "line 1: .*JSONDecodeError"),
        (lambda lines: ["[]", *lines], "line 1: "),
    ],
)
def test_damaged_listing(split, change, message):
    root, _ = split
    listing = root / "test.jsonl"
    listing.write_text("\n".join(change(listing.read_text().splitlines())))
    with pytest.raises(ValueError, match=message):
        evaluate(root / "hq", root / "results", jsonl=listing)


def test_missing_listing(split):
    root, _ = split
    with pytest.raises(ValueError, match="no such file"):
        evaluate(root / "hq", root / "results", jsonl=root / "other.jsonl")
