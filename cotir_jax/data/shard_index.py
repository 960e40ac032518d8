"""Random access to the samples of a CoTIR-Bench folder: a byte-offset index over its tar shards.

The index is made once and kept next to the shards, so that later starts read one file instead of
every tar header. A benchmark in ArrayRecord files (``bench/records.py``) needs none.
"""

import dataclasses
import json
import logging
import os
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import numpy as np

from cotir_jax import files
from cotir_jax.bench.records import is_data_set, open_split, read_info
from cotir_jax.data.prompts import VAGUE_FILE, Prompts, load_prompts

FIELDS = ("lq.png", "hq.png", "meta.json")
INDEX_FILE = "shard_index.npz"

_FORMAT = 1
_NOT_DEGRADATIONS = ("prompts", "test", "image")
_BLOCK = tarfile.BLOCKSIZE
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class ShardIndex:
    """Where every sample of every degradation is.

    Attributes:
        folder: the folder that holds a folder of shards for each degradation, or ArrayRecord files
            for all; these have no ``shards``, and samples count from the first of them.
        degradations: folder names, sorted; a batch's ``degradation`` counts in this order.
        prompts: the prompt files.
        shards: paths relative to ``folder``.
        truncated: those of them that are cut short or broken; their complete samples are used.
        shard: int32 ``[samples]``, into ``shards``.
        offsets: int64 ``[samples, 3]``, bytes from the shard's start by ``FIELDS``; -1: absent.
        sizes: int32 ``[samples, 3]`` in bytes; -1 where a file is absent or cut.
        ranges: int64 ``[degradations, 2]``, each one's first sample and the one after its last.
    """

    folder: Path
    degradations: tuple[str, ...]
    prompts: Prompts
    shards: tuple[str, ...]
    truncated: tuple[str, ...]
    shard: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    ranges: np.ndarray

    @classmethod
    def build(cls, data_dir: Path | str) -> Self:
        """Loads the index of a CoTIR-Bench folder, or makes it and keeps it next to the shards.

        It is made again when a shard's name, size or time of change differs. Where the
        folder cannot be written, the index stays in memory.

        Args:
            data_dir: the root or its ``image/`` folder; shards may be in
                ``<root>/<degradation>/`` too.

        Raises:
            ValueError: no such folder, no shards, a degradation without a complete sample, or a
                prompt file missing or empty.
        """
        root, folder = _layout(Path(data_dir))
        if is_data_set(root):
            return cls._of_records(root)
        paths = _find_shards(folder)
        degradations = tuple(sorted({path.parent.name for path in paths}))
        prompts = load_prompts(root, degradations)
        known: list[list[Any]] = [
            [path.relative_to(folder).as_posix(), stat.st_size, stat.st_mtime_ns]
            for path in paths
            for stat in [path.stat()]
        ]
        cache = folder / INDEX_FILE
        arrays, problems = _load(cache, known) or _scan(paths, cache, known)
        for name, problem in problems:
            _log.warning("%s: %s; only its complete samples are used", folder / name, problem)
        of_shard = np.array([degradations.index(path.parent.name) for path in paths])
        counts = np.bincount(of_shard[arrays["shard"]], minlength=len(degradations))
        index = cls(
            folder=folder,
            degradations=degradations,
            prompts=prompts,
            shards=tuple(name for name, _, _ in known),
            truncated=tuple(name for name, _ in problems),
            ranges=_ranges(counts),
            **arrays,
        )
        for name, (start, end) in zip(degradations, index.ranges, strict=True):
            if not (index.sizes[start:end] >= 0).all(axis=1).any():
                raise ValueError(
                    f"{folder / name}: its shards hold no complete sample "
                    f"(<key>.{', <key>.'.join(FIELDS)}); fetch them again or remove the folder"
                )
        return index

    @property
    def counts(self) -> tuple[int, ...]:
        """Samples of each degradation, incomplete ones included."""
        return tuple(int(end - start) for start, end in self.ranges)

    def split(self, held_out: int) -> tuple[Self, Self | None]:
        """Separates the last ``held_out`` samples of each degradation.

        Returns:
            The index without them, and the index of only them (None for 0).

        Raises:
            ValueError: a degradation has too few samples.
        """
        if held_out == 0:
            return self, None
        least = min(self.counts)
        if not 0 < held_out < least:
            name = self.degradations[self.counts.index(least)]
            raise ValueError(
                f"config.data.validation={held_out}: {name} has only {least} samples in "
                f"{self.folder}; hold out fewer, 0 to {least - 1}"
            )
        start, end = self.ranges.T
        kept = np.stack([start, end - held_out], axis=1)
        separate = np.stack([end - held_out, end], axis=1)
        return dataclasses.replace(self, ranges=kept), dataclasses.replace(self, ranges=separate)

    def read(self, sample: int) -> tuple[bytes, bytes, bytes] | None:
        """The bytes of a sample's ``FIELDS``, or None where one is absent or cut short.

        Args:
            sample: a number within one of ``ranges``.
        """
        if not self.shards:
            record = open_split(self.folder, "train")[sample]
            return record["lq"], record["hq"], record["meta"]
        sizes = self.sizes[sample].tolist()
        if min(sizes) < 0:
            return None
        # Opened each time: a pool of descriptors would outgrow the limit on thousands of shards.
        with open(self._path(sample), "rb", buffering=0) as stream:
            lq, hq, meta = (
                os.pread(stream.fileno(), size, offset)
                for size, offset in zip(sizes, self.offsets[sample].tolist(), strict=True)
            )
        return (lq, hq, meta) if [len(lq), len(hq), len(meta)] == sizes else None

    def name(self, sample: int) -> str:
        """A sample's shard and key, for messages."""
        if not self.shards:
            return f"{self.folder} {open_split(self.folder, 'train')[sample]['key'].decode()}"
        path = self._path(sample)
        offset = int(self.offsets[sample].max())
        try:
            with open(path, "rb") as stream:
                header = os.pread(stream.fileno(), _BLOCK, offset - _BLOCK)
            member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape").name
        except (OSError, tarfile.TarError):
            return f"{path} at byte {offset}"
        return f"{path} {Path(member).name.partition('.')[0]}"

    def _path(self, sample: int) -> Path:
        return self.folder / self.shards[self.shard[sample]]

    @classmethod
    def _of_records(cls, folder: Path) -> Self:
        info = read_info(folder)
        counts = dict(sorted(info["counts"]["train"].items()))
        if (folder / "prompts").is_dir():
            prompts = load_prompts(folder, tuple(counts))
        else:
            lines = {name: tuple(lines) for name, lines in info["prompts"].items()}
            prompts = Prompts(lines.pop(VAGUE_FILE), lines)
        none = np.zeros((0, len(FIELDS)), np.int32)
        ranges = _ranges(np.array(list(counts.values())))
        return cls(folder, tuple(counts), prompts, (), (), none[:, 0], none, none, ranges)


