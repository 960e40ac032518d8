"""A test split's listing, `test.jsonl`: a line of JSON per degraded picture."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from cotir_jax import files

_PROMPT_FIELDS = {"vague": "gen_prompt", "precise": "spe_prompt"}
_FIELDS = ("id", "lq_path", "deg_type", "subset", *_PROMPT_FIELDS.values())


class ListedPicture(NamedTuple):
    """A line of `test.jsonl`.

    Attributes:
      id: of the sample; the picture's name without suffix where the line has none.
      lq_path: degraded picture, relative to the split or to the benchmark's root.
      deg_type: degradation, or several joined by `+`.
      subset: which part of the split it belongs to; may be empty.
      prompts: "vague" and "precise", where the line has them.
      line: its number in the file, from 1.
      missing: fields of the layout that the line lacks.
    """

    id: str
    lq_path: str
    deg_type: str
    subset: str
    prompts: dict[str, str]
    line: int = 0
    missing: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Returns the file name of the degraded picture."""
        return Path(self.lq_path).name


def read_listing(path: Path) -> list[ListedPicture]:
    """Reads and checks a listing, so that a damaged line shows before any work is done.

    Raises:
      ValueError: missing, undecodable, or the first of `scan_listing`'s problems.
    """
    pictures, problems = scan_listing(path)
    if problems:
        raise ValueError(problems[0])
    return pictures


def scan_listing(path: Path) -> tuple[list[ListedPicture], list[str]]:
    """Reads the good lines of a listing, and describes the bad ones and other problems.

    Raises:
      ValueError: missing or undecodable.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; name a split's test.jsonl")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 text ({error.reason}); rebuild it") from None
    pictures: dict[str, ListedPicture] = {}
    problems = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            picture = _parse(line, number)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            problems.append(
                f"{path} line {number}: expected JSON with lq_path and deg_type "
                f"({type(error).__name__}: {error}); rebuild or fix the listing"
            )
            continue
        if picture.name in pictures:
            problems.append(f"{path} line {number}: {picture.name} is listed twice; keep one line")
        pictures.setdefault(picture.name, picture)
    if not pictures and not problems:
        problems.append(f"{path}: lists no pictures; rebuild the split")
    return list(pictures.values()), problems


def _parse(line: str, number: int) -> ListedPicture:
    row = json.loads(line)
    lq_path = str(row["lq_path"])
    return ListedPicture(
        id=str(row.get("id", Path(lq_path).stem)),
        lq_path=lq_path,
        deg_type=str(row["deg_type"]),
        subset=str(row.get("subset") or ""),
        prompts={kind: str(row[field]) for kind, field in _PROMPT_FIELDS.items() if row.get(field)},
        line=number,
        missing=tuple(field for field in _FIELDS if not row.get(field)),
    )


def write_listing(pictures: Iterable[ListedPicture], path: Path) -> None:
    """Writes a listing, completely or not at all."""
    lines = []
    for picture in pictures:
        row = {field: getattr(picture, field) for field in _FIELDS[:4]}
        row |= {_PROMPT_FIELDS[kind]: prompt for kind, prompt in picture.prompts.items()}
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    files.write_text(path, "".join(lines))


def find_lq(listing: Path, picture: ListedPicture) -> Path:
    """Finds a degraded picture: `lq_path` is relative to the split or to the root above it.

    Raises:
      ValueError: there is no such file.
    """
    split = Path(listing).parent
    for base in (split, split.parent):
        if (base / picture.lq_path).is_file():
            return base / picture.lq_path
    raise ValueError(
        f"{split / picture.lq_path}: listed in {listing} line {picture.line} but not there; "
        "fetch or rebuild the split"
    )
