"""Intervals, JSON, LaTeX and the page; the page also in a browser where there is one."""

import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from skimage import data

from cotir_jax.scoring import intervals, report, scores

KINDS = ["noise", "haze", "noise", "haze+noise", "haze", "noise", "haze+noise", "noise"]
HOSTILE = "<script>alert(1)<_script>.png"


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """Eight pictures, two methods: "strong" is nearer to the clean pictures than "weak"."""
    root = tmp_path_factory.mktemp("split")
    rng = np.random.default_rng(0)
    rows = []
    for index, kind in enumerate(KINDS):
        clean = data.chelsea()[20 * index : 20 * index + 96, 30 * index : 30 * index + 120]
        name = HOSTILE if index == 0 else f"{index}.png"
        for folder, deviation in (("hq", 0), ("lq", 30), ("strong", 4 + index), ("weak", 20)):
            noisy = np.clip(clean + rng.normal(0, deviation, clean.shape), 0, 255)
            (root / folder).mkdir(exist_ok=True)
            Image.fromarray(noisy.astype(np.uint8)).save(root / folder / name, format="PNG")
        subset = "composite" if "+" in kind else "single"
        rows.append({"lq_path": f"lq/{name}", "deg_type": kind, "subset": subset})
    (root / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return scores.score(
        root / "hq",
        {"strong": root / "strong", "weak_&_%": root / "weak"},
        lq=root / "lq",
        jsonl=root / "test.jsonl",
        metrics=["psnr", "ssim", "lpips", "ms_ssim", "piqe"],
    )


@pytest.fixture(scope="module")
def folder(scored, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "new"
    written = report.write_report(scored, folder, gallery=2)
    assert sorted(path.name for path in folder.iterdir()) == sorted(p.name for p in written)
    return folder


def test_interval_is_that_of_the_central_limit_theorem():
    values = np.random.default_rng(0).gamma(2.0, 3.0, 385)
    low, high = intervals.mean_interval(values)
    error = values.std() / np.sqrt(385)
    # Within 0.2 standard errors: 2000 resamples and the values' skew leave about 0.1.
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.2 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.2 * error)
    assert intervals.mean_interval(values) == (low, high)


def test_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        low, high = intervals.mean_interval(rng.normal(5.0, 2.0, 40))
        covered += low <= 5.0 <= high
    assert 0.88 <= covered / 200 <= 0.98


def test_interval_of_few_and_of_many(monkeypatch):
    assert intervals.mean_interval(np.array([3.0, np.nan])) is None
    assert intervals.mean_interval(np.array([])) is None
    assert intervals.mean_interval(np.full(5, 7.0)) == (7.0, 7.0)
    values = np.random.default_rng(0).normal(size=300)
    whole = intervals.mean_interval(values)
    monkeypatch.setattr(intervals, "_VALUES_AT_ONCE", 300 * 7)  # many small draws in place of one
    assert intervals.mean_interval(values) == pytest.approx(whole, abs=1e-12)


def test_json_has_every_number(scored, folder):
    result = json.loads((folder / "metrics.json").read_text())
    groups = ["all pictures", "noise", "haze", "haze+noise", "[single]", "[composite]"]
    assert list(result["methods"]) == ["input", "strong", "weak_&_%"]
    assert list(result["methods"]["strong"])[1:] == groups
    assert result["missing"].keys() == {"lpips"} and "lpips" not in result["definitions"]
    rows = result["per_picture"]
    for kind in ("noise", "haze+noise"):
        mine = [row["strong"]["psnr"] for row in rows if row["degradation"] == kind]
        before = [row["input"]["psnr"] for row in rows if row["degradation"] == kind]
        figures = result["methods"]["strong"][kind]
        assert figures["pictures"] == len(mine) == KINDS.count(kind)
        assert figures["psnr"]["mean"] == pytest.approx(np.mean(mine))
        assert figures["psnr"]["gain"] == pytest.approx(np.mean(mine) - np.mean(before))
        low, high = figures["psnr"]["gain_interval"]
        assert low < figures["psnr"]["gain"] < high
    assert all(row["strong"]["ms_ssim"] is None for row in rows)
    assert result["methods"]["strong"]["noise"]["ms_ssim"]["mean"] is None
    assert {row["name"] for row in rows} == {path.name for path in scored.references}


def test_latex_rows(scored, folder):
    text = (folder / "metrics.tex").read_text()
    rows = [line.removesuffix(r" \\").split(" & ") for line in text.splitlines() if " & " in line]
    rows = [row for row in rows if not row[0].startswith("%")]
    assert len({len(row) for row in rows}) == 1
    assert [row[0] for row in rows] == ["method", "input", "strong", r"weak\_\&\_\%"]
    column = next(at for at, title in enumerate(rows[0]) if title.startswith("PSNR"))
    means = {name: np.mean(values["psnr"]) for name, values in scored.values.items()}
    assert rows[2][column] == rf"\textbf{{{means['strong']:.2f}}}"
    assert rows[1][column] == f"{means['input']:.2f}"
    assert rows[3][column] == f"{means['weak_&_%']:.2f}"
    assert text.count("{") == text.count("}")


class _Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.links, self.scripts, self.open = [], 0, []

    def handle_starttag(self, tag, attributes):
        self.scripts += tag == "script"
        self.links += [
            value for name, value in attributes if name in ("src", "href", "xlink:href") and value
        ]


def test_page_needs_nothing_from_outside(folder):
    text = (folder / "report.html").read_text()
    reader = _Reader()
    reader.feed(text)
    assert reader.links == [] and reader.scripts == 2
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org)", text)
    assert HOSTILE not in text and HOSTILE.replace("<", "&lt;").replace(">", "&gt;") in text
    assert text.count("data:image/jpeg;base64,") > 8