def _layout(data_dir: Path) -> tuple[Path, Path]:
    """The benchmark's root, and the folder that holds the degradations' folders."""
    if not data_dir.is_dir():
        raise ValueError(
            f"{data_dir}: no such folder; set config.data.dir to a CoTIR-Bench folder "
            "(`cotir bench build` makes one)"
        )
    data_dir = data_dir.resolve()
    if (data_dir / "image").is_dir():
        return data_dir, data_dir / "image"
    return (data_dir.parent if data_dir.name == "image" else data_dir), data_dir


def _find_shards(folder: Path) -> list[Path]:
    paths = [
        path
        for path in folder.glob("*/*.tar")
        if not path.name.startswith(".")
        and not path.parent.name.startswith(".")
        and path.parent.name not in _NOT_DEGRADATIONS
    ]
    if not paths:
        raise ValueError(
            f"{folder}: no shards (<degradation>/*.tar); set config.data.dir to a CoTIR-Bench "
            "folder (`cotir bench build` makes one)"
        )
    # By degradation first: the samples of one are then neighbours in the index.
    return sorted(paths, key=lambda path: (path.parent.name, path.name))


_Found = tuple[dict[str, np.ndarray], list[list[str]]]


def _load(cache: Path, known: list[list[Any]]) -> _Found | None:
    """Arrays and problems of the kept index, or None where it is absent, damaged or outdated."""
    try:
        with np.load(cache, allow_pickle=False) as file:
            header = json.loads(file["header"].tobytes())
            if header["format"] != _FORMAT or header["shards"] != known:
                return None
            return {name: file[name] for name in ("shard", "offsets", "sizes")}, header["problems"]
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None


def _scan(paths: list[Path], cache: Path, known: list[list[Any]]) -> _Found:
    """Reads every shard's headers and keeps the result in ``cache``."""
    _log.info("indexing %d shards in %s", len(paths), cache.parent)
    with ThreadPoolExecutor(min(16, len(paths))) as pool:  # waiting for storage overlaps
        scanned = list(pool.map(_scan_shard, paths))
    places = np.array([row for rows, _ in scanned for row in rows], np.int64).reshape(-1, 3, 2)
    arrays = {
        "shard": np.repeat(np.arange(len(paths)), [len(rows) for rows, _ in scanned]).astype("i4"),
        "offsets": places[..., 0].copy(),
        "sizes": places[..., 1].astype(np.int32),
    }
    problems = [
        [name, problem]
        for (name, _, _), (_, problem) in zip(known, scanned, strict=True)
        if problem
    ]
    header = json.dumps({"format": _FORMAT, "shards": known, "problems": problems}).encode()
    try:
        with files.atomic_path(cache) as temporary, open(temporary, "wb") as stream:
            np.savez(stream, header=np.frombuffer(header, np.uint8), **arrays)
    except OSError as error:
        _log.warning("%s cannot be written (%s); the index stays in memory", cache, error)
    return arrays, problems


def _scan_shard(path: Path) -> tuple[list[list[tuple[int, int]]], str]:
    """(offset, size) of each sample's ``FIELDS``, and what is wrong with the shard, if anything.

    Files of one sample are neighbours with the same key, the name up to its first dot.
    """
    end = path.stat().st_size
    rows: list[list[tuple[int, int]]] = []
    last_key = None
    try:
        with tarfile.open(path, "r:") as tar:
            try:
                while (member := tar.next()) is not None:
                    folder, _, name = member.name.rpartition("/")
                    key, _, field = name.partition(".")
                    if not member.isfile() or field not in FIELDS:
                        continue
                    if (folder, key) != last_key:
                        last_key = (folder, key)
                        rows.append([(-1, -1)] * len(FIELDS))
                    complete = member.offset_data + member.size <= end
                    size = member.size if complete else -1
                    rows[-1][FIELDS.index(field)] = (member.offset_data, size)
            except tarfile.ReadError:
                return rows, "truncated shard"
            with open(path, "rb") as stream:
                # tarfile stops at a header that it cannot read as if it were the end.
                mark = os.pread(stream.fileno(), _BLOCK, tar.offset)
    except (tarfile.TarError, EOFError) as error:
        return [], f"not a tar file ({error})"
    return rows, "" if mark == bytes(_BLOCK) else "truncated shard (no end-of-archive mark)"


def _ranges(counts: np.ndarray) -> np.ndarray:
    ends = np.cumsum(counts)
    return np.stack([ends - counts, ends], axis=1)
