"""CoTIR-Bench on disk: tar shards for training, and the test split's list."""

import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

FIELDS = ("hq.png", "lq.png", "meta.json")
TEST_FIELDS = ("id", "lq_path", "deg_type", "subset", "gen_prompt", "spe_prompt")


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside ``path``; what is written there then appears at once, whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # or a power cut could leave an empty file under the final name
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_shard(samples: Iterable[tuple[str, bytes, bytes, dict[str, Any]]], path: Path) -> int:
    """Write one WebDataset shard whose bytes depend on the samples alone.

    Args:
        samples: key, clean picture as PNG bytes, degraded one, ``meta.json`` as a dict.
        path: the tar file; written under a temporary name, then renamed.

    Returns:
        The number of samples.
    """
    count = 0
    with (
        appearing(path) as temporary,
        tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for key, hq, lq, meta in samples:
            for field, data in zip(FIELDS, (hq, lq, json_bytes(meta)), strict=True):
                # TarInfo's own defaults: mtime, uid and gid 0, mode 0644, no names.
                member = tarfile.TarInfo(f"{key}.{field}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
            count += 1
    return count


def json_bytes(value: dict[str, Any]) -> bytes:
    """A ``meta.json``, or a line of ``test.jsonl``."""
    return json.dumps(value, ensure_ascii=False).encode()


def write_lines(rows: Iterable[dict[str, str]], path: Path) -> None:
    """Write a ``.jsonl`` file, a line per row, under a temporary name, then renamed."""
    with appearing(path) as temporary, open(temporary, "wb") as lines:
        for row in rows:
            lines.write(json_bytes(row) + b"\n")


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
