"""The test protocol as a user runs it: restore a split, baselines, score all, one report."""

import json

import numpy as np
import pytest
from PIL import Image
from skimage import data

from cotir_jax import cli
from cotir_jax.bench.listing import read_listing
from cotir_jax.images.pictures import list_pictures, load_picture
from cotir_jax.restoring.test_split import restore_listing

ROWS = [
    {"id": "a", "lq_path": "lq/a.png", "deg_type": "low-light", "subset": "single"},
    {"id": "b", "lq_path": "lq/b.png", "deg_type": "haze", "subset": "single"},
    {"id": "c", "lq_path": "test/lq/c.png", "deg_type": "low-light+haze", "subset": "composite"},
]


@pytest.fixture
def split(tmp_path):
    """Three pairs of 96x112 pixels; one path is relative to the root above the split."""
    test = tmp_path / "test"
    for index, row in enumerate(ROWS):
        clean = data.chelsea()[30 * index + 60 : 30 * index + 156, 80:192]
        for side, picture in (("hq", clean), ("lq", clean // 3)):
            (test / side).mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(test / side / f"{row['id']}.png")
    prompts = {"gen_prompt": "improve this photo", "spe_prompt": "brighten this dark photo"}
    rows = [json.dumps(row | prompts) for row in ROWS]
    (test / "test.jsonl").write_text("\n".join(rows) + "\n")
    return test


def _fails(capsys, *command):
    with pytest.raises(SystemExit) as status:
        cli.main([str(part) for part in command])
    error = capsys.readouterr().err
    assert status.value.code == 1 and "Traceback" not in error
    (line,) = [line for line in error.splitlines() if line.startswith("error: ")]
    return line


def _run(*command):
    cli.main([str(part) for part in command])


@pytest.mark.slow
def test_whole_protocol(split, tmp_path, capsys):
    results = tmp_path / "results"
    _run("restore", "--jsonl", split / "test.jsonl", "--out", results)
    for prompts in ("vague", "precise"):
        names = [path.name for path in list_pictures(results / prompts)]
        assert names == ["a.png", "b.png", "c.png"]
    vague, precise = (load_picture(results / kind / "a.png") for kind in ("vague", "precise"))
    assert vague.shape == (96, 112, 3) and (vague != precise).any()
    _run("restore", "--jsonl", split / "test.jsonl", "--baseline", "input,clahe", "--out", results)
    degraded = load_picture(split / "lq" / "a.png")
    np.testing.assert_array_equal(load_picture(results / "input" / "a.png"), degraded)
    capsys.readouterr()
    _run(
        "evaluate", "--jsonl", split / "test.jsonl", "--lq", split / "lq", "--report",
        tmp_path / "report", "--results", *(results / name for name in
                                             ("vague", "precise", "clahe", "input")),
    )  # fmt: skip
    table = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert table["method"] == ["psnr", "ssim", "ms_ssim", "ciede2000", "piqe"]
    assert table["input"] == table["results/input"]  # the same pictures by two ways
    assert float(table["precise"][0]) > float(table["input"][0]) + 3
    written = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert list(written["methods"]["precise"])[1:] == [
        "all pictures", "low-light", "haze", "low-light+haze", "[single]", "[composite]",
    ]  # fmt: skip
    assert (tmp_path / "report" / "report.html").stat().st_size > 50_000
    row = (results / "clahe" / "metrics_summary.txt").read_text().splitlines()[-1]
    assert row.split(" & ")[0] == "clahe" and row.split(" & ")[6] == table["clahe"][0]


def test_existing_results_are_kept(split, tmp_path, capsys):
    listing, out = split / "test.jsonl", tmp_path / "out"
    _run("restore", "--jsonl", listing, "--baseline", "unsharp", "--out", out)
    (out / "unsharp" / "b.png").unlink()
    before = (out / "unsharp" / "a.png").stat().st_mtime_ns
    capsys.readouterr()
    _run("restore", "--jsonl", listing, "--baseline", "unsharp", "--out", out)
    assert capsys.readouterr().out.splitlines() == ["b haze", "unsharp: 1 pictures"]
    assert (out / "unsharp" / "a.png").stat().st_mtime_ns == before


def test_results_of_other_settings_are_not_mixed(split, tmp_path):
    def restorer(picture, _prompt):
        return picture

    listing, out = split / "test.jsonl", tmp_path / "out"
    assert len(list(restore_listing(restorer, listing, out, "vague", settings={"steps": 2}))) == 3
    assert list(restore_listing(restorer, listing, out, "vague", settings={"steps": 2})) == []
    with pytest.raises(ValueError, match='holds results of {"steps": 2}, this run is {"steps": 3}'):
        list(restore_listing(restorer, listing, out, "vague", settings={"steps": 3}))
    (out / "settings.json").unlink()
    with pytest.raises(ValueError, match="unknown origin"):
        list(restore_listing(restorer, listing, out, "vague", settings={"steps": 2}))


def test_prompts_reach_the_restorer(split, tmp_path):
    seen = []

    def restorer(picture, prompt):
        seen.append(prompt)
        return picture

    for prompts in ("vague", "precise"):
        list(restore_listing(restorer, split / "test.jsonl", tmp_path / prompts, prompts))
    assert seen == ["improve this photo"] * 3 + ["brighten this dark photo"] * 3
    list(restore_listing(restorer, split / "test.jsonl", tmp_path, "vague", part=(1, 2)))
    assert len(seen) == 7


def test_folders_without_listing(split, tmp_path, capsys):
    """Real pairs have no listing: a folder in, a folder per baseline out."""
    _run("restore", split / "lq", "--baseline", "clahe,unsharp", "--out", tmp_path / "out")
    assert len(list_pictures(tmp_path / "out" / "unsharp")) == 3
    _run("restore", split / "lq" / "a.png", "--baseline", "clahe", "--out", tmp_path / "one.png")
    one = load_picture(tmp_path / "one.png")
    np.testing.assert_array_equal(one, load_picture(tmp_path / "out" / "clahe" / "a.png"))
    capsys.readouterr()
    _run("evaluate", "--hq", split / "hq", "--results", tmp_path / "out" / "clahe",
         "--metrics", "psnr,piqe")  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["degradation", "pictures", "psnr", "piqe"]
    assert lines[1].split()[:2] == ["all", "3"]


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["restore"], "--jsonl"),
        (["restore", "lq", "--jsonl", "test.jsonl"], "or a split"),
        (["restore", "--jsonl", "other.jsonl", "--baseline", "clahe"], "other.jsonl: no such file"),
        (["restore", "lq", "--baseline", "magic"], "no baseline 'magic'"),
        (["restore", "lq/a.png", "--baseline", "all"], "one baseline for one picture"),
        (["evaluate", "--results", "lq"], "--hq"),
        (["evaluate", "--hq", "hq", "--results", "nowhere"], "nowhere: no such folder"),
        (["evaluate", "--hq", "hq", "--results", "lq", "lq"], "named twice"),
        (["evaluate", "--hq", "hq", "--results", "lq", "--metrics", "psnr,magic"], "'magic'"),
        (["evaluate", "--hq", "hq", "--results", "lq", "--lpips-weights", "a.pth",
          "--metrics", "lpips"], "a.pth: no such"),
    ],
)  # fmt: skip
def test_wrong_commands_are_one_line(split, monkeypatch, capsys, command, expected):
    monkeypatch.chdir(split)
    assert expected in _fails(capsys, *command)


