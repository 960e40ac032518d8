"""klein-4b's training step and restore on this machine's accelerator, beside diffusers.

    PYTHONPATH=. python tests/benchmarks/klein_speed.py [--sizes=512,1024] [--batch=4] [--small]

Real size, random weights, bfloat16. Four measurements at each size in pixels:

  training step  ours: encoding, LoRA and adapter, AdamW, multipliers; float32 copies train
  restore        ours: one picture encoded, sampled with the preset's steps and decoded
  LoRA step      ours and diffusers' transformer: no adapter, latents at hand; LoRA of rank 96 on
                 single blocks and final layer, gradients clipped, AdamW
  velocity       ours and diffusers' transformer: one pass of one picture, no adapter

Diffusers runs in PyTorch as it is and, on CUDA, with its blocks compiled too. LoRA is not merged on
either side. `--batch` is the steps' batch at the smallest size; larger pictures take fewer by as
much as they have more pixels. Of `--remat` a step takes the first that fits ("none" first: the
fastest); PyTorch knows "none" and "full". Milliseconds are medians of `--turns` calls after two.
MFU is model FLOPs (`flops.py`: what the result needs, nothing computed twice; the same count for
both sides) against the device's peak. `memory GB` is the program's for ours, the allocator's peak
for PyTorch.

Each side runs in a process of its own, ours first, so that neither holds the other's memory; a
side that fails is a row that says why. `--small`, also taken where there is no accelerator, runs a
narrow model with few blocks at 128 pixels. Ends with a JSON line.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cotir_jax.training.throughput import peak_flops

SIDES = {"cotir_jax": "klein_speed_jax.py", "diffusers": "klein_speed_torch.py"}
SMALL = (
    "hidden_size=256, num_heads=8, axes_dim=(8, 8, 8, 8), num_double_blocks=2, "
    "num_single_blocks=3, adapter_depth=2, lora_rank=16, text_channels=192, text_tokens=64, "
    "num_steps=2, autoencoder='patch', in_channels=768"
)
PROBE = "import jax; print(jax.default_backend())"
COLUMNS = "{:<20} {:<14} {:>5} {:>5} {:>6} {:>10} {:>6} {:>10} {:>10}"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default="512,1024", help="sides of the pictures in pixels")
    parser.add_argument("--batch", type=int, default=4, help="of a step, at the smallest size")
    parser.add_argument("--turns", type=int, default=10, help="calls measured")
    parser.add_argument("--remat", default="none,dots,full", help="to be tried in this order")
    parser.add_argument("--only", choices=SIDES, help="run one side")
    parser.add_argument("--small", action="store_true", help="a cut-down model at 128 pixels")
    return parser.parse_args()


def make_job(args: argparse.Namespace) -> dict:
    """What both sides are asked to measure."""
    small = args.small
    if not small:
        # In a process of its own, because asking takes hold of the accelerator.
        found = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True)
        small = found.stdout.strip() in ("cpu", "")
        if small:
            print("JAX finds no accelerator here: taking --small", flush=True)
    sizes = [128] if small else sorted(int(size) for size in args.sizes.split(","))
    return {
        "overrides": SMALL if small else "",
        "small": small,
        "pictures": [(size, max(1, args.batch * sizes[0] ** 2 // size**2)) for size in sizes],
        "turns": min(args.turns, 3) if small else args.turns,
        "remat": args.remat.split(","),
    }


def run_side(side: str, job: dict) -> list[dict]:
    """Runs one side in a process of its own; prints and returns its rows."""
    script = Path(__file__).with_name(SIDES[side])
    # Memory as it is needed, and nearly all of it where it is.
    environment = {
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.94",
    } | os.environ  # fmt: skip
    rows = []
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            [sys.executable, str(script), json.dumps(job)],
            stdout=subprocess.PIPE, stderr=said, text=True, env=environment,
        )  # fmt: skip
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line.startswith("{"):
                    rows.append(finish({"side": side} | json.loads(line)))
                    print(formatted(rows[-1]), flush=True)
        except SystemExit:
            process.kill()  # it holds the device's memory
            raise
        if process.wait():
            said.seek(0)
            lines = [line.strip() for line in said if line.strip()]
            print(*lines[-30:], sep="\n", file=sys.stderr, flush=True)
            error = f"exit {process.returncode}: {lines[-1][:300] if lines else ''}"
            rows.append({"side": side, "case": "all", "error": error})
            print(formatted(rows[-1]), flush=True)
    return rows


def finish(row: dict) -> dict:
    """Adds the share of the device's peak, where that is known."""
    peak = peak_flops(row.get("device", ""))
    if peak and "ms" in row:
        row["mfu"] = round(row["flops"] / (row["ms"] * 1e-3 * peak), 4)
    return row


def formatted(row: dict) -> str:
    if "error" in row:
        place = [row["side"], row["case"], row.get("size", "-"), row.get("batch", "-")]
        return COLUMNS.format(*place, "-", "failed", "-", "-", "-") + f"  {row['error']}"
    return COLUMNS.format(
        row["side"], row["case"], row["size"], row["batch"], row["remat"] or "-",
        f"{row['ms']:.1f}", f"{row['mfu']:.1%}" if "mfu" in row else "-",
        f"{row['flops'] / 1e12 / (row['ms'] * 1e-3):.3g}",
        f"{row['memory_gb']:.2f}" if row["memory_gb"] else "-",
    )  # fmt: skip


def main() -> int:
    args = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    job = make_job(args)
    start = time.monotonic()
    header = COLUMNS.format(
        "side", "case", "size", "batch", "remat", "ms", "MFU", "TFLOP/s", "memory GB"
    )
    print(header, flush=True)
    rows = [row for side in SIDES if args.only in (None, side) for row in run_side(side, job)]
    print(f"\n{header}")
    for row in sorted(rows, key=lambda row: (row.get("size", 0), row["case"])):
        print(formatted(row))
    report = {"small": job["small"], "seconds": round(time.monotonic() - start), "rows": rows}
    print(json.dumps(report))
    return 0 if any("ms" in row for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
