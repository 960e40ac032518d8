"""`cotir restore`: restores pictures, folders and test splits, by a model or a baseline."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from cotir_jax.commands.compilation_cache import keep_compiled_programs
from cotir_jax.commands.parser import Commands, add_command

_EXAMPLES = (
    "cotir restore photo.jpg --out=restored.png",
    'cotir restore photos/ --prompt="remove the noise" --compare',
    "cotir restore --jsonl=bench/test/test.jsonl --out=results/",
)


def add_restore(commands: Commands) -> None:
    """Adds `cotir restore`."""
    restore = add_command(
        commands, "restore", "restore a picture or a folder of pictures", _restore, *_EXAMPLES
    )
    restore.add_argument("source", type=Path, nargs="?", metavar="IN", help="picture or folder")
    restore.add_argument(
        "--jsonl", type=Path, help="a test split's test.jsonl, in place of IN (default: none)"
    )
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
        "to OUT/NAME (default: the model)",
    )
    restore.add_argument(
        "--model-dir", default="nano", help="model folder, or the name of a packaged model"
    )
    restore.add_argument(
        "--out", type=Path, default=Path("restored"), help="file or folder to write"
    )
    restore.add_argument(
        "--prompt",
        help="what is wrong with the picture, or a .txt file with it (default: a request to "
        "restore that names nothing)",
    )
    restore.add_argument("--steps", type=int, help="sampling steps (default: the model's)")
    restore.add_argument("--seed", type=int, default=0, help="seed of the starting noise")
    restore.add_argument(
        "--tile",
        type=int,
        help="largest side in pixels that goes through the program at once (default: the model's)",
    )
    restore.add_argument(
        "--int8", action="store_true", help="hold weights as int8: less memory (needs qwix)"
    )
    restore.add_argument(
        "--explain", action="store_true", help="say what was wrong, in a .json next to each result"
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
    restore.add_argument(
        "--skip-existing", action="store_true", help="keep results that are there already"
    )
    restore.add_argument("--compare", action="store_true", help="write degraded | restored")


def read_prompt(given: str | None) -> str | None:
    """Returns a prompt, read from its file where the name of a .txt file was given.

    Raises:
      ValueError: there is no such file.
    """
    if given is None or not given.endswith(".txt"):
        return given
    path = Path(given)
    if not path.is_file():
        raise ValueError(f"{path}: no such prompt file; check the path")
    return path.read_text().strip()


def _check(args: argparse.Namespace) -> None:
    """Finds wrong arguments before jax and a model are loaded.

    Raises:
      ValueError: naming the argument and what is accepted.
    """
    if (args.source is None) == (args.jsonl is None):
        raise ValueError("name a picture or folder to restore, or a split with --jsonl")
    source = args.source or args.jsonl
    if not source.exists():
        raise ValueError(f"{source}: no such file or folder; check the path")
    if not 1 <= args.quality <= 100:
        raise ValueError(f"--quality={args.quality}: expected 1 to 100")
    from cotir_jax.images.photo import SUFFIXES

    single = args.source is not None and args.source.is_file()
    for suffix in (_suffix(args.format), args.out.suffix.lower() if single else ""):
        if suffix not in ("", "same", *SUFFIXES):
            raise ValueError(f"format {suffix}: accepted are {', '.join(SUFFIXES)} and same")


def _restore(args: argparse.Namespace) -> None:
    _check(args)
    prompt = read_prompt(args.prompt)
    if args.baseline:
        _restore_with_baselines(args, args.out)
        return
    from cotir_jax.restoring import folder
    from cotir_jax.restoring.restorer import DEFAULT_PROMPT, RestoreOptions, Restorer

    keep_compiled_programs()
    restorer = Restorer.load(args.model_dir, int8=args.int8)
    if args.jsonl is not None:
        _restore_split(args, restorer, args.out)
        return
    options = RestoreOptions(
        prompt or DEFAULT_PROMPT, args.steps, args.seed, args.tile, args.explain, args.match_colour
    )
    # On a terminal: calls of the program for the picture at hand, which may have thousands.
    with tqdm(disable=None, unit="call", leave=False) as bar:

        def progress(done: int, total: int) -> None:
            bar.total, bar.n = total, done
            bar.refresh()

        lines = folder.restore_path(
            restorer,
            args.source,
            args.out,
            options,
            compare=args.compare,
            suffix=_suffix(args.format),
            quality=args.quality,
            skip_existing=args.skip_existing,
            progress=progress,
        )
        _print_lines(lines)


def _suffix(given: str) -> str:
    return given if given == "same" else f".{given.lower().lstrip('.')}"


def _restore_split(args: argparse.Namespace, restorer, out: Path) -> None:
    from cotir_jax.restoring.test_split import restore_listing

    options = {"num_steps": args.steps, "seed": args.seed, "tile": args.tile}
    for prompts in ("vague", "precise") if args.prompts == "both" else (args.prompts,):
        lines = restore_listing(
            lambda picture, prompt: restorer(picture, prompt, **options).image,
            args.jsonl,
            out / prompts,
            prompts,
            settings={"model": args.model_dir, "prompts": prompts, **options}
            | ({"int8": True} if args.int8 else {}),
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
                _ignoring_prompts(function),
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


def _ignoring_prompts(function: Callable[[np.ndarray], np.ndarray]) -> Callable:
    """A function of a picture as one of a picture and its prompt."""
    return lambda picture, _prompt: function(picture)


class _Baseline:
    """A function of an 8-bit array in the place of a `Restorer`."""

    def __init__(self, function):
        self._function = function

    def plan_groups(self, sizes, tile=None):
        return [([index], None) for index in range(len(sizes))]

    def restore_group(self, photos, bucket, options, progress=None):
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
