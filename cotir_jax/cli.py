"""`cotir`: evaluate, fit-niqe, verify; the other commands from siblings."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from cotir_jax import files
from cotir_jax.commands import bench, convert, explain, restore


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one command; exits with 0 only on success."""
    args = _parser().parse_args(argv)
    with files.errors_on_one_line(args.debug):
        args.run(args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("cotir", description="Restore photos; build and score tests.")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    commands = parser.add_subparsers(required=True, metavar="command")
    restore.add_restore(commands)
    restore.add_demo(commands)
    restore.add_export_program(commands)
    explain.add_explain(commands)
    explain.add_calibrate(commands)
    _add_evaluate(commands)
    _add_fit_niqe(commands)
    bench.add_bench(commands)
    convert.add_convert(commands)
    convert.add_export(commands)
    verify = commands.add_parser("verify", help="reproduce the release's golden numbers")
    verify.add_argument("folder", type=Path)
    verify.set_defaults(run=_verify)
    return parser


def _add_evaluate(commands) -> None:
    evaluate = commands.add_parser("evaluate", help="score restored pictures against clean ones")
    evaluate.add_argument(
        "--hq", type=Path, help="folder of clean pictures (default: hq/ beside --jsonl)"
    )
    evaluate.add_argument(
        "--results", type=Path, nargs="+", required=True, help="folders of restored pictures"
    )
    evaluate.add_argument("--lq", type=Path, help="folder of degraded pictures, to score them too")
    evaluate.add_argument("--jsonl", type=Path, help="test.jsonl, for a table per degradation")
    evaluate.add_argument(
        "--metrics",
        default="offline",
        help="fast (psnr, ssim, ms_ssim), offline, all (with those that pyiqa downloads), or names "
        "joined by commas",
    )
    evaluate.add_argument(
        "--lpips-weights",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="torchvision's AlexNet and the linear layers of lpips v0.1",
    )
    evaluate.add_argument("--niqe-parameters", type=Path, metavar="FILE", help="from fit-niqe")
    evaluate.add_argument(
        "--report", type=Path, metavar="FOLDER", help="write report.html, metrics.json, metrics.tex"
    )
    evaluate.set_defaults(run=_evaluate)


def _add_fit_niqe(commands) -> None:
    fit = commands.add_parser("fit-niqe", help="fit NIQE's parameters to clean photos")
    fit.add_argument("--photos", type=Path, required=True, help="folder of clean photos")
    fit.add_argument("--source", help="what the photos are, in words (default: the folder's name)")
    fit.add_argument("--out", type=Path, required=True, metavar="FILE.npz")
    fit.set_defaults(run=_fit_niqe)


def _verify(args: argparse.Namespace) -> None:
    from cotir_jax.commands import verify

    failed = 0
    for check in verify.verify(args.folder):
        failed += not check.passed
        verdict = "PASS" if check.passed else "FAIL"
        print(f"{verdict} {check.name}: relative error {check.error:.2e} (limit {check.limit:.0e})")
    if failed:
        raise ValueError(f"{failed} checks failed")


def _evaluate(args: argparse.Namespace) -> None:
    from cotir_jax.scoring import report, scores
    from cotir_jax.scoring import summary as evaluate

    hq = args.hq or (args.jsonl and args.jsonl.parent / "hq")
    if hq is None:
        raise ValueError("name the folder of clean pictures with --hq, or a split with --jsonl")
    sets = {"fast": scores.FAST, "offline": scores.OFFLINE, "all": tuple(scores.METRICS)}
    names = evaluate.method_names(args.results, args.lq is not None)
    scored = scores.score(
        hq,
        dict(zip(names, args.results, strict=True)),
        lq=args.lq,
        jsonl=args.jsonl,
        metrics=sets.get(args.metrics) or args.metrics.split(","),
        lpips_weights=args.lpips_weights,
        niqe_parameters=args.niqe_parameters,
    )
    for name, folder in zip(names, args.results, strict=True):
        evaluate.write_summary(scored, name, folder / evaluate.SUMMARY_NAME)
    if len(names) == 1:
        print(evaluate.format_table(evaluate.summarise(scored, names[0])))
    else:
        print(evaluate.format_overview(scored))
    if args.report is not None:
        for path in report.write_report(scored, args.report):
            print(f"wrote {path}")


def _fit_niqe(args: argparse.Namespace) -> None:
    from cotir_jax.bench.photos import trimmed_photo
    from cotir_jax.images.pictures import list_pictures
    from cotir_jax.scoring import no_reference

    photos = (trimmed_photo(path) for path in list_pictures(args.photos))
    source = args.source or args.photos.resolve().name
    fitted = no_reference.fit_niqe(photos, source)
    no_reference.save_niqe_parameters(fitted, args.out)
    print(f"{fitted.source} -> {args.out}")


if __name__ == "__main__":
    main()
