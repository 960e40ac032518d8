"""`cotir quickstart`: degrades three photos, restores them, and draws a before/after sheet."""

from __future__ import annotations

import argparse
import contextlib
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cotir_jax.commands.parser import Commands, add_command

# Photos inside scikit-image, which nano was not trained on, and what is done to them. Nano restores
# these kinds without a prompt; others need one, and some it cannot restore.
_SAMPLES = (
    ("rocket", "low-light"),
    ("coffee", "specular-reflection+noise"),
    ("chelsea", "haze+rain-streak"),
)
_SIDE = 256  # pixels: one crop of nano's
_SEVERITY = 0.5  # of 0 to 1: moderate
_SEED = 0
_BEAT = 2.0  # seconds between lines while one step takes long


class _Result(NamedTuple):
    """One photo: its name, what was done to it, and uint8 pictures `[side, side, 3]`."""

    photo: str
    degradation: str
    degraded: np.ndarray
    restored: np.ndarray
    clean: np.ndarray


def add_quickstart(commands: Commands) -> None:
    """Adds `cotir quickstart`."""
    quickstart = add_command(
        commands,
        "quickstart",
        "see it work: degrade and restore three packaged photos, offline",
        _quickstart,
        "cotir quickstart --out=quickstart.png",
        details="The photos come with scikit-image, the degradations from this package's\n"
        f"benchmark (seed {_SEED}, moderate severity); the packaged nano restores them without\n"
        "a prompt.",
    )
    quickstart.add_argument(
        "--out", type=Path, default=Path("quickstart.png"), help="picture to write"
    )
    quickstart.add_argument(
        "--overwrite", action="store_true", help="replace the picture where it exists"
    )


def _quickstart(args: argparse.Namespace) -> None:
    from cotir_jax.images.pictures import PICTURE_SUFFIXES, contact_sheet, save_picture

    if args.out.suffix.lower() not in PICTURE_SUFFIXES:
        raise ValueError(f"--out={args.out}: end it with one of {', '.join(PICTURE_SUFFIXES)}")
    if args.out.exists() and not args.overwrite:
        raise ValueError(f"{args.out} exists; give another --out, or --overwrite")
    say = _Clock()
    results = _restore_all(say)
    from cotir_jax.bench.words.table import plain_name
    from cotir_jax.scoring.full_reference import psnr, ssim

    print(f"\n{'photo':<9}{'degradation':<26}{'PSNR in dB':>16}{'SSIM':>18}")
    for one in results:
        quality = [
            f"{measure(one.degraded, one.clean):.{digits}f} -> "
            f"{measure(one.restored, one.clean):.{digits}f}"
            for measure, digits in ((psnr, 2), (ssim, 3))
        ]
        print(f"{one.photo:<9}{plain_name(one.degradation):<26}{quality[0]:>16}{quality[1]:>18}")
    sheet = contact_sheet(
        [[one.degraded, one.restored, one.clean] for one in results],
        [plain_name(one.degradation) for one in results],
        ["degraded", "restored", "clean"],
    )
    save_picture(sheet, args.out)
    print(f"\nLook at {args.out.resolve()}: degraded, restored and clean next to each other.")
    print("These are kinds that nano restores without a prompt; a prompt that names what is wrong")
    print("helps with others. Next:")
    print("  cotir restore your-photo.jpg --out=restored.png")
    print('  cotir restore your-photo.jpg --out=restored.png --prompt="remove the noise"')
    print("  cotir explain your-photo.jpg")


def _restore_all(say: _Clock) -> list[_Result]:
    with say.during(f"degrading {len(_SAMPLES)} photos of scikit-image (seed {_SEED})"):
        pairs = [_degrade(photo, name) for photo, name in _SAMPLES]
    with say.during("loading jax and nano"):
        from cotir_jax.commands.compilation_cache import keep_compiled_programs
        from cotir_jax.restoring.restorer import Restorer

        keep_compiled_programs()
        restorer = Restorer.load("nano")
    results: list[_Result] = []
    for (photo, name), (clean, degraded) in zip(_SAMPLES, pairs, strict=True):
        step = f"restoring {photo} ({name}), without a prompt"
        if not results:
            step += "; the program is compiled for the first one and kept for the next start"
        with say.during(step):
            restored = restorer(degraded).image
        results.append(_Result(photo, name, degraded, restored, clean))
    return results


def _degrade(photo: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns a photo's central square, and the same degraded, uint8 `[side, side, 3]`."""
    from cotir_jax.bench.composites import apply_chain, sample_chain
    from cotir_jax.bench.photos import Crop, cut, find_photos, trimmed_photo

    train, test = find_photos(None, None, _SEED)
    pixels = trimmed_photo(next(path for path in train + test if path.stem == photo))
    height, width = pixels.shape[:2]
    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    clean = cut(pixels, Crop((left, top, left + side, top + side), mirrored=False), _SIDE)
    rng = np.random.default_rng([_SEED, zlib.crc32(name.encode())])
    chain = sample_chain(name, _SIDE, rng, _SEVERITY)
    return clean, apply_chain(clean, chain, rng)


class _Clock:
    """Prints what is being done and the seconds since the start, again while it goes on."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    @contextlib.contextmanager
    def during(self, what: str) -> Iterator[None]:
        """Prints a line now and every two seconds until the block ends."""
        self._say(what)
        done = threading.Event()

        def beat() -> None:
            while not done.wait(_BEAT):
                self._say("  still " + what.partition(";")[0])

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _say(self, line: str) -> None:
        print(f"[{time.monotonic() - self._start:3.0f} s] {line}", flush=True)
