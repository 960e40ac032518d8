"""Check a CoTIR-Bench folder: everything is read, counted and compared with its test split."""

import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image
from scipy.fft import dctn

from cotir_jax import files
from cotir_jax.bench.listing import find_lq, scan_listing
from cotir_jax.bench.pool import Spread, progress_bar, spread_over
from cotir_jax.bench.records import is_data_set, open_split, read_info
from cotir_jax.bench.shards import FIELDS, read_shard
from cotir_jax.bench.words.thoughts import parse_thoughts

_NOT_DEGRADATIONS = ("prompts", "test", "image", "rows", "cotir_bench", "downloads")
_MOST_PROBLEMS = 1000
_RECORDS = 256

# Near duplicates: so many of the 64 bits of the perceptual hash differ at most, and the 16x16
# thumbnails by so much on average; flat pictures, all alike to the hash, are left out.
_MAX_BITS = 8
_MAX_DIFFERENCE = 8.0
_MIN_SPREAD = 4.0


@dataclass
class Report:
    """The findings of `check_bench`.

    Attributes:
        train: samples of each degradation folder.
        test: pictures of each `deg_type`.
        without_thoughts: samples whose thoughts are missing or cannot be parsed, by folder.
        problems: a line each, at most 1000.
        num_problems: all of them.
    """

    train: dict[str, int] = field(default_factory=dict)
    test: dict[str, int] = field(default_factory=dict)
    without_thoughts: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    num_problems: int = 0

    def add(self, *problems: str) -> None:
        """Counts problems, and keeps the first 1000."""
        self.num_problems += len(problems)
        self.problems += problems[: max(_MOST_PROBLEMS - len(self.problems), 0)]


class _Looks(NamedTuple):
    """Test pictures in the form in which they are compared, each also mirrored.

    Names; perceptual hashes, uint64 `[n, 2]`; thumbnails, uint8 `[n, 2, 16, 16]`.
    """

    names: list[str]
    hashes: np.ndarray
    thumbnails: np.ndarray


class _Piece(NamedTuple):
    """A shard, or the records from `start` to `stop` of an ArrayRecord split."""

    folder: str
    path: Path
    start: int = 0
    stop: int = 0


@dataclass
class _Found:
    """The findings in a piece: samples, those without thoughts, problems, JPEG types."""

    samples: Counter[str] = field(default_factory=Counter)
    without_thoughts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    jpeg_types: set[str] = field(default_factory=set)