def test_page_without_input_listing_and_ties(scored, tmp_path):
    root = scored.references[0].parent.parent
    alone = scores.score(root / "hq", {"hq": root / "hq"}, metrics=["ssim"])
    report.write_report(alone, tmp_path)
    result = json.loads((tmp_path / "metrics.json").read_text())
    figures = result["methods"]["hq"]["all pictures"]
    assert figures["ssim"]["mean"] == pytest.approx(1) and "gain" not in figures["ssim"]


def test_embedded_pictures_are_bounded(scored, monkeypatch):
    monkeypatch.setattr(report.report_page, "_PICTURE_BYTES", 20_000)
    page = report.report_page.render(scored, report._groups(scored), gallery=4)
    assert sum(map(len, re.findall(r"data:image/jpeg;base64,[\w+/=]+", page))) < 60_000


@pytest.fixture(scope="module")
def page(folder):
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright, which drives the browser, is not installed"
    )
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser",
                                                    "google-chrome"))), None)  # fmt: skip
    if browser is None:
        pytest.skip("no Chromium here")
    options = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
               "--disable-background-networking", "--disable-component-update"]  # fmt: skip
    with playwright.sync_playwright() as driver:
        window = driver.chromium.launch(executable_path=browser, args=options)
        page = window.new_page(viewport={"width": 1300, "height": 900})
        page.requests, page.problems = [], []
        page.on("request", lambda request: page.requests.append(request.url))
        page.on("console", lambda message: page.problems.append(message.text))
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.goto((folder / "report.html").as_uri())
        yield page
        window.close()


def _column(page, table, number):
    cells = page.locator(f"{table} tbody tr td:nth-child({number})").all()
    return [float(cell.inner_text().split()[0]) for cell in cells]


def test_browser_sorts_by_a_click(page):
    header = page.locator("#overview th:nth-child(2)")
    header.get_by_role("button").click()
    ascending = _column(page, "#overview", 2)
    assert ascending == sorted(ascending) and len(set(ascending)) == 3
    assert header.get_attribute("aria-sort") == "ascending"
    header.get_by_role("button").click()
    assert _column(page, "#overview", 2) == ascending[::-1]
    page.locator("#overview th:nth-child(1)").get_by_role("button").click()
    names = page.locator("#overview tbody tr td:nth-child(1)").all_inner_texts()
    assert names == sorted(names) == ["input", "strong", "weak_&_%"]
    assert header.get_attribute("aria-sort") is None


def test_browser_shows_one_metric_at_a_time(page):
    assert page.locator("section[data-metric=psnr]").is_visible()
    page.get_by_label("metric").select_option("ssim")
    assert page.locator("section[data-metric=ssim]").is_visible()
    assert not page.locator("section[data-metric=psnr]").is_visible()
    rows = page.locator("section[data-metric=ssim] tbody tr").all_inner_texts()
    assert [row.split("\t")[0] for row in rows][:3] == ["all pictures", "noise", "haze"]


def test_browser_moves_the_slider(page):
    compare = page.locator("section[data-method=strong] .compare").first
    compare.scroll_into_view_if_needed()
    box = compare.bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] / 2, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.8, middle, steps=5)
    page.mouse.up()
    bar = compare.locator(".bar").bounding_box()
    assert (bar["x"] - box["x"]) / box["width"] == pytest.approx(0.8, abs=0.03)
    clip = compare.locator(".left").evaluate("image => getComputedStyle(image).clipPath")
    hidden = float(re.search(r"([\d.]+)%", clip.replace("calc", ""))[1])
    assert hidden == pytest.approx(20, abs=3)
    loaded = "image => image.complete && image.naturalWidth"
    assert compare.locator(".left").evaluate(loaded) == 120
    page.get_by_label("left side").select_option("clean")
    assert compare.locator("b").first.inner_text() == "clean"


def test_browser_asked_for_nothing_else(page, folder):
    assert page.problems == []
    urls = {url for url in page.requests if not url.startswith("data:")}
    assert urls == {(folder / "report.html").as_uri()}
