"""`cotir quickstart`: its figures, its sheet, its lines while one waits."""

import re

import numpy as np
import pytest
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from cotir_jax import cli
from cotir_jax.commands import quickstart


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """Its output, and the sheet's pixels."""
    out = tmp_path_factory.mktemp("quickstart") / "sheet.png"
    out.write_bytes(b"something else")
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()) as lines:
        cli.main(["quickstart", f"--out={out}", "--overwrite"])
    return lines.getvalue(), out, np.asarray(Image.open(out))


def test_figures_are_those_of_the_sheet(said):
    """The sheet's cells, cut out by their place, have the PSNR that is printed."""
    lines, _, sheet = said
    side, gap = quickstart._SIDE, 4
    rows = re.findall(r"^(\w+) +(\w.*?) {2,}([\d.]+) -> ([\d.]+) +0?\.\d+ -> 0?\.\d+$", lines, re.M)
    assert len(rows) == 3
    assert sorted(name.count("+") > 0 for _, name, *_ in rows) == [False, True, True]
    for row, (_, _, degraded, restored) in enumerate(rows):
        top = sheet.shape[0] - (3 - row) * (side + gap)
        lefts = [sheet.shape[1] - (3 - column) * (side + gap) for column in range(3)]
        before, after, clean = (sheet[top : top + side, left : left + side] for left in lefts)
        assert peak_signal_noise_ratio(clean, before) == pytest.approx(float(degraded), abs=0.006)
        assert peak_signal_noise_ratio(clean, after) == pytest.approx(float(restored), abs=0.006)
        # What it is for: nano restores these without a prompt.
        assert float(restored) > float(degraded) + 3


def test_says_where_the_sheet_is_and_what_to_try_next(said):
    lines, out, _ = said
    assert str(out) in lines
    assert "cotir restore your-photo.jpg" in lines
    steps = [line for line in lines.splitlines() if re.match(r"\[ *\d+ s\] \w", line)]
    assert len(steps) >= 5  # degrading, loading, three photos


def test_says_that_it_is_still_at_work(capsys, monkeypatch):
    monkeypatch.setattr(quickstart, "_BEAT", 0.01)
    clock = quickstart._Clock()
    with clock.during("waiting; and a remark"):
        while "still waiting\n" not in (said := capsys.readouterr().out):
            assert "Traceback" not in said


def test_an_error_ends_the_lines(capsys, monkeypatch):
    monkeypatch.setattr(quickstart, "_BEAT", 0.01)
    with pytest.raises(ValueError), quickstart._Clock().during("failing"):
        raise ValueError
    capsys.readouterr()
    import threading

    assert not [thread for thread in threading.enumerate() if "beat" in thread.name]
