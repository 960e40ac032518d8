"""Scores of pictures: the table of metrics, which files belong together, one value for each."""

import os
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from cotir_jax.bench import listing
from cotir_jax.images.pictures import list_pictures, load_picture
from cotir_jax.scoring import full_reference, learned, lpips, no_reference

# What scores one picture: restored and clean, uint8 [height, width, 3]; None where undefined.
Function = Callable[[np.ndarray, np.ndarray], float | None]


class Metric(NamedTuple):
    """An entry of `metrics.toml`."""

    title: str
    decimals: int
    higher_is_better: bool
    definition: str


_TABLE = tomllib.loads((Path(__file__).parent / "metrics.toml").read_text(encoding="utf-8"))
METRICS = {name: Metric(**entry) for name, entry in _TABLE.items()}
FAST = ("psnr", "ssim", "ms_ssim")
OFFLINE = (*FAST, "lpips", "ciede2000", "piqe")
INPUT = "input"  # the method that stands for the degraded pictures themselves


@dataclass(frozen=True)
class Scores:
    """Scores of every picture, method and metric.

    Attributes:
      references: the clean pictures.
      pictures: of each method, the file that belongs to each clean picture.
      values: of each method and metric, float64 `[pictures]`; NaN where undefined.
      degradations: `deg_type` of each clean picture; empty without a listing.
      subsets: likewise.
      listed: positions of the clean pictures in the listing's order.
      missing: metrics that were asked for and could not be computed, with the reason.
      unmatched: of each method, how many pictures have no clean one.
    """

    references: list[Path]
    pictures: dict[str, list[Path]]
    values: dict[str, dict[str, np.ndarray]]
    degradations: list[str]
    subsets: list[str]
    listed: list[int]
    missing: dict[str, str]
    unmatched: dict[str, int]

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics that were computed."""
        return list(next(iter(self.values.values())))

    def gains(self, method: str, metric: str) -> np.ndarray | None:
        """Returns a method's gain over the input for each picture; None without an input."""
        if method == INPUT or INPUT not in self.values:
            return None
        return self.values[method][metric] - self.values[INPUT][metric]

    def groups(self, labels: Sequence[str]) -> dict[str, np.ndarray]:
        """Returns positions of the pictures with each of `labels`, in the listing's order."""
        found: dict[str, list[int]] = {}
        for position in self.listed if labels else []:
            found.setdefault(labels[position], []).append(position)
        return {label: np.array(positions) for label, positions in found.items()}


def score(
    hq: Path,
    results: Mapping[str, Path],
    *,
    lq: Path | None = None,
    jsonl: Path | None = None,
    metrics: Sequence[str] = FAST,
    lpips_weights: Sequence[Path] = (),
) -> Scores:
    """Scores folders of restored pictures against the clean ones.

    Files belong together when their names are equal, or else when their names without suffix
    are equal and single in both folders.

    Args:
      hq: folder of clean pictures; each needs a picture of every method.
      results: folder of restored pictures of each method.
      lq: folder of degraded pictures, scored as method `INPUT`.
      jsonl: a test split's `test.jsonl`, for degradations and subsets.
      metrics: of `METRICS`.
      lpips_weights: files for `lpips.load_lpips`; without them LPIPS is missing.

    Raises:
      ValueError: a folder without pictures, a clean picture without result, degraded picture or
        line in `jsonl` (and the reverse for `jsonl`), unequal sizes, an unreadable picture or
        weight file, an unknown metric.
    """
    hq = Path(hq)
    references = list_pictures(hq)
    folders = {name: Path(folder) for name, folder in results.items()}
    if lq is not None:
        folders = {INPUT: Path(lq)} | folders
    pictures, unmatched = {}, {}
    for name, folder in folders.items():
        found = [path.name for path in list_pictures(folder)]
        what = "a picture" if name == INPUT and lq is not None else "a result"
        names = _match(references, found, f"{what} in {folder}")
        pictures[name] = [folder / file for file in names]
        unmatched[name] = len(set(found) - set(names))
    # Before the pictures are scored, so that a damaged listing does not cost the work.
    rows, listed = _listed(references, Path(jsonl)) if jsonl is not None else ([], [])
    functions, missing = open_metrics(metrics, lpips_weights)
    values = _score_all(references, pictures, functions)
    degradations, subsets = [row.deg_type for row in rows], [row.subset for row in rows]
    return Scores(references, pictures, values, degradations, subsets, listed, missing, unmatched)


