"""`cotir evaluate`: scores folders of restored pictures against clean ones."""

from __future__ import annotations

import argparse
from pathlib import Path

from cotir_jax.commands.parser import Commands, add_command


def add_evaluate(commands: Commands) -> None:
    """Adds `cotir evaluate`."""
    evaluate = add_command(
        commands,
        "evaluate",
        "score restored pictures against clean ones",
        _evaluate,
        "cotir evaluate --hq=clean/ --results=restored/",
        "cotir evaluate --jsonl=bench/test/test.jsonl --results vague/ precise/ --report=report/",
    )
    evaluate.add_argument(
        "--hq", type=Path, help="folder of clean pictures (default: hq/ next to --jsonl)"
    )
    evaluate.add_argument(
        "--results", type=Path, nargs="+", required=True, help="folders of restored pictures"
    )
    evaluate.add_argument(
        "--lq", type=Path, help="folder of degraded pictures, to score them too (default: none)"
    )
    evaluate.add_argument(
        "--jsonl", type=Path, help="test.jsonl, for a table per degradation (default: none)"
    )
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
        help="torchvision's AlexNet and the linear layers of lpips v0.1 (default: no LPIPS)",
    )
    evaluate.add_argument(
        "--report",
        type=Path,
        metavar="FOLDER",
        help="write report.html, metrics.json and metrics.tex there (default: no report)",
    )


def _evaluate(args: argparse.Namespace) -> None:
    from cotir_jax.scoring import report, scores, summary

    hq = args.hq or (args.jsonl and args.jsonl.parent / "hq")
    if hq is None:
        raise ValueError("name the folder of clean pictures with --hq, or a split with --jsonl")
    sets = {"fast": scores.FAST, "offline": scores.OFFLINE, "all": tuple(scores.METRICS)}
    names = summary.method_names(args.results, args.lq is not None)
    scored = scores.score(
        hq,
        dict(zip(names, args.results, strict=True)),
        lq=args.lq,
        jsonl=args.jsonl,
        metrics=sets.get(args.metrics) or args.metrics.split(","),
        lpips_weights=args.lpips_weights,
    )
    for name, folder in zip(names, args.results, strict=True):
        summary.write_summary(scored, name, folder / summary.SUMMARY_NAME)
    if len(names) == 1:
        print(summary.format_table(summary.summarise(scored, names[0])))
    else:
        print(summary.format_overview(scored))
    if args.report is not None:
        for path in report.write_report(scored, args.report):
            print(f"wrote {path}")
