"""Seconds, GB/s and peak memory of `cotir convert` at full size, beside a plain copy.

Needs no weights: files with the published names, shapes and bfloat16 are made from the manifests,
sparse and zero-filled (the gigabytes are read and written, but take no disk as sources), or with
random bytes. Run in the repository root:

    python tests/benchmarks/convert_speed.py --models klein-4b kontext-12b
    python tests/benchmarks/convert_speed.py --models klein-4b --random

Memory is the largest resident size of the converting process (`ru_maxrss`): libraries, buffers and
mapped pages; the limit is the largest stacked array plus 2 GB. Copying (`cat` and `sync`, file by
file) and converting take turns; the rates are of the fastest round of each. Both begin with sources
that are not in the page cache and end with their files on the disk. Processor seconds say what a
busy machine hides: convert uses several cores, the copy one.
"""

import argparse
import gzip
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MANIFESTS = Path(__file__).parents[3] / "shared" / "manifests"
KINDS = ("transformer", "lora", "cot_adapter")


def write_source(path: Path, manifest: Path, random: bool) -> None:
    """A safetensors file in bfloat16 with the names and shapes of a manifest."""
    tensors = json.loads(gzip.decompress(manifest.read_bytes()))["tensors"]
    header, end = {}, 0
    for name, shape in tensors.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        start = file.tell()
        while random and file.tell() < start + end:
            file.write(os.urandom(min(2**26, start + end - file.tell())))
        file.truncate(start + end)


def forget(folder: Path) -> None:
    """Drops a folder's files from the page cache, so that both sides read them anew."""
    for path in folder.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def run(command: list[str]) -> tuple[float, float, float]:
    """Seconds, processor seconds and peak resident gigabytes of a command."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{command}: failed")
    seconds = time.perf_counter() - began
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e9


def largest_stacked(model: str) -> int:
    """Bytes of the largest array of the model in bfloat16."""
    from cotir_jax.conversion.parts import transformer_part
    from cotir_jax.models.presets import preset

    shapes = transformer_part(preset(model), {}).shapes
    return max(2 * math.prod(shape) for shape in shapes.values())


def copied(source: Path, copy: Path) -> tuple[float, float]:
    """Seconds, and processor seconds, of a plain copy with `sync` at its end."""
    copy.mkdir()
    forget(source)
    # Not cp, which does not read the holes of sparse files.
    script = 'for file in "$0"/*; do cat "$file" > "$1/$(basename "$file")"; done; sync "$1"/*'
    seconds, processor, _ = run(["sh", "-ec", script, str(source), str(copy)])
    shutil.rmtree(copy)
    return seconds, processor


def converted(source: Path, out: Path, model: str) -> tuple[float, float, float]:
    """Seconds, processor seconds and peak gigabytes of `cotir convert`."""
    forget(source)
    convert = [sys.executable, "-m", "cotir_jax.cli", "convert", f"--model={model}"]
    result = run([*convert, f"--base={source}", f"--out={out}"])
    shutil.rmtree(out)
    return result


def measure(model: str, folder: Path, random: bool, fresh: bool, rounds: int) -> dict[str, object]:
    """Copies and converts one model's files, in turn."""
    source = folder / "source"
    source.mkdir()
    for kind in KINDS[:1] if fresh else KINDS:
        write_source(source / f"{kind}.safetensors", MANIFESTS / f"{model}.{kind}.json.gz", random)
    size = sum(path.stat().st_size for path in source.iterdir()) / 1e9
    copies, conversions = [], []
    for _ in range(rounds):
        copies.append(copied(source, folder / "copy"))
        conversions.append(converted(source, folder / "model", model))
    shutil.rmtree(source)
    best, copy = min(conversions), min(copies)
    return {
        "model": model,
        "bytes": "random" if random else "zeros",
        "adapter": "fresh" if fresh else "from files",
        "source_gb": round(size, 2),
        "convert_s": [round(seconds, 1) for seconds, *_ in conversions],
        "copy_s": [round(seconds, 1) for seconds, *_ in copies],
        "convert_gb_per_s": round(size / best[0], 3),
        "copy_gb_per_s": round(size / copy[0], 3),
        "convert_processor_s": round(best[1], 1),
        "copy_processor_s": round(copy[1], 1),
        "peak_gb": round(max(peak for *_, peak in conversions), 2),
        "limit_gb": round((largest_stacked(model) + 2e9) / 1e9, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=["klein-4b", "kontext-12b"])
    parser.add_argument("--random", action="store_true", help="random bytes instead of zeros")
    parser.add_argument("--fresh", action="store_true", help="no LoRA and adapter files")
    parser.add_argument("--rounds", type=int, default=2, help="of copying and converting")
    parser.add_argument("--folder", help="where to work (default: the temporary folder)")
    args = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    for model in args.models:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            result = measure(model, Path(folder), args.random, args.fresh, args.rounds)
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
