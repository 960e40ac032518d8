"""What a benchmark is made of: which samples, in which shards, and how one sample is made."""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cotir_jax.bench.composites import (
    QUICK_COMPOSITES,
    QUICK_SINGLES,
    SEEN,
    SINGLES,
    UNSEEN,
    apply_chain,
    folder_name,
    parts_of,
    sample_chain,
)
from cotir_jax.bench.listing import ListedPicture
from cotir_jax.bench.maps import Maps, depth_of_photo, load_maps
from cotir_jax.bench.pages import draw_page
from cotir_jax.bench.photos import (
    BORDER,
    PhotoPath,
    choose_crop,
    cut,
    find_photos,
    recolour,
    trimmed_photo,
)
from cotir_jax.bench.words.phrases import prompt_files
from cotir_jax.bench.words.scene_writer import SceneWriter
from cotir_jax.bench.words.thoughts import write_meta
from cotir_jax.images.pictures import encode_png

SPLITS = ("train", "test")
NAMED_SETS: dict[str, tuple[str, ...]] = {
    "all": (*SINGLES, *SEEN, *UNSEEN),
    "quick": (*QUICK_SINGLES, *QUICK_COMPOSITES),
    "singles": SINGLES,
    "seen": SEEN,
    "unseen": UNSEEN,
}


class Scene(NamedTuple):
    """An OpenAI-compatible endpoint, and the model there that writes the scene sentence."""

    endpoint: str
    model: str


