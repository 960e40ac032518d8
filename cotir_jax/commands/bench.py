"""`cotir bench`: build, check, gallery."""

from __future__ import annotations

import argparse
import json
import logging
import shlex
from pathlib import Path

from cotir_jax.commands.parser import Commands, add_actions, add_command


def add_bench(commands: Commands) -> None:
    """Adds `cotir bench` and its actions."""
    actions = add_actions(
        commands,
        "bench",
        "build or check a benchmark, show the degradations",
        "cotir bench build --photos=photos/ --out=bench/",
    )
    _add_build(actions)
    check = add_command(
        actions,
        "check",
        "check a folder in CoTIR-Bench's layout",
        _check,
        "cotir bench check bench/",
    )
    check.add_argument("folder", type=Path, help="folder to check")
    check.add_argument("--workers", type=int, help="processes (default: all cores)")
    gallery = add_command(
        actions,
        "gallery",
        "draw every degradation at three severities",
        _gallery,
        "cotir bench gallery --photo=photo.jpg --out=gallery.jpg",
    )
    gallery.add_argument("--out", type=Path, required=True, help="picture to write")
    gallery.add_argument(
        "--photo", type=Path, help="photo to degrade (default: one inside scikit-image)"
    )


def _add_build(actions: Commands) -> None:
    build = add_command(
        actions,
        "build",
        "write a benchmark in CoTIR-Bench's layout from clean photos",
        _build,
        "cotir bench build --photos=photos/ --out=bench/ --samples=100 --size=512",
        "cotir bench build --out=bench/ --degradations=haze+noise,rain-streak --size=256",
        details="The work goes on in OUT.part; a build that was killed continues there when the\n"
        "same command is given again.",
    )
    build.add_argument("--photos", help="folder, or gs://... (default: scikit-image's photographs)")
    build.add_argument(
        "--test-photos", help="folder of photos for the test split only (default: some of --photos)"
    )
    build.add_argument("--out", required=True, help="new folder")
    build.add_argument("--samples", type=int, default=100, help="training samples per degradation")
    build.add_argument("--test-samples", type=int, default=5, help="test samples per degradation")
    build.add_argument("--size", type=int, default=512, help="side in pixels")
    build.add_argument("--seed", type=int, default=0, help="seed of every draw")
    build.add_argument(
        "--degradations",
        default="all",
        metavar="NAME[,NAME]",
        help="degradations, composites as haze+noise, or sets: all, quick, singles, seen, unseen; "
        "the unseen composites are for the test split only (default: all)",
    )
    build.add_argument("--no-composites", action="store_true", help="single degradations only")
    build.add_argument(
        "--depth", type=Path, help="folder of depth maps, named like their photos (default: none)"
    )
    build.add_argument(
        "--rain-masks", type=Path, help="picture or folder of rain masks (default: drawn rain)"
    )
    build.add_argument(
        "--snow-masks", type=Path, help="picture or folder of snow masks (default: drawn snow)"
    )
    build.add_argument(
        "--scene-endpoint",
        metavar="URL",
        help="OpenAI-compatible endpoint that describes the scenes (default: none)",
    )
    build.add_argument(
        "--scene-model",
        metavar="NAME",
        help="vision-language model to ask there (default: none)",
    )
    build.add_argument(
        "--format",
        choices=("tar", "array_record"),
        default="tar",
        help="tar shards, or a TFDS data set of ArrayRecord files",
    )
    build.add_argument("--skip-bad", action="store_true", help="warn of unusable photos and go on")
    build.add_argument("--workers", type=int, help="processes (default: all cores)")
    build.add_argument(
        "--beam",
        metavar="OPTIONS",
        help="build ArrayRecord files with Apache Beam and these options of it; '': DirectRunner "
        "(default: without Beam)",
    )


def _build(args: argparse.Namespace) -> None:
    choices = {
        "test_photos": args.test_photos,
        "samples_per_degradation": args.samples,
        "test_per_degradation": args.test_samples,
        "size": args.size,
        "seed": args.seed,
        "degradations": args.degradations,
        "composites": not args.no_composites,
        "depth": args.depth,
        "rain_masks": args.rain_masks,
        "snow_masks": args.snow_masks,
        "scene_endpoint": args.scene_endpoint,
        "scene_model": args.scene_model,
    }
    if args.beam is not None:
        if args.workers or args.skip_bad:
            raise ValueError("--workers and --skip-bad do not go with --beam; leave them out, "
                             "workers are among Beam's own options")  # fmt: skip
        from cotir_jax.bench.tfds_builder import build_with_beam

        options = shlex.split(args.beam)
        print(json.dumps(build_with_beam(args.out, args.photos, beam_options=options, **choices)))
        return
    from cotir_jax.bench.build import build_bench

    logging.basicConfig(format="%(message)s")
    counts = build_bench(
        args.out,
        args.photos,
        file_format=args.format,
        skip_bad=args.skip_bad,
        workers=args.workers,
        **choices,
    )
    print(json.dumps(counts))


def _check(args: argparse.Namespace) -> None:
    from cotir_jax.bench.check import check_bench

    report = check_bench(args.folder, workers=args.workers, progress=True)
    for problem in report.problems:
        print(f"problem: {problem}")
    if report.num_problems > len(report.problems):
        print(f"problem: and {report.num_problems - len(report.problems)} more")
    counts = {"train": report.train, "test": report.test, "problems": report.num_problems}
    print(json.dumps(counts | {"without_thoughts": report.without_thoughts}))
    if report.num_problems:
        plural = "s" if report.num_problems > 1 else ""
        raise ValueError(f"{args.folder}: {report.num_problems} problem{plural}")


def _gallery(args: argparse.Namespace) -> None:
    from cotir_jax.bench.gallery import write_gallery

    for path in write_gallery(args.out, args.photo):
        print(path)
