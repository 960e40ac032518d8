"""`cotir`: restore, evaluate, bench build, bench check, verify."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from cotir_jax import cli_checkpoints, errors


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one command; exits with 0 only on success."""
    args = _parser().parse_args(argv)
    with errors.one_line(args.debug):
        args.run(args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("cotir", description="Restore photos; build and score tests.")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    commands = parser.add_subparsers(required=True, metavar="command")
    _add_restore(commands)
    _add_evaluate(commands)
    _add_bench(commands)
    cli_checkpoints.add_convert(commands)
    cli_checkpoints.add_export(commands)
    verify = commands.add_parser("verify", help="reproduce the release's golden numbers")
    verify.add_argument("folder", type=Path)
    verify.set_defaults(run=_verify)
    return parser


def _add_restore(commands) -> None:
    restore = commands.add_parser("restore", help="restore a picture or a folder of pictures")
    restore.add_argument("source", type=Path, metavar="IN", help="picture or folder")
    restore.add_argument(
        "--model-dir", default="nano", help="model folder (default: packaged nano)"
    )
    restore.add_argument("--out", type=Path, help="file or folder (default: restored/)")
    restore.add_argument("--prompt", help="what is wrong with the picture, or a .txt file with it")
    restore.add_argument("--steps", type=int, help="sampling steps")
    restore.add_argument("--seed", type=int, default=0)
    restore.add_argument("--tile", type=int, help="tile side in pixels; 0: the whole picture")
    restore.add_argument("--compare", action="store_true", help="write degraded | restored")
    restore.set_defaults(run=_restore)


def _add_evaluate(commands) -> None:
    evaluate = commands.add_parser("evaluate", help="score restored pictures against clean ones")
    evaluate.add_argument("--hq", type=Path, required=True, help="folder of clean pictures")
    evaluate.add_argument("--results", type=Path, required=True, help="folder of restored pictures")
    evaluate.add_argument("--lq", type=Path, help="folder of degraded pictures, to score them too")
    evaluate.add_argument("--jsonl", type=Path, help="test.jsonl, for a table per degradation")
    evaluate.set_defaults(run=_evaluate)


def _add_bench(commands) -> None:
    bench = commands.add_parser("bench", help="build or check a benchmark")
    actions = bench.add_subparsers(required=True, metavar="action")
    build = actions.add_parser("build", help="write CoTIR-Bench's layout from clean photos")
    build.add_argument("--photos", type=Path, help="folder (default: scikit-image's photographs)")
    build.add_argument("--test-photos", type=Path, help="photos for the test split alone")
    build.add_argument("--out", type=Path, required=True)
    build.add_argument("--samples", type=int, default=100, help="per degradation")
    build.add_argument("--test-samples", type=int, default=5, help="per degradation")
    build.add_argument("--size", type=int, default=512, help="side in pixels")
    build.add_argument("--seed", type=int, default=0)
    build.add_argument("--no-composites", action="store_true", help="single degradations only")
    build.add_argument("--workers", type=int, help="processes (default: all cores)")
    build.set_defaults(run=_bench_build)
    check = actions.add_parser("check", help="check a folder in CoTIR-Bench's layout")
    check.add_argument("folder", type=Path)
    check.set_defaults(run=_bench_check)


def _verify(args: argparse.Namespace) -> None:
    from cotir_jax import verify

    failed = 0
    for check in verify.verify(args.folder):
        failed += not check.passed
        verdict = "PASS" if check.passed else "FAIL"
        print(f"{verdict} {check.name}: relative error {check.error:.2e} (limit {check.limit:.0e})")
    if failed:
        raise ValueError(f"{failed} checks failed")


def _restore(args: argparse.Namespace) -> None:
    from cotir_jax import restore

    prompt = args.prompt or restore.DEFAULT_PROMPT
    if prompt.endswith(".txt"):
        path = Path(prompt)
        if not path.is_file():
            raise ValueError(f"{path}: no such prompt file")
        prompt = path.read_text().strip()
    restorer = restore.Restorer.load(args.model_dir)
    lines = restore.restore_path(
        restorer,
        args.source,
        args.out or Path("restored"),
        prompt,
        num_steps=args.steps,
        seed=args.seed,
        tile=args.tile,
        compare=args.compare,
    )
    for line in lines:
        print(line, flush=True)


def _evaluate(args: argparse.Namespace) -> None:
    from cotir_jax import evaluate

    scores = evaluate.evaluate(args.hq, args.results, lq=args.lq, jsonl=args.jsonl)
    print(evaluate.format_table(scores))


def _bench_build(args: argparse.Namespace) -> None:
    from cotir_jax.bench.build import build_bench

    counts = build_bench(
        args.out,
        args.photos,
        test_photos=args.test_photos,
        samples_per_degradation=args.samples,
        test_per_degradation=args.test_samples,
        size=args.size,
        seed=args.seed,
        composites=not args.no_composites,
        workers=args.workers,
    )
    print(json.dumps(counts))


def _bench_check(args: argparse.Namespace) -> None:
    from cotir_jax.bench.shards import check_bench

    print(json.dumps(check_bench(args.folder)))


if __name__ == "__main__":
    main()
