"""Templates of sentences (`phrases.toml`), and the prompt files of the benchmark."""

import tomllib
from collections.abc import Sequence
from pathlib import Path

from cotir_jax.bench.composites import COMPOSITES, SINGLES, folder_name, parts_of
from cotir_jax.bench.words.table import WORDS

_PHRASES = tomllib.loads((Path(__file__).parent / "phrases.toml").read_text(encoding="utf-8"))
VAGUE, SCENES, ANSWERS, _FRAMES = (
    tuple(_PHRASES[name]) for name in ("vague", "scenes", "answers", "frames")
)
JPEG_TYPES: dict[str, str] = _PHRASES["jpeg_types"]


def sentence(text: str) -> str:
    """Returns the text with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def join(parts: list[str], last: str = "and") -> str:
    """Joins parts as in `a`, `a and b`, `a, b and c`."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} {last} {parts[-1]}"


def prompt_files(names: Sequence[str] = (*SINGLES, *COMPOSITES)) -> dict[str, list[str]]:
    """Returns the prompt files of a benchmark: name without suffix -> lines, all different.

    The vague prompts and those of the JPEG types are always among them.
    """
    files = {"gen_prompt": list(VAGUE)}
    for name in names:
        files[folder_name(name)] = _precise_lines(parts_of(name))
    for jpeg_type, words in JPEG_TYPES.items():
        lines = _precise_lines(["jpeg-compression"])
        files[jpeg_type] = [f"{line[:-1]} in this {words} file{line[-1]}" for line in lines]
    return files


def _precise_lines(parts: list[str]) -> list[str]:
    lines = []
    for number in range(25):
        # Steps 1, 2, 3, ... for successive parts, so that phrases do not pair up in lockstep.
        picks = []
        for place, part in enumerate(parts):
            requests = WORDS[part].requests
            picks.append(requests[(number * (1 + place) + number // 5 + place) % len(requests)])
        line = sentence(_FRAMES[number % len(_FRAMES)].format(request=join(picks)))
        if line not in lines:
            lines.append(line)
    return lines
