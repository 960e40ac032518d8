"""The listing of a test split: one writer, one reader, lines that cannot be used."""

import json

import pytest

from cotir_jax.bench.listing import find_lq, read_listing, scan_listing, write_listing

ROWS = [
    {"id": "a", "lq_path": "lq/a.png", "deg_type": "haze", "subset": "single",
     "gen_prompt": "Restore this.", "spe_prompt": "Löse den Nebel auf."},
    {"id": "b", "lq_path": "lq/b.png", "deg_type": "haze+noise", "subset": "composite",
     "gen_prompt": "Better!", "spe_prompt": "Remove haze and noise."},
]  # fmt: skip


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS))
    return path


def test_writing_gives_the_bytes_that_were_read(path, tmp_path):
    pictures = read_listing(path)
    assert [picture.prompts["precise"] for picture in pictures] == [r["spe_prompt"] for r in ROWS]
    assert [picture.line for picture in pictures] == [1, 2]
    write_listing(pictures, tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == path.read_bytes()


def test_bad_lines_are_described_and_good_ones_read(path):
    rows = [json.dumps(ROWS[0]), "[1]", "{", "", json.dumps(ROWS[0]), '{"lq_path": "c.png"}']
    short = {name: ROWS[1][name] for name in ("lq_path", "deg_type")}
    path.write_text("\n".join([*rows, json.dumps(short)]))
    pictures, problems = scan_listing(path)
    assert [picture.id for picture in pictures] == ["a", "b"]
    assert pictures[1].missing == ("id", "subset", "gen_prompt", "spe_prompt")
    assert len(problems) == 4
    for line, problem in zip((2, 3, 5, 6), problems, strict=True):
        assert f"test.jsonl line {line}: " in problem
    with pytest.raises(ValueError, match="line 2: expected JSON"):
        read_listing(path)


@pytest.mark.parametrize(("content", "problem"), [(b"\xff\xfe", "UTF-8"), (b"\n", "no pictures")])
def test_unusable_listings(path, content, problem):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=problem):
        read_listing(path)


@pytest.mark.parametrize("folder", ["test", "."])
def test_paths_are_relative_to_the_split_or_the_root(tmp_path, folder):
    listing = tmp_path / "test" / "test.jsonl"
    (tmp_path / folder / "lq").mkdir(parents=True)
    listing.parent.mkdir(exist_ok=True)
    listing.write_text(json.dumps(ROWS[0]))
    (picture,) = read_listing(listing)
    with pytest.raises(ValueError, match=r"lq/a\.png: listed in .* line 1"):
        find_lq(listing, picture)
    (tmp_path / folder / "lq" / "a.png").touch()
    assert find_lq(listing, picture).samefile(tmp_path / folder / "lq" / "a.png")
