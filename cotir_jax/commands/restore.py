"""`cotir restore`: pictures, folders and splits, by a model or a baseline; demo, export-program."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tqdm import tqdm

# jax is imported by the commands that need it: `cotir --help` is to be quick.


def add_restore(commands) -> None:
    """Adds `cotir restore`."""
    restore = commands.add_parser("restore", help="restore a picture or a folder of pictures")
    restore.add_argument("source", type=Path, nargs="?", metavar="IN", help="picture or folder")
    restore.add_argument("--jsonl", type=Path, help="a test split's test.jsonl, in place of IN")
    restore.add_argument(
        "--prompts",
        choices=("vague", "precise", "both"),
        default="both",
        help="with --jsonl: which prompts; results go to OUT/vague and OUT/precise",
    )
    restore.add_argument(
        "--baseline",
        metavar="NAME[,NAME]",
        help="classical restorers in place of the model, or all; a folder's or split's results go "
        "to OUT/NAME",
    )
    restore.add_argument(
        "--model-dir", default="nano", help="model folder (default: packaged nano)"
    )
    restore.add_argument("--out", type=Path, help="file or folder (default: restored/)")
    restore.add_argument("--prompt", help="what is wrong with the picture, or a .txt file with it")
    restore.add_argument("--steps", type=int, help="sampling steps")
    restore.add_argument("--seed", type=int, default=0)
    restore.add_argument(
        "--tile", type=int, help="largest side in pixels that goes through the program at once"
    )
    restore.add_argument(
        "--int8", action="store_true", help="hold weights as int8: less memory (needs qwix)"
    )
    restore.add_argument(
        "--explain", action="store_true", help="say what was wrong, in a .json beside each result"
    )
    restore.add_argument(
        "--match-colour",
        action="store_true",
        help="keep the input's low frequencies; not for low light, haze or lost colour",
    )
    restore.add_argument(
        "--format", default="png", help="png, jpg, webp, tif, avif, or same as the input's"
    )
    restore.add_argument("--quality", type=int, default=95, help="of lossy formats, 1 to 100")
    restore.add_argument("--skip-existing", action="store_true", help="keep results that are there")
    restore.add_argument("--compare", action="store_true", help="write degraded | restored")
    restore.set_defaults(run=_restore)


def add_demo(commands) -> None:
    """Adds `cotir demo`."""
    demo = commands.add_parser("demo", help="a web page that restores pictures, on this machine")
    demo.add_argument("--model-dir", default="nano", help="model folder (default: packaged nano)")
    demo.add_argument("--host", default="127.0.0.1", help="address to listen at")
    demo.add_argument("--port", type=int, default=7860)
    demo.add_argument(
        "--max-megapixels", type=float, default=24, help="of an upload; larger ones are refused"
    )
    demo.add_argument("--max-megabytes", type=float, default=64, help="likewise")
    demo.set_defaults(run=_demo)


def add_export_program(commands) -> None:
    """Adds `cotir export-program`."""
    export = commands.add_parser(
        "export-program", help="the restore program as a file that runs with jax alone"
    )
    export.add_argument("--model-dir", default="nano", help="model folder (default: packaged nano)")
    export.add_argument("--out", type=Path, required=True, metavar="FILE")
    export.add_argument("--size", default="512x512", help="HEIGHTxWIDTH of the pictures it takes")
    export.add_argument("--prompt", help="what is wrong with them, or a .txt file with it")
    export.add_argument("--steps", type=int, help="sampling steps")
    export.add_argument("--platforms", default="cpu,cuda,tpu", help="where it will run")
    export.set_defaults(run=_export_program)


def keep_compiled_programs() -> None:
    """Keeps compiled programs on disk for the next start, unless jax is told where already."""
    import jax

    if jax.config.jax_compilation_cache_dir is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "cotir_jax" / "programs"))


def _restore(args: argparse.Namespace) -> None:
    if (args.source is None) == (args.jsonl is None):
        raise ValueError("name a picture or folder to restore, or a split with --jsonl")
    out = args.out or Path("restored")
    if args.baseline:
        _restore_with_baselines(args, out)
        return
    keep_compiled_programs()
    from cotir_jax.restoring import folder
    from cotir_jax.restoring import restorer as restore

    prompt = _prompt(args.prompt or restore.DEFAULT_PROMPT)
    restorer = restore.Restorer.load(args.model_dir, int8=args.int8)
    if args.jsonl is not None:
        _restore_split(args, restorer, out)
        return
    # On a terminal: calls of the program for the picture at hand, which may have thousands.
    with tqdm(disable=None, unit="call", leave=False) as bar:

        def progress(done: int, total: int) -> None:
            bar.total, bar.n = total, done
            bar.refresh()

        lines = folder.restore_path(
            restorer,
            args.source,
            out,
            prompt,
            num_steps=args.steps,
            seed=args.seed,
            tile=args.tile,
            compare=args.compare,
            explain=args.explain,
            match_colour=args.match_colour,
            suffix=_suffix(args.format),
            quality=args.quality,
            skip_existing=args.skip_existing,
            progress=progress,
        )
        _print_lines(lines)


def _demo(args: argparse.Namespace) -> None:
    keep_compiled_programs()
    from cotir_jax.commands.demo import server as demo

    demo.serve(args.model_dir, args.host, args.port, args.max_megapixels, args.max_megabytes)


def _export_program(args: argparse.Namespace) -> None:
    from cotir_jax.restoring import export_program
    from cotir_jax.restoring import restorer as restore

    try:
        height, width = map(int, args.size.split("x"))
    except ValueError:
        raise ValueError(f"--size={args.size}: expected HEIGHTxWIDTH, as 512x768") from None
    written = export_program.export_program(
        restore.Restorer.load(args.model_dir),
        args.out,
        (height, width),
        _prompt(args.prompt or restore.DEFAULT_PROMPT),
        args.steps,
        args.platforms.split(","),
    )
    print(f"{written / 1e6:.1f} MB -> {args.out}")


def _prompt(given: str) -> str:
    if not given.endswith(".txt"):
        return given
    path = Path(given)
    if not path.is_file():
        raise ValueError(f"{path}: no such prompt file")
    return path.read_text().strip()


def _suffix(given: str) -> str:
    return given if given == "same" else f".{given.lower().lstrip('.')}"


def _restore_split(args: argparse.Namespace, restorer, out: Path) -> None:
    from cotir_jax.restoring.test_split import restore_listing

    for prompts in ("vague", "precise") if args.prompts == "both" else (args.prompts,):
        options = {"num_steps": args.steps, "seed": args.seed, "tile": args.tile}
        lines = restore_listing(
            restorer.pixels,
            args.jsonl,
            out / prompts,
            prompts,
            settings={"model": args.model_dir, "prompts": prompts, **options}
            | ({"int8": True} if args.int8 else {}),
            **options,
        )
        print(f"{_print_lines(lines)} pictures restored, all are in {out / prompts}", flush=True)


def _restore_with_baselines(args: argparse.Namespace, out: Path) -> None:
    from cotir_jax.restoring import folder, test_split
    from cotir_jax.scoring import baselines

    names = list(baselines.BASELINES) if args.baseline == "all" else args.baseline.split(",")
    functions = {name: baselines.baseline(name) for name in names}
    if args.source is not None and not args.source.is_dir() and len(names) > 1:
        raise ValueError(f"{args.source}: is no folder; name one baseline for one picture")
    for name, function in functions.items():
        if args.jsonl is not None:
            lines = test_split.restore_listing(
                lambda picture, _prompt, function=function: function(picture),
                args.jsonl,
                out / name,
                None,
                settings={"baseline": name},
            )
        else:
            target = out / name if args.source.is_dir() else out
            lines = folder.restore_path(
                _Baseline(function),
                args.source,
                target,
                compare=args.compare,
                suffix=_suffix(args.format),
                quality=args.quality,
                skip_existing=args.skip_existing,
            )
        print(f"{name}: {_print_lines(lines)} pictures", flush=True)


class _Baseline:
    """A function of an 8-bit array in the place of a `Restorer`."""

    def __init__(self, function):
        self._function = function

    def plan(self, sizes, tile=None):
        return [([index], None) for index in range(len(sizes))]

    def group(self, photos, bucket, prompt, **_options):
        from cotir_jax.restoring.result import Restored

        results = []
        for photo in photos:
            pixels, wide = photo.pixels, photo.pixels.dtype == np.uint16
            if wide:
                pixels = np.rint(pixels / 257).astype(np.uint8)
            restored = self._function(pixels)
            if wide:
                restored = restored.astype(np.uint16) * 257
            results.append(Restored(dataclasses.replace(photo, pixels=restored)))
        return results


def _print_lines(lines: Iterable[str]) -> int:
    count = 0
    for line in lines:
        tqdm.write(line)  # above the bar, where there is one
        sys.stdout.flush()
        count += not line.startswith("skipped ")
    return count
