"""A test split's listing, `test.jsonl`: a line of JSON per degraded picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple


class ListedPicture(NamedTuple):
    """A line of `test.jsonl`.

    Attributes:
      line: its number in the file, from 1.
      id: of the sample; the picture's name without suffix where the line has none.
      lq_path: degraded picture, relative to the split or to the benchmark's root.
      deg_type: degradation, or several joined by `+`.
      subset: which part of the split it belongs to; may be empty.
      prompts: "vague" and "precise", where the line has them.
    """

    line: int
    id: str
    lq_path: str
    deg_type: str
    subset: str
    prompts: dict[str, str]

    @property
    def name(self) -> str:
        return Path(self.lq_path).name


_PROMPT_FIELDS = {"vague": "gen_prompt", "precise": "spe_prompt"}


def read_listing(path: Path) -> list[ListedPicture]:
    """Reads and checks a whole listing, so that a damaged line shows before any work is done.

    Raises:
      ValueError: missing, empty, undecodable, or a line that is no JSON object with lq_path and
        deg_type; the message names file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; name a split's test.jsonl")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 text ({error.reason}); rebuild it") from None
    listed: list[ListedPicture] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            lq_path, degradation = str(row["lq_path"]), str(row["deg_type"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} line {number}: expected JSON with lq_path and deg_type "
                f"({type(error).__name__}: {error}); rebuild or mend the listing"
            ) from error
        picture = ListedPicture(
            number,
            str(row.get("id", Path(lq_path).stem)),
            lq_path,
            degradation,
            str(row.get("subset") or ""),
            {kind: str(row[field]) for kind, field in _PROMPT_FIELDS.items() if row.get(field)},
        )
        if picture.name in seen:
            raise ValueError(f"{path} line {number}: {picture.name} is listed twice; keep one line")
        seen[picture.name] = number
        listed.append(picture)
    if not listed:
        raise ValueError(f"{path}: lists no pictures; rebuild the split")
    return listed


def find_lq(listing: Path, picture: ListedPicture) -> Path:
    """The degraded picture's file: `lq_path` is relative to the split or to the root above it.

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
