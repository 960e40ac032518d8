"""Chooses a sample's prompt: vague or precise, from a file or from its own questions.

docs/design.md, section 5, has the published probabilities.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

VAGUE_FILE = "gen_prompt"

# Shares of the prompt file; the rest asks the sample's own question.
_VAGUE_FROM_FILE = 0.8
_PRECISE_FROM_FILE = 0.7
_LOST_COLOUR_FROM_FILE = 0.2
_LOST_COLOUR = re.compile(r"lost[ _-]?colou?r")


@dataclass(frozen=True)
class Prompts:
    """Lines of the prompt files: ``vague``, and ``precise`` by file name without suffix."""

    vague: tuple[str, ...]
    precise: dict[str, tuple[str, ...]]


def load_prompts(root: Path, degradations: Sequence[str]) -> Prompts:
    """Read ``prompts/gen_prompt.txt``, and ``prompts/[spe_prompt/]<degradation>.txt`` of each.

    Further files there, those of the JPEG types, are read as well.

    Raises:
        ValueError: one that is needed is missing, empty or not UTF-8.
    """
    folder = root / "prompts"
    # Those in prompts/ itself come last and win.
    files = [*sorted(folder.glob("spe_prompt/*.txt")), *sorted(folder.glob("*.txt"))]
    lines = {path.stem: _read_lines(path) for path in files}
    missing = [name for name in (VAGUE_FILE, *degradations) if not lines.get(name)]
    if missing:
        rest = f" and those of {', '.join(missing[1:])}" if missing[1:] else ""
        raise ValueError(
            f"{folder / missing[0]}.txt{rest}: missing or empty prompt file; put it there, "
            "a prompt per line, or remove the degradation's folder of shards"
        )
    vague = lines.pop(VAGUE_FILE)
    return Prompts(vague, lines)


def _read_lines(path: Path) -> tuple[str, ...]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error}); save it as UTF-8") from error
    return tuple(line for line in map(str.strip, text.splitlines()) if line)


def check_vague_schedule(schedule: Sequence[tuple[int, float]]) -> None:
    """Raise ValueError unless steps grow from 0 and probabilities are in [0, 1]."""
    steps = [step for step, _ in schedule]
    fine = steps[:1] == [0] and all(a < b for a, b in zip(steps, steps[1:], strict=False))
    if not fine or not all(0 <= probability <= 1 for _, probability in schedule):
        raise ValueError(
            f"config.data.vague is {schedule}; expected (from step, probability) pairs, steps "
            "growing from 0, probabilities 0 to 1, such as ((0, 0.2), (10_000, 0.3))"
        )


def vague_probability(schedule: Sequence[tuple[int, float]], step: int) -> float:
    """The probability of the vague prompt at a global step."""
    return [probability for first, probability in schedule if first <= step][-1]


def choose_prompt(
    rng: np.random.Generator,
    prompts: Prompts,
    *,
    degradation: str,
    questions: tuple[str, str],
    jpeg_type: str | None,
    vague: float,
) -> str:
    """Draw a sample's prompt.

    Args:
        rng: decides everything.
        prompts: lines to draw from.
        degradation: the sample's degradation folder.
        questions: its own vague and precise question.
        jpeg_type: the JPEG type whose prompt file stands in for the degradation's, if any.
        vague: probability of a vague prompt.
    """
    if rng.random() < vague:
        lines, from_file, question = prompts.vague, _VAGUE_FROM_FILE, questions[0]
    else:
        lines, question = prompts.precise[degradation], questions[1]
        if jpeg_type is not None:
            lines = prompts.precise.get(_file_name(jpeg_type), lines)
        lost_colour = _LOST_COLOUR.fullmatch(degradation)
        from_file = _LOST_COLOUR_FROM_FILE if lost_colour else _PRECISE_FROM_FILE
    if rng.random() < from_file:
        return lines[rng.integers(len(lines))]
    return question


def _file_name(text: str) -> str:
    return re.sub(r"[^a-z0-9._-]", "_", text.lower())