@dataclass(frozen=True)
class Plan:
    """A complete benchmark: the same plan gives the same bytes.

    Attributes:
        photos: clean photos of each split.
        names: degradations of each split.
        counts: samples of each degradation, by split.
        size: side of the square pictures in pixels.
    """

    photos: dict[str, list[PhotoPath]]
    names: dict[str, tuple[str, ...]]
    counts: dict[str, int]
    size: int
    seed: int
    maps: Maps = field(default_factory=Maps)
    scene: Scene | None = None

    def folders(self, split: str) -> dict[str, int]:
        """Returns the samples of each degradation's folder."""
        return {folder_name(name): self.counts[split] for name in self.names[split]}

    def jobs(self, split: str, samples: int) -> Iterator["Job"]:
        """Yields pieces of up to `samples` of one degradation, in the order of names."""
        for name in self.names[split]:
            for start in range(0, self.counts[split], samples):
                numbers = range(start, min(start + samples, self.counts[split]))
                yield self.job(split, name, numbers)

    def job(self, split: str, name: str, numbers: range) -> "Job":
        """Returns the work for the samples `numbers` of one degradation."""
        # Photos take turns, from a start that differs between degradations.
        photos = self.photos[split]
        turns = [number + _code(name) for number in numbers]
        clean = tuple(photos[turn % len(photos)] for turn in turns)
        others: tuple[PhotoPath, ...] = ()
        if "specular-reflection" in parts_of(name):
            others = tuple(photos[(turn + len(photos) // 2) % len(photos)] for turn in turns)
        place = sorted(self.names[split], key=folder_name).index(name)
        # Only what these samples need travels to another process.
        depth = {path.stem: self.maps.depth[path.stem] for path in clean
                 if path.stem in self.maps.depth}  # fmt: skip
        return Job(
            split=split,
            name=name,
            numbers=numbers,
            position=place * self.counts[split] + numbers.start,
            photos=clean,
            others=others,
            size=self.size,
            seed=self.seed,
            maps=self.maps._replace(depth=depth),
            scene=self.scene,
        )


@dataclass(frozen=True)
class Job:
    """The samples `numbers` of one degradation and split, one of `photos` for each.

    `position` is the place of the first of them among all samples of the split (sorted by
    folder and number); `others` are photos that window reflections show, or none. `recoloured`
    is the probability that a clean photo gets other colours, `drawn` that a page is drawn
    around it; no benchmark has them.
    """

    split: str
    name: str
    numbers: range
    position: int
    photos: tuple[PhotoPath, ...]
    others: tuple[PhotoPath, ...]
    size: int
    seed: int
    maps: Maps
    scene: Scene | None
    recoloured: float = 0.0
    drawn: float = 0.0


class Sample(NamedTuple):
    """Key, clean and degraded picture as PNG bytes, and `meta.json`."""

    key: str
    hq: bytes
    lq: bytes
    meta: dict[str, Any]


def make_plan(
    photos: Path | str | None = None,
    *,
    test_photos: Path | str | None = None,
    samples_per_degradation: int = 256,
    test_per_degradation: int = 8,
    size: int = 512,
    seed: int = 0,
    degradations: str | Sequence[str] = "all",
    composites: bool = True,
    depth: Path | str | None = None,
    rain_masks: Path | str | None = None,
    snow_masks: Path | str | None = None,
    scene_endpoint: str | None = None,
    scene_model: str | None = None,
) -> Plan:
    """Finds the photos and maps, and decides what is to be built.

    Args:
        photos: folder of clean photos; by default those that ship inside scikit-image.
        test_photos: folder of clean test photos; by default some of `photos` are kept for it.
        samples_per_degradation: training pairs of each degradation and composite.
        test_per_degradation: test pairs of each; 0 makes no test split.
        size: side of the square pictures in pixels.
        seed: of every choice and draw.
        degradations: names or named sets, see `choose_names`. Composites that the benchmark
            keeps unseen in training come into the test split only.
        composites: False leaves composites out.
        depth: a depth map or a folder of them, see `maps.load_maps`.
        rain_masks: a mask or a folder of masks to draw rain from.
        snow_masks: likewise for snow.
        scene_endpoint: an OpenAI-compatible endpoint that writes the scene sentences; the samples
            then depend on its answers too.
        scene_model: the model to ask there.

    Raises:
        ValueError: photos or maps are missing, too few or unreadable, an unknown degradation, or
            a number is out of range.
    """
    for name, value, least in (
        ("samples_per_degradation", samples_per_degradation, 1),
        ("test_per_degradation", test_per_degradation, 0),
        ("size", size, 32),
        ("seed", seed, 0),
    ):
        if value < least:
            raise ValueError(f"{name} is {value}; expected {least} or more")
    if bool(scene_endpoint) != bool(scene_model):
        raise ValueError("scene_endpoint and scene_model go together; give both or neither")
    scene = Scene(scene_endpoint, scene_model) if scene_endpoint and scene_model else None
    if scene:
        scene_writer(scene)  # refuses what is no address, before any work
    names = choose_names(degradations, composites)
    train = tuple(name for name in names if name not in UNSEEN)
    if not train and not test_per_degradation:
        raise ValueError(f"{', '.join(names)} are only for the test, and test samples are 0")
    found = find_photos(photos, test_photos, seed)
    return Plan(
        photos=dict(zip(SPLITS, found, strict=True)),
        names={"train": train, "test": names if test_per_degradation else ()},
        counts={"train": samples_per_degradation, "test": test_per_degradation},
        size=size,
        seed=seed,
        maps=load_maps(depth, rain_masks, snow_masks),
        scene=scene,
    )


def choose_names(degradations: str | Sequence[str], composites: bool = True) -> tuple[str, ...]:
    """Looks up degradations by name (`haze`, `low-light+noise`) or set, in order, each once.

    Args:
        degradations: names and sets, comma-separated or in a sequence. Sets are `all`,
            `quick` (those of configs/nano.py), `singles`, and the composites `seen` and
            `unseen` in training.
        composites: False leaves composites out.

    Raises:
        ValueError: an unknown name, or nothing is left.
    """
    given = degradations.split(",") if isinstance(degradations, str) else degradations
    names: dict[str, None] = {}
    for entry in map(str.strip, given):
        if entry in NAMED_SETS:
            names |= dict.fromkeys(NAMED_SETS[entry])
        else:
            try:
                names["+".join(parts_of(entry))] = None
            except ValueError as error:
                raise ValueError(f"{error}, or name a set: {', '.join(NAMED_SETS)}") from None
    chosen = tuple(name for name in names if composites or "+" not in name)
    if not chosen:
        raise ValueError(f"degradations {degradations!r} without composites name nothing to build")
    return chosen


def make_samples(job: Job) -> Iterator[Sample]:
    """Makes the samples of a job, in order."""
    for number in job.numbers:
        yield make_sample(job, number)


def make_sample(job: Job, number: int, compress_level: int = 1) -> Sample:
    """Crops a photo, degrades it, writes its thoughts and encodes both pictures.

    Args:
        job: what is asked for.
        number: one of its numbers.
        compress_level: of PNG. 1 is the benchmark's: encoding is most of the time, and higher
            levels save few bytes on photos. 0 is for samples that are not kept.
    """
    # One generator per sample, so that no split of the work changes the outcome.
    rng = np.random.default_rng([job.seed, SPLITS.index(job.split), _code(job.name), number])
    path = job.photos[number - job.numbers.start]
    photo = trimmed_photo(path)
    crop = choose_crop(photo, job.size, rng)
    clean = cut(photo, crop, job.size)
    if job.drawn and rng.random() < job.drawn:
        clean = draw_page(clean, rng)
    if job.recoloured and rng.random() < job.recoloured:
        clean = recolour(clean, rng)
    height, width = (side + 2 * BORDER for side in photo.shape[:2])
    depth = depth_of_photo(job.maps, Path(path.name), height, width)
    if depth is not None:
        depth = cut(np.ascontiguousarray(depth[BORDER:-BORDER, BORDER:-BORDER]), crop, job.size)
    second = trimmed_photo(job.others[number - job.numbers.start]) if job.others else None
    chain = sample_chain(job.name, job.size, rng, maps=job.maps, depth=depth, second=second)
    degraded = apply_chain(clean, chain, rng)
    scene = scene_writer(job.scene)(clean) if job.scene else None
    meta = write_meta(clean, chain, job.name, rng, scene)
    key = f"{folder_name(job.name)}-{number:06d}"
    hq, lq = (encode_png(picture, compress_level) for picture in (clean, degraded))
    return Sample(key, hq, lq, meta)


def listed(job: Job, key: str, meta: dict[str, Any]) -> ListedPicture:
    """Returns a test sample's line of `test.jsonl`."""
    return ListedPicture(
        id=key,
        lq_path=f"lq/{key}.png",
        deg_type=job.name,
        subset="composite" if "+" in job.name else "single",
        prompts=dict(zip(("vague", "precise"), meta["cot"]["questions"], strict=True)),
    )


def prompts_of(plan: Plan) -> dict[str, list[str]]:
    """Returns the prompt files of a plan: name without suffix -> lines."""
    return prompt_files(
        tuple(dict.fromkeys(name for split in SPLITS for name in plan.names[split]))
    )


@lru_cache(maxsize=1)
def scene_writer(scene: Scene) -> SceneWriter:
    """Returns this process's writer for an endpoint; it counts its failures."""
    return SceneWriter(*scene)


@lru_cache(maxsize=4096)
def _code(name: str) -> int:
    return zlib.crc32(name.encode())  # unlike hash(), the same in every process
