"""The words for each degradation, read from `degradations.toml` next to this file.

A degradation has one name everywhere: that of its folder in CoTIR-Bench, such as `low-light` and
`lost_color`, joined by `+` in composites. What people read shows the plain words instead.
"""

import tomllib
from pathlib import Path
from typing import NamedTuple


class Words(NamedTuple):
    """A degradation in words; `degradations.toml` says what each field is for."""

    plain: str
    facts: tuple[str, ...]
    looks: tuple[str, ...]
    fixes: tuple[str, ...]
    requests: tuple[str, ...]
    mask_facts: tuple[str, ...] = ()
    mask_fixes: tuple[str, ...] = ()


_TABLE = tomllib.loads((Path(__file__).parent / "degradations.toml").read_text(encoding="utf-8"))
WORDS: dict[str, Words] = {
    name: Words(entry.pop("plain"), **{field: tuple(lines) for field, lines in entry.items()})
    for name, entry in _TABLE.items()
}


def plain_name(name: str) -> str:
    """Turns `low-light+noise` into `low light + noise`; unknown names stay as they are."""
    return " + ".join(WORDS[part].plain if part in WORDS else part for part in name.split("+"))
