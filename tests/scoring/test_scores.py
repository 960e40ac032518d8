"""Which metrics are computed: files given or not, learned ones through a stand-in for pyiqa."""

import sys
import types

import numpy as np
import pytest
from PIL import Image
from skimage import data
from support.scoring import evaluate

from cotir_jax.scoring import learned, scores, summary


@pytest.fixture
def folders(tmp_path):
    for folder, change in (("hq", 0), ("results", 10), ("lq", 30)):
        (tmp_path / folder).mkdir()
        for index in range(3):
            picture = data.astronaut()[40 * index : 40 * index + 100, 100:200] // 2 + change
            Image.fromarray(picture).save(tmp_path / folder / f"{index}.png")
    return tmp_path


@pytest.fixture
def pyiqa(monkeypatch):
    """A module in pyiqa's place: metrics of Pillow images, one that cannot be loaded."""
    made = []

    def create_metric(name):
        made.append(name)
        if name == "maclip":
            raise AssertionError("Torch not compiled\nwith CUDA enabled")

        def metric(image):
            assert isinstance(image, Image.Image) and image.mode == "RGB"
            return np.float32([[np.asarray(image).mean() + len(name)]])[0, 0]

        return metric

    monkeypatch.setitem(sys.modules, "pyiqa", types.SimpleNamespace(create_metric=create_metric))
    return made


def test_learned_metrics_through_pyiqa(folders, pyiqa):
    names = list(learned.PYIQA_NAMES)
    result = evaluate(
        folders / "hq", folders / "results", lq=folders / "lq", metrics=["psnr", *names]
    )
    assert pyiqa == ["niqe", "clipiqa+", "qalign", "liqe", "maclip", "clipiqa"]
    brightness = {
        folder: np.mean([np.asarray(Image.open(p)).mean() for p in (folders / folder).iterdir()
                         if p.suffix == ".png"])
        for folder in ("results", "lq")
    }  # fmt: skip
    assert result["clipiqa_plus"] == pytest.approx(brightness["results"] + 8, abs=1e-3)
    assert result["input_qalign"] == pytest.approx(brightness["lq"] + 6, abs=1e-3)
    assert "maclip" not in result
    assert "CUDA" in result["missing"]["maclip"] and "\n" not in result["missing"]["maclip"]
    lines = (folders / "results" / "metrics_summary.txt").read_text().splitlines()
    cells = lines[-1].split(" & ")
    assert cells[0] == "results" and cells[4] == "-" and cells[-1] == "-"
    assert cells[1] == f"{result['clipiqa_plus']:.4f}" and cells[6] == f"{result['psnr']:.2f}"
    assert cells[5] == f"{result['clip_iqa']:.4f}"
    assert any("maclip: not computed: pyiqa cannot load maclip" in line for line in lines)


def test_without_pyiqa_and_lpips_weights(folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyiqa", None)  # as if it were not installed
    result = evaluate(folders / "hq", folders / "results", metrics=list(scores.METRICS))
    assert set(result["missing"]) == {"lpips", *learned.PYIQA_NAMES}
    assert "pip install pyiqa" in result["missing"]["liqe"]
    assert "--lpips-weights" in result["missing"]["lpips"]
    for metric in ("psnr", "ssim", "ciede2000", "piqe"):
        assert result[metric] > 0
    assert result["ms_ssim"] is None and result["ms_ssim_pictures"] == 0
    table = summary.format_table(result)
    assert "ms_ssim leaves out 3 pictures" in table and "lpips: not computed" in table


def test_default_metrics_are_the_fast_ones(folders, monkeypatch):
    """The quick job must not pay for the slow ones."""
    monkeypatch.setattr(scores.no_reference, "piqe", None)
    monkeypatch.setattr(scores.full_reference, "ciede2000", None)
    result = evaluate(folders / "hq", folders / "results")
    assert {"psnr", "ssim", "ms_ssim"} <= result.keys() and "piqe" not in result


def test_unknown_metric_and_unusable_files(folders):
    with pytest.raises(ValueError, match="'sharpness'; there are psnr, ssim"):
        scores.open_metrics(["sharpness"])
    with pytest.raises(ValueError, match="none.pth"):
        scores.open_metrics(["lpips"], lpips_weights=[folders / "none.pth"])


def test_names_of_methods(tmp_path):
    paths = [tmp_path / part for part in ("a/vague", "b/vague", "precise", "c/input")]
    assert summary.method_names(paths, with_input=True) == [
        "a/vague", "b/vague", "precise", "c/input",
    ]  # fmt: skip
    assert summary.method_names(paths[2:], with_input=False) == ["precise", "input"]
    with pytest.raises(ValueError, match="named twice"):
        summary.method_names([tmp_path / "x", tmp_path / "y" / ".." / "x"], with_input=False)


def test_all_sizes_are_checked_before_no_reference_metrics(folders):
    path = folders / "results" / "2.png"
    Image.open(path).crop((0, 0, 100, 99)).save(path)
    with pytest.raises(ValueError, match=r"results/2.png .*100x99.*100x100"):
        evaluate(folders / "hq", folders / "results", metrics=["piqe"])