def test_missing_unreadable_and_odd_sized_pictures_are_named(split, tmp_path, capsys):
    listing = split / "test.jsonl"
    (split / "lq" / "b.png").write_bytes(b"no picture")
    line = _fails(
        capsys, "restore", "--jsonl", listing, "--baseline", "clahe", "--out", tmp_path / "out"
    )
    assert "1 of 3 pictures could not be read: ['b.png']" in line
    assert [path.name for path in list_pictures(tmp_path / "out" / "clahe")] == ["a.png", "c.png"]
    evaluate = ["evaluate", "--jsonl", listing, "--results", tmp_path / "out" / "clahe"]
    assert "1 of 3 clean pictures lack a result" in _fails(capsys, *evaluate)
    (tmp_path / "out" / "clahe" / "b.png").write_bytes(b"no picture")
    assert "clahe/b.png: cannot be read" in _fails(capsys, *evaluate)
    Image.new("RGB", (112, 95)).save(tmp_path / "out" / "clahe" / "b.png")
    assert "112x95, the clean picture 112x96" in _fails(capsys, *evaluate)
    (split / "lq" / "b.png").unlink()
    line = _fails(capsys, "restore", "--jsonl", listing, "--baseline", "unsharp")
    assert "lq/b.png: listed in" in line and "line 2" in line


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"id": 1}', "line 4: .*lq_path"),
        ("[1, 2]", "line 4: "),
        ('{"lq_path": "lq/d.png"', "line 4: .*JSONDecodeError"),
        (json.dumps(ROWS[0]), "line 4: a.png is listed twice"),
        (json.dumps(ROWS[0] | {"lq_path": "lq/a.jpg"}), "two pictures are called a"),
        (json.dumps(ROWS[0] | {"lq_path": "lq/d.png"}), "line 4: has no vague prompt"),
    ],
)
def test_damaged_listings_are_named(split, tmp_path, line, expected):
    for name in ("a.jpg", "d.png"):
        Image.new("RGB", (20, 20)).save(split / "lq" / name)
    listing = split / "test.jsonl"
    if "a.jpg" in line:
        line = line[:-1] + ', "gen_prompt": "x"}'
    listing.write_text(listing.read_text() + line)
    with pytest.raises(ValueError, match=expected):
        list(restore_listing(lambda picture, _: picture, listing, tmp_path / "out", "vague"))
    assert not (tmp_path / "out").exists()


def test_empty_and_binary_listings(tmp_path):
    path = tmp_path / "test.jsonl"
    path.write_text("\n\n")
    with pytest.raises(ValueError, match="lists no pictures"):
        read_listing(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not UTF-8"):
        read_listing(path)