def open_metrics(
    names: Iterable[str], lpips_weights: Sequence[Path] = ()
) -> tuple[dict[str, Function], dict[str, str]]:
    """Returns functions of the named metrics, and for those that cannot be had, why.

    Raises:
      ValueError: an unknown name, or a weight file that cannot be used.
    """
    functions: dict[str, Function] = {}
    missing: dict[str, str] = {}
    for name in names:
        if name not in METRICS:
            raise ValueError(f"no metric {name!r}; there are {', '.join(METRICS)}")
        if name == "lpips" and not lpips_weights:
            missing[name] = "its weights were not given (--lpips-weights)"
        elif name == "lpips":
            functions[name] = partial(lpips.lpips, weights=lpips.load_lpips(lpips_weights))
        elif name == "piqe":
            functions[name] = _without_reference(no_reference.piqe)
        elif name in learned.PYIQA_NAMES:
            try:
                functions[name] = _without_reference(learned.open_learned(name))
            except ValueError as error:
                missing[name] = str(error)
        else:
            functions[name] = getattr(full_reference, name)
    return functions, missing


def _without_reference(function: Callable[[np.ndarray], float]) -> Function:
    return lambda picture, clean: function(picture)


def _score_all(
    references: list[Path], pictures: Mapping[str, list[Path]], functions: Mapping[str, Function]
) -> dict[str, dict[str, np.ndarray]]:
    def of_one(position: int) -> list[list[float]]:
        reference = references[position]
        clean = load_picture(reference)
        return [_score(of[position], reference, clean, functions) for of in pictures.values()]

    # Threads: decoding and the window filters release the GIL, and most of the time is there.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        rows = pool.map(of_one, range(len(references)))
        bar = tqdm(rows, total=len(references), unit="picture", disable=None)
        table = np.array(list(bar), np.float64)
    return {
        method: {metric: table[:, row, column] for column, metric in enumerate(functions)}
        for row, method in enumerate(pictures)
    }


def _score(
    path: Path, reference: Path, clean: np.ndarray, functions: Mapping[str, Function]
) -> list[float]:
    picture = load_picture(path)
    if picture.shape != clean.shape:
        raise ValueError(
            f"{path} against {reference}: {picture.shape[1]}x{picture.shape[0]}, the clean picture "
            f"{clean.shape[1]}x{clean.shape[0]}; restore at the clean picture's size"
        )
    values = []
    for function in functions.values():
        try:
            value = function(picture, clean)
        except ValueError as error:
            raise ValueError(f"{path} against {reference}: {error}") from None
        values.append(np.nan if value is None else value)
    return values


def _match(references: list[Path], names: Iterable[str], what: str) -> list[str]:
    """Finds the one of `names` that belongs to each clean picture."""
    available = set(names)
    by_stem = {Path(name).stem: name for name in available}
    theirs = Counter(Path(name).stem for name in available)
    ours = Counter(path.stem for path in references)
    found, missing = [], []
    for path in references:
        if path.name in available:
            found.append(path.name)
        elif ours[path.stem] == theirs[path.stem] == 1:
            found.append(by_stem[path.stem])
        else:
            missing.append(path.name)
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(references)} clean pictures lack {what}: "
            f"{_some(missing)}; add those or take the clean ones out"
        )
    return found


def _some(names: list[str], most: int = 20) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def _listed(references: list[Path], jsonl: Path) -> tuple[list[listing.ListedPicture], list[int]]:
    """Returns each clean picture's line, and the pictures' positions in the listing's order."""
    rows = {row.name: row for row in listing.read_listing(jsonl)}
    matched = _match(references, rows, f"a line in {jsonl}")
    absent = sorted(set(rows) - set(matched))
    if absent:
        raise ValueError(
            f"{jsonl} lists {len(absent)} pictures that have no clean one: {_some(absent)}; "
            "add those or take the lines out"
        )
    position = {name: index for index, name in enumerate(matched)}
    return [rows[name] for name in matched], [position[name] for name in rows]