def check_bench(
    folder: Path | str, *, workers: int | None = None, progress: bool = False
) -> Report:
    """Reads everything in a CoTIR-Bench folder, the published layout or one built here.

    Every shard is read to its end, every picture decoded, every `meta.json` parsed, every
    prompt file and test line looked at, and the clean training pictures are compared with the
    clean test pictures by perceptual hash. Memory holds a sample per worker, and 600 bytes for
    each test picture.

    Args:
        folder: the root, or its `image/` folder; shards may also lie in
            `<root>/<degradation>/`, or as ArrayRecord files in `<root>/cotir_bench/`.
        workers: processes; by default one per core.
        progress: show a progress bar.

    Raises:
        ValueError: there is no such folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder; name a benchmark, see `cotir bench build`")
    if root.name == "image" and not (root / "image").is_dir():
        root = root.parent
    report = Report()
    pieces = _find_pieces(root, report)
    for name in ("gen_prompt", *sorted({piece.folder for piece in pieces})):
        report.add(*_check_prompt_file(root, name))
    with spread_over(workers) as spread:
        looks = _check_test(root / "test", spread, report)
        jpeg_types: set[str] = set()
        samples: Counter[str] = Counter({piece.folder: 0 for piece in pieces})
        without: Counter[str] = Counter()
        problems: list[tuple[Path, int, list[str]]] = []
        kept = 0
        with progress_bar(len(pieces), "shard", "check", progress) as bar:
            for piece, found in spread(partial(_check_piece, looks=looks), pieces):
                samples.update(found.samples)
                without.update(found.without_thoughts)
                jpeg_types |= found.jpeg_types
                if kept < _MOST_PROBLEMS:
                    problems.append((piece.path, piece.start, found.problems))
                    kept += len(found.problems)
                else:  # a broken folder of millions of samples must not fill the memory
                    report.num_problems += len(found.problems)
                bar.update()
    for _, _, lines in sorted(problems):  # in the shards' order, whichever was read first
        report.add(*lines)
    for name in sorted(jpeg_types):
        report.add(*_check_prompt_file(root, name))
    report.train = dict(sorted(samples.items()))
    report.without_thoughts = dict(sorted(without.items()))
    return report


def _find_pieces(root: Path, report: Report) -> list[_Piece]:
    if (root / "cotir_bench").is_dir():
        return _find_records(root)
    images = root / "image" if (root / "image").is_dir() else root
    pieces = []
    found = sorted(path for path in images.glob("[!.]*") if path.is_dir())
    folders = [inner for inner in found if inner.name not in _NOT_DEGRADATIONS]
    for inner in folders:
        paths = sorted(inner.glob("[!.]*.tar"))
        if not paths:
            report.add(f"{inner}: no .tar shards")
        pieces += [_Piece(inner.name, path) for path in paths]
    if not folders and not (root / "test").is_dir():
        report.add(f"{images}: no degradation folders with shards")
    return pieces


def _find_records(root: Path) -> list[_Piece]:
    if not is_data_set(root):
        raise ValueError(f"{root / 'cotir_bench'}: no complete data set; build it again")
    pieces, at = [], 0
    for name, count in sorted(read_info(root)["counts"]["train"].items()):
        for start in range(at, at + count, _RECORDS):
            pieces.append(_Piece(name, root, start, min(start + _RECORDS, at + count)))
        at += count
    return pieces


def _check_prompt_file(root: Path, name: str) -> list[str]:
    places = [root / "prompts" / f"{name}.txt", root / "prompts" / "spe_prompt" / f"{name}.txt"]
    for place in places:
        if place.is_file():
            try:
                if place.read_text(encoding="utf-8").strip():
                    return []
            except UnicodeDecodeError as error:
                return [f"{place}: not UTF-8 text ({error})"]
            return [f"{place}: empty prompt file, expected a prompt per line"]
    return [f"{places[0]}: missing prompt file"]


def _check_piece(piece: _Piece, looks: _Looks) -> _Found:
    found = _Found()
    seen: set[str] = set()
    try:
        for key, sample in _samples(piece):
            found.samples[piece.folder] += 1
            where = f"{piece.path} {key}"
            if key in seen:
                found.problems.append(f"{where}: the key comes twice")
            seen.add(key)
            missing = [name for name in FIELDS if name not in sample]
            if missing:
                found.problems.append(f"{where}: no {' and no '.join(missing)}")
                continue
            hq, lq = (io.BytesIO(sample[name]) for name in FIELDS[:2])
            clean, problems = _check_pair((where, hq, lq))
            found.problems += problems
            if clean is not None:
                found.problems += _near_duplicates(where, clean, looks)
            _check_meta(where, piece.folder, sample["meta.json"], found)
    except (ValueError, OSError) as error:
        found.problems.append(str(error))
    return found


def _samples(piece: _Piece) -> Iterator[tuple[str, dict[str, bytes]]]:
    if not piece.stop:
        yield from read_shard(piece.path)
        return
    split = open_split(piece.path, "train")
    for place in range(piece.start, piece.stop):
        record = split[place]
        fields = (record[name.partition(".")[0]] for name in FIELDS)
        yield record["key"].decode(), dict(zip(FIELDS, fields, strict=True))


def _check_meta(where: str, folder: str, data: bytes, found: _Found) -> None:
    try:
        meta = json.loads(data)
        parse_thoughts(meta)
    except (ValueError, RecursionError) as error:
        found.problems.append(f"{where}: {error}")
        found.without_thoughts[folder] += 1
        return
    questions = meta["cot"].get("questions")
    if not (isinstance(questions, list) and len(questions) == 2 and all(questions)):
        found.problems.append(f"{where}: cot.questions should be [vague, precise]")
    if meta.get("jpeg_type"):
        found.jpeg_types.add(meta["jpeg_type"])


def _check_pair(
    pair: tuple[str, BinaryIO | Path, BinaryIO | Path],
) -> tuple[np.ndarray | None, list[str]]:
    """Takes a name, hq and lq; returns the clean picture in grey, or None, and problems."""
    where, hq, lq = pair
    sizes = []
    clean = None
    for name, source in (("hq", hq), ("lq", lq)):
        try:
            with Image.open(source) as image:
                image.load()
                sizes.append(f"{image.width}x{image.height}")
                if name == "hq":
                    clean = _grey(image)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            reason = files.one_line(error)
            return clean, [f"{where}: {name} cannot be read ({reason})"]
    if sizes[0] != sizes[1]:
        return clean, [f"{where}: hq and lq differ in size, {' and '.join(sizes)}"]
    return clean, []


def _check_test(folder: Path, spread: Spread, report: Report) -> _Looks:
    looks = _Looks([], np.zeros((0, 2), np.uint64), np.zeros((0, 2, 16, 16), np.uint8))
    if not folder.exists():
        return looks
    listing = folder / "test.jsonl"
    try:
        pictures, problems = scan_listing(listing)
    except ValueError as error:
        report.add(str(error))
        return looks
    report.add(*problems)
    report.test = dict(Counter(picture.deg_type for picture in pictures))
    pairs = []
    for picture in pictures:
        if picture.missing:
            report.add(f"{listing} line {picture.line}: no {', '.join(picture.missing)}")
        try:
            lq = find_lq(listing, picture)
            pairs.append((str(lq), folder / "hq" / picture.name, lq))
        except ValueError as error:
            report.add(str(error))
    found = dict(spread(_check_pair, pairs))
    looked = {}
    for pair in pairs:  # in the list's order
        clean, problems = found[pair]
        report.add(*problems)
        if clean is not None:
            looked[pair[1]] = clean
    if not looked:
        return looks
    sides = [(clean, clean[:, ::-1]) for clean in looked.values()]
    return _Looks(
        [str(path) for path in looked],
        np.array([[_hash(side) for side in pair] for pair in sides], np.uint64),
        np.array([[_thumbnail(side) for side in pair] for pair in sides], np.uint8),
    )


def _grey(image: Image.Image) -> np.ndarray:
    """Returns the picture in grey at 32x32, uint8."""
    return np.asarray(image.convert("L").resize((32, 32), Image.Resampling.LANCZOS))


def _hash(grey: np.ndarray) -> np.uint64:
    """Computes the 64-bit DCT hash of a uint8 `[32, 32]` picture (Zauner 2010; `imagehash`)."""
    low = dctn(grey.astype(np.float64), type=2)[:8, :8]
    return np.packbits(low > np.median(low)).view(">u8").astype(np.uint64)[0]


def _thumbnail(grey: np.ndarray) -> np.ndarray:
    return np.rint(grey.reshape(16, 2, 16, 2).mean((1, 3))).astype(np.uint8)


def _near_duplicates(where: str, clean: np.ndarray, looks: _Looks) -> Iterable[str]:
    if not looks.names or clean.std() < _MIN_SPREAD:
        return []
    close = np.bitwise_count(looks.hashes ^ _hash(clean)) <= _MAX_BITS
    lines: dict[str, None] = {}
    for number, side in np.argwhere(close):
        small = _thumbnail(clean).astype(np.float32)
        difference = np.abs(small - looks.thumbnails[number, side]).mean()
        if difference <= _MAX_DIFFERENCE:
            lines[f"{where}: near duplicate of test picture {looks.names[number]}"] = None
    return lines
