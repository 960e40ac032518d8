"""CoTIR-Bench on disk: tar shards for training, the test split, and a check of both."""

import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from cotir_jax.bench.thoughts import parse_thoughts

FIELDS = ("hq.png", "lq.png", "meta.json")
TEST_FIELDS = ("id", "lq_path", "deg_type", "subset", "gen_prompt", "spe_prompt")
_NOT_DEGRADATIONS = ("prompts", "test", "image")
_SHOWN_PROBLEMS = 20


def write_shard(samples: Iterable[tuple[str, bytes, bytes, dict[str, Any]]], path: Path) -> int:
    """Write one WebDataset shard whose bytes depend on the samples alone.

    Args:
        samples: key, clean picture as PNG bytes, degraded one, ``meta.json`` as a dict.
        path: the tar file; written under a temporary name, then renamed.

    Returns:
        The number of samples.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    count = 0
    try:
        with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
            for key, hq, lq, meta in samples:
                for field, data in zip(FIELDS, (hq, lq, _json_bytes(meta)), strict=True):
                    # TarInfo's own defaults: mtime, uid and gid 0, mode 0644, no names.
                    member = tarfile.TarInfo(f"{key}.{field}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
                count += 1
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return count


def _json_bytes(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def write_test_lines(rows: Iterable[dict[str, str]], folder: Path) -> None:
    """Write ``folder/test.jsonl``, a line per picture; ``lq_path`` is relative to ``folder``."""
    with open(folder / "test.jsonl", "w", encoding="utf-8") as lines:
        for row in rows:
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_shard(path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield ``(key, {field: bytes})`` for each sample of a shard, in order.

    Raises:
        ValueError: the file is no tar, or was cut short (even between two members).
    """
    with open(path, "rb") as stream:
        _check_end(stream, path)
        try:
            with tarfile.open(fileobj=stream, mode="r:") as tar:
                key = ""
                sample: dict[str, bytes] = {}
                for member in tar:
                    if not member.isfile():
                        continue
                    name, _, field = Path(member.name).name.partition(".")
                    if sample and name != key:
                        yield key, sample
                        sample = {}
                    key = name
                    sample[field] = tar.extractfile(member).read()
                    if len(sample[field]) < member.size:
                        raise tarfile.ReadError("unexpected end of data")
                if sample:
                    yield key, sample
                # tarfile takes a spoilt header for the end of the archive.
                stream.seek(tar.offset)
                if any(stream.read(tarfile.BLOCKSIZE)):
                    raise tarfile.ReadError(f"bad header at byte {tar.offset}")
        except (tarfile.TarError, EOFError) as error:
            raise ValueError(f"{path}: broken shard ({error}); fetch it again") from None


def _check_end(stream: BinaryIO, path: Path) -> None:
    # A tar ends with two empty blocks; a file cut between members lacks only these.
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(size - 1024, 0))
    ending = stream.read()
    stream.seek(0)
    if size < 1024 or any(ending):
        raise ValueError(f"{path}: truncated shard (no end-of-archive mark); fetch it again")


def check_bench(folder: Path | str) -> dict[str, dict[str, int]]:
    """Read everything in a CoTIR-Bench folder and count it.

    Every shard is read to its end, every picture decoded, every ``meta.json`` parsed, every
    prompt file and test line looked at.

    Args:
        folder: the root, or its ``image/`` folder; shards may also lie in
            ``<root>/<degradation>/``.

    Returns:
        ``{"train": {degradation folder: samples}, "test": {deg_type: pictures}}``.

    Raises:
        ValueError: one line with all problems (the first 20 of many).
    """
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder; name a benchmark, see `cotir bench build`")
    if root.name == "image" and not (root / "image").is_dir():
        root = root.parent
    images = root / "image" if (root / "image").is_dir() else root
    shards = {
        inner.name: sorted(inner.glob("*.tar"))
        for inner in sorted(images.iterdir())
        if inner.is_dir() and inner.name not in _NOT_DEGRADATIONS and not inner.name.startswith(".")
    }
    problems: list[str] = []
    if not shards:
        problems.append(f"{images}: no degradation folders with shards")
    problems += _check_prompt_file(root, "gen_prompt")
    train: dict[str, int] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoding releases the interpreter lock
        for name, paths in shards.items():
            if not paths:
                problems.append(f"{images / name}: no .tar shards")
            problems += _check_prompt_file(root, name)
            results = list(pool.map(_check_shard, paths))
            train[name] = sum(count for count, _, _ in results)
            problems += [problem for _, found, _ in results for problem in found]
            for jpeg_type in sorted({kind for _, _, kinds in results for kind in kinds}):
                problems += _check_prompt_file(root, jpeg_type)
        test = _check_test(root / "test", pool, problems) if (root / "test").exists() else {}
    if problems:
        rest = len(problems) - _SHOWN_PROBLEMS
        more = f"; and {rest} more" if rest > 0 else ""
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise ValueError(f"{root}: {count}: {'; '.join(problems[:_SHOWN_PROBLEMS])}{more}")
    return {"train": train, "test": test}


