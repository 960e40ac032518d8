"""CoTIR-Bench on disk: tar shards for training, prompt files, the test split's pictures."""

import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from cotir_jax import files

FIELDS = ("hq.png", "lq.png", "meta.json")


def write_shard(samples: Iterable[tuple[str, bytes, bytes, dict[str, Any]]], path: Path) -> int:
    """Writes one WebDataset shard, whose bytes depend on the samples only.

    Args:
        samples: key, clean picture as PNG bytes, degraded one, `meta.json` as a dict.
        path: the tar file, which appears completely or not at all.

    Returns:
        The number of samples.
    """
    count = 0
    with (
        files.atomic_path(path) as temporary,
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
    """Encodes a `meta.json`."""
    return json.dumps(value, ensure_ascii=False).encode()


def write_pair(folder: Path, key: str, hq: bytes, lq: bytes) -> None:
    """Writes a test sample's pictures into the folders `hq` and `lq` of a split; makes them."""
    for side, data in (("hq", hq), ("lq", lq)):
        (folder / side).mkdir(parents=True, exist_ok=True)
        files.write_bytes(folder / side / f"{key}.png", data)


def write_prompts(folder: Path, prompts: Mapping[str, Sequence[str]]) -> None:
    """Writes prompt files; makes the folder."""
    folder.mkdir(exist_ok=True)
    for name, lines in prompts.items():
        files.write_text(folder / f"{name}.txt", "\n".join(lines) + "\n")


def read_shard(path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yields `(key, {field: bytes})` for each sample of a shard, in order.

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
                # tarfile takes a damaged header for the end of the archive.
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
