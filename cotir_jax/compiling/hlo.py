"""Collectives of a compiled program, read from its HLO text."""

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

_COLLECTIVES = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute",
    "collective-broadcast", "ragged-all-to-all",
)  # fmt: skip
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\(")
# Number of bits, none for a pred of 8, and shape.
_ARRAY = re.compile(r"\b(?:pred|[a-z]+(\d+))\[([\d,]*)\]")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|branch_computations)=\{?(%?[\w.\-]+(?:, ?%[\w.\-]+)*)"
)


def collectives(hlo: str, slice_of: Sequence[int] | None = None) -> dict[str, tuple[int, int]]:
    """Counts the collectives of a compiled program.

    Loops count as often as they run: their trip count is the constant that their condition
    compares with. A collective that runs during computations appears in several fusions under one
    channel number, and counts once. Bytes are what one device receives by the ring algorithm: of n
    devices, (n - 1) / n of a gathered result or a scattered input, twice that for a sum.

    Args:
      hlo: `compiled.as_text()`.
      slice_of: slice of each device, in the order of the mesh, by which the program numbers them;
        groups over several slices are counted separately, under the kind with " between slices"
        appended.

    Returns:
      kind -> how often it runs in a step, and the bytes that a device receives.
    """
    computations, entry = _computations(hlo)
    found: dict[tuple[str, str], tuple[re.Match[str], int]] = {}

    def walk(name: str, times: int) -> None:
        for match in filter(None, map(_INSTRUCTION.match, computations.get(name, ()))):
            line, kind = match.string, match[3].removesuffix("-start")
            if kind in _COLLECTIVES:
                channel = re.search(r"channel_id=(\d+)", line)
                found[kind, channel[1] if channel else match[1]] = match, times
            inner = times * _trip_count(computations, line) if kind == "while" else times
            for called in _CALLED.findall(line):
                for child in called.replace("%", "").split(","):
                    walk(child.strip(), inner)

    walk(entry, 1)
    moved: dict[str, tuple[int, int]] = {}
    for (kind, _), (match, times) in found.items():
        received = int(times * _received(kind, match))
        groups = _groups(match.string)
        if slice_of and any(len({slice_of[each] for each in group}) > 1 for group in groups):
            kind += " between slices"
        runs, size = moved.get(kind, (0, 0))
        moved[kind] = runs + times, size + received
    return moved


def _computations(hlo: str) -> tuple[dict[str, list[str]], str]:
    computations: dict[str, list[str]] = {}
    entry, lines = "", None
    for line in hlo.splitlines():
        header = _COMPUTATION.match(line)
        if header:
            lines = computations[header[2]] = []
            entry = header[2] if header[1] else entry
        elif line == "}":  # a Pallas kernel's attributes hold line ends, and braces after them
            lines = None
        elif lines is not None:
            lines.append(line)
    return computations, entry


def _trip_count(computations: Mapping[str, list[str]], line: str) -> int:
    """Returns how often a loop runs: up to the constant of its condition, by its body's step."""
    known = re.search(r'known_trip_count[":{]+n[":]+(\d+)', line)
    if known:
        return int(known[1])
    condition, body = (
        _definitions(computations.get(found[1], []))
        for found in re.finditer(r"(?:condition|body)=%?([\w.\-]+)", line)
    )
    for kind, operands in list(condition.values()):
        inputs = [condition[name] for name in operands]
        limits = [int(value[0]) for kind, value in inputs if kind == "constant"]
        if kind == "compare" and limits:
            places = [found[1] for kind, found in inputs if kind == "get-tuple-element"]
            step = _step(body, int(places[0])) if places else 1
            return -(-limits[0] // (step or 1))
    return 1


def _definitions(lines: list[str]) -> defaultdict[str, tuple[str, list[str]]]:
    """Reads each instruction's kind and operands, a constant's value, an element's index.

    Returns:
      By name, the root also under ""; ("", []) for what is not there.
    """
    found: defaultdict[str, tuple[str, list[str]]] = defaultdict(lambda: ("", []))
    for match in filter(None, map(_INSTRUCTION.match, lines)):
        line = match.string
        inside = line[match.end() :].split(")", 1)
        operands = re.findall(r"%([\w.\-]+)", inside[0])
        if match[3] == "constant":
            operands = re.findall(r"^\d+", inside[0]) or ["0"]
        elif match[3] == "get-tuple-element":
            operands += re.findall(r"index=(\d+)", inside[1])
        found[match[1]] = (match[3], operands)
        if line.lstrip().startswith("ROOT"):
            found[""] = found[match[1]]
    return found


def _step(body: Mapping[str, tuple[str, list[str]]], index: int) -> int:
    """Returns what a loop's body adds to its counter, one of what it carries; 1 if unclear."""

    def added(name: str) -> int:
        kind, operands = body[name]
        if kind == "add":
            return sum(added(operand) for operand in operands)
        return int(operands[0]) if kind == "constant" else 0

    kind, carried = body[""]
    return added(carried[index]) if kind == "tuple" else 1


def _received(kind: str, match: re.Match[str]) -> float:
    """Returns the bytes that a device receives in one run."""
    arrays = [
        int(bits or 8) / 8 * math.prod(int(side) for side in shape.split(",") if side)
        for bits, shape in _ARRAY.findall(match[2])
    ]
    if kind == "collective-permute":
        return arrays[0]
    size = len(_groups(match.string)[0])
    share, started = (size - 1) / size, match[3].endswith("-start")
    if kind == "all-gather":
        # Asynchronous ones return (input, result).
        return share * (max(arrays) if started else sum(arrays))
    if kind == "reduce-scatter":
        return (size - 1) * (min(arrays) if started else sum(arrays))
    return share * sum(arrays) * (2 if kind == "all-reduce" else 1)


def _groups(line: str) -> list[list[int]]:
    """Reads which devices take part together, in any of the three ways in which XLA writes it."""
    named = re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", line)
    if named:
        sizes = re.findall(r"'(\w+)'=(\d+)", named[1])
        axes = [name for name, _ in sizes]
        together = [axes.index(name) for name in re.findall(r"'(\w+)'", named[2])]
        others = [axis for axis in range(len(axes)) if axis not in together]
        shape = [int(size) for _, size in sizes]
        numbers = np.arange(math.prod(shape)).reshape(shape).transpose(others + together)
        return numbers.reshape(-1, math.prod(shape[axis] for axis in together)).tolist()
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line)
    if iota:
        shape = [int(size) for size in iota[3].split(",")]
        order = [int(axis) for axis in iota[4].split(",")] if iota[4] else None
        numbers = np.arange(math.prod(shape)).reshape(shape).transpose(order)
        return numbers.reshape(int(iota[1]), int(iota[2])).tolist()
    listed = re.search(r"(?:replica_groups|source_target_pairs)=\{(\{.*?\})\}", line)
    groups = re.findall(r"\{([\d,]+)\}", listed[1]) if listed else ["0"]
    return [[int(device) for device in group.split(",")] for group in groups]