def _check_prompt_file(root: Path, name: str) -> list[str]:
    places = [root / "prompts" / f"{name}.txt", root / "prompts" / "spe_prompt" / f"{name}.txt"]
    for place in places:
        if place.is_file():
            if place.read_text(encoding="utf-8").strip():
                return []
            return [f"{place}: empty prompt file, expected a prompt per line"]
    return [f"{places[0]}: missing prompt file"]


def _check_shard(path: Path) -> tuple[int, list[str], set[str]]:
    """The samples in a shard, its problems, and the JPEG types that it names."""
    count, problems, jpeg_types = 0, [], set()
    try:
        for key, sample in read_shard(path):
            count += 1
            where = f"{path} {key}"
            missing = [field for field in FIELDS if field not in sample]
            if missing:
                problems.append(f"{where}: no {' and no '.join(missing)}")
                continue
            hq, lq = (io.BytesIO(sample[field]) for field in FIELDS[:2])
            problems += _check_pair(where, hq, lq)
            try:
                meta = json.loads(sample["meta.json"])
                parse_thoughts(meta)
                questions = meta["cot"].get("questions")
                if not (isinstance(questions, list) and len(questions) == 2 and all(questions)):
                    raise ValueError("cot.questions should be [vague, precise]")
                jpeg_types |= {meta["jpeg_type"]} if meta.get("jpeg_type") else set()
            except ValueError as error:
                problems.append(f"{where}: {error}")
    except (ValueError, OSError) as error:
        problems.append(str(error))
    return count, problems, jpeg_types


def _check_pair(where: str, hq: BinaryIO | Path, lq: BinaryIO | Path) -> list[str]:
    sizes = []
    for name, source in (("hq", hq), ("lq", lq)):
        try:
            with Image.open(source) as image:
                image.load()
                sizes.append(image.size)
        except (OSError, ValueError, SyntaxError) as error:
            return [f"{where}: {name} cannot be read ({' '.join(str(error).split())})"]
    if sizes[0] != sizes[1]:
        width_height = " and ".join(f"{width}x{height}" for width, height in sizes)
        return [f"{where}: hq and lq differ in size, {width_height}"]
    return []


def _check_test(folder: Path, pool: ThreadPoolExecutor, problems: list[str]) -> dict[str, int]:
    lines = folder / "test.jsonl"
    if not lines.is_file():
        problems.append(f"{lines}: missing list of test pictures")
        return {}
    counts: dict[str, int] = {}
    pairs = []
    for number, line in enumerate(lines.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            lq = folder / row["lq_path"]
            missing = [field for field in TEST_FIELDS if not row.get(field)]
            counts[row["deg_type"]] = counts.get(row["deg_type"], 0) + 1
        except (ValueError, KeyError, TypeError) as error:
            reason = f"{type(error).__name__} {error}"
            problems.append(f"{lines} line {number}: cannot be used ({reason})")
            continue
        if missing:
            problems.append(f"{lines} line {number}: no {', '.join(missing)}")
        pairs.append((str(lq), folder / "hq" / lq.name, lq))
    for found in pool.map(lambda pair: _check_pair(*pair), pairs):
        problems += found
    return counts
