"""What the constraints are worth at nano's size: four variants, several seeds, one budget.

    PYTHONPATH=. python tests/benchmarks/ablation.py \
        --photos=PHOTOS --test-photos=TEST_PHOTOS --out=OUT

Each run is `configs/nano_release.py` with fewer steps; the variants differ in one thing:

    none    no CoT adapter
    free    the adapter, its thoughts unconstrained (multipliers stay 0)
    fixed   multipliers stay at `--fixed`, the constraints are weighted losses
    dual    multipliers follow by dual ascent, as published

PSNR and SSIM are means over the test split's pictures (precise prompts), by subset: single
degradations, composites seen and unseen in training. Over seeds: mean and 95 % interval of
Student's t; differences to `none` are taken seed by seed, which share data and noise. Runs that are
finished are not run again, and those that were killed continue. Further flags
(`--config.bench.size=128`) go to every run.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from scipy import stats

from cotir_jax.bench.composites import UNSEEN

VARIANTS = ("none", "free", "fixed", "dual")
SUBSETS = ("single", "seen", "unseen")


def command(variant: str, seed: int, workdir: Path, options: argparse.Namespace) -> list[str]:
    """One run's command line."""
    config: dict[str, object] = {
        "seed": seed,
        "bench.photos": options.photos,
        "bench.test_photos": options.test_photos,
        "data.shares": "()",  # all degradations alike
        "train.steps": options.steps,
        "train.stages": f"(({options.steps},{options.patch},{options.batch}),)",
        "train.warmup_steps": min(100, options.steps // 4),
        "train.ema_decay": 0.99,
        "checkpoint.every": options.steps,
        "bench.test_per_degradation": 5,
        "evaluate.enabled": True,
        "constraints.learning_rate": options.dual_rate if variant == "dual" else 0.0,
        "constraints.initial": options.fixed if variant == "fixed" else 0.0,
        "model.overrides": options.sizes + "adapter_depth=0" * (variant == "none"),
    }
    return [
        sys.executable, "-m", "cotir_jax.main", "--config=nano_release",
        f"--workdir={workdir}", *(f"--config.{name}={value}" for name, value in config.items()),
        *options.rest,
    ]  # fmt: skip


def run(variant: str, seed: int, options: argparse.Namespace) -> dict:
    """The JSON line that a run ends with, from its file where it is finished."""
    workdir = options.out / f"{variant}-{seed}"
    kept = workdir / "result.json"
    if not kept.exists():
        done = subprocess.run(
            command(variant, seed, workdir, options), stdout=subprocess.PIPE, text=True, check=True
        )
        result = json.loads(done.stdout.splitlines()[-1])
        if "evaluated" not in result:
            raise SystemExit(f"{workdir}: {result}; start again to continue")
        kept.write_text(json.dumps(result))
    return json.loads(kept.read_text())


def by_subset(result: dict, metric: str) -> dict[str, float]:
    """Gain over the input, mean over the degradations of each subset (as many pictures each)."""
    gains: dict[str, list[float]] = {subset: [] for subset in SUBSETS}
    for name, scores in result["evaluated"]["per_degradation"].items():
        subset = "single" if "+" not in name else "unseen" if name in UNSEEN else "seen"
        gains[subset].append(scores[metric] - scores[f"input_{metric}"])
    return {subset: float(np.mean(values)) for subset, values in gains.items()}


def interval(values: list[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval."""
    error = stats.sem(values) if len(values) > 1 else float("nan")
    return float(np.mean(values)), float(error * stats.t.ppf(0.975, max(len(values) - 1, 1)))


def table(results: dict[tuple[str, int], dict], seeds: int) -> list[str]:
    """A Markdown table: gains by subset, and their differences to the first variant."""
    lines = ["| variant | metric | " + " | ".join(f"{s} | less `none`" for s in SUBSETS) + " |"]
    lines.append("|" + "---|" * (2 + 2 * len(SUBSETS)))
    for metric, digits in (("psnr", 3), ("ssim", 4)):
        for variant in VARIANTS:
            cells = []
            for subset in SUBSETS:
                gains = [by_subset(results[variant, n], metric)[subset] for n in range(seeds)]
                base = [by_subset(results["none", n], metric)[subset] for n in range(seeds)]
                for values in (gains, np.subtract(gains, base).tolist()):
                    mean, half = interval(values)
                    cells.append(f"{mean:+.{digits}f} ± {half:.{digits}f}")
            lines.append(f"| {variant} | {metric} | " + " | ".join(cells) + " |")
    return lines


def draw(out: Path, seeds: int) -> None:
    """Multipliers and violations of all runs with an adapter, over steps."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 3, figsize=(12, 6), sharex=True)
    for variant in VARIANTS[1:]:
        for seed in range(seeds):
            lines = (out / f"{variant}-{seed}" / "metrics.jsonl").read_text().splitlines()
            rows = [row for row in map(json.loads, lines) if "multiplier_scene" in row]
            steps = [row["step"] for row in rows]
            for column, thought in enumerate(("scene", "degradation", "plan")):
                for axis, what in zip(axes[:, column], ("multiplier", "violation"), strict=True):
                    values = [row[f"{what}_{thought}"] for row in rows]
                    axis.plot(steps, values, color=f"C{VARIANTS.index(variant)}", lw=1,
                              label=variant if seed == 0 else None)  # fmt: skip
                    axis.set_title(f"{what}: {thought}")
    axes[1, 0].legend()
    axes[1, 1].set_xlabel("step")
    figure.tight_layout()
    figure.savefig(out / "curves.png", dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", required=True, help="folder of clean training photos")
    parser.add_argument("--test-photos", required=True, help="folder of clean test photos")
    parser.add_argument("--out", type=Path, required=True, help="folder of all runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--patch", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--fixed", type=float, default=1.0, help="multipliers of `fixed`")
    parser.add_argument("--dual-rate", type=float, default=3e-3, help="learning rate of `dual`")
    parser.add_argument("--sizes", default="", help="fields of the nano preset: 'patch=8, '")
    options, options.rest = parser.parse_known_args()  # the rest: fields for all runs
    results = {}
    for seed in range(options.seeds):
        for variant in VARIANTS:
            results[variant, seed] = run(variant, seed, options)
            found = {name: by_subset(results[variant, seed], name) for name in ("psnr", "ssim")}
            print(variant, seed, json.dumps(found), flush=True)
    lines = table(results, options.seeds)
    (options.out / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    draw(options.out, options.seeds)


if __name__ == "__main__":
    main()
