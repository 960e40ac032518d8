"""Samples made while training, so that none comes twice: CoTIR-Bench without its shards."""

import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from cotir_jax.bench.composites import folder_name, parts_of
from cotir_jax.bench.plan import Plan, make_sample, prompts_of
from cotir_jax.data.prompts import VAGUE_FILE, Prompts

# Samples of each degradation before numbers come again: more than any run reads.
_SAMPLES = 2**18
# Numbers below are those of a benchmark built from the same plan; its samples are held out.
_FIRST = 2**20
# Degradations that take colours away.
COLOURLESS = {"lost_color", "smartphone-to-dslr", "underwater"}


@dataclass(frozen=True, eq=False)
class FreshSamples:
    """Stands where ``ShardIndex`` does, and makes each sample when it is read.

    A sample is a function of the plan and its number: a run continues bit for bit, and none of
    them is in the benchmark that the plan describes, although both show the same photos.

    Attributes:
        plan: what to make; see ``bench.plan.make_plan``.
        sizes: sides in pixels that samples take in turns, empty for the plan's. Degradations grow
            with the side, so one crop size sees them at several scales.
        recoloured: probability that a sample shows its photo in other colours, see
            ``bench.photos.recolour``. Degradations that take colours away show the photo's own:
            what they ask for is the colours that things have.
        drawn: probability that a sample shows a page drawn around its photo, see
            ``bench.pages.draw_page``; never where degradations take colours away.
    """

    plan: Plan
    sizes: tuple[int, ...] = ()
    recoloured: float = 0.0
    drawn: float = 0.0

    @cached_property
    def _names(self) -> dict[str, str]:
        """Folder name -> degradation, in the order of the folders, which is the index's."""
        names = sorted(self.plan.names["train"], key=folder_name)
        return {folder_name(name): name for name in names}

    @cached_property
    def degradations(self) -> tuple[str, ...]:
        """Folder names, sorted."""
        return tuple(self._names)

    @cached_property
    def prompts(self) -> Prompts:
        """Lines of the prompt files."""
        lines = {name: tuple(lines) for name, lines in prompts_of(self.plan).items()}
        return Prompts(lines.pop(VAGUE_FILE), lines)

    @property
    def folder(self) -> Path:
        """Of the first photo, for messages."""
        return Path(self.plan.photos["train"][0]).parent

    @property
    def counts(self) -> tuple[int, ...]:
        """Samples of each degradation."""
        return (_SAMPLES,) * len(self.degradations)

    @property
    def ranges(self) -> np.ndarray:
        """int64 ``[degradations, 2]``: each one's first sample and the one after its last."""
        first = np.arange(len(self.degradations), dtype=np.int64) * _SAMPLES
        return np.stack([first, first + _SAMPLES], axis=1)

    def read(self, sample: int) -> tuple[bytes, bytes, bytes]:
        """Degraded and clean picture as PNG, and ``meta.json``."""
        degradation, number = divmod(int(sample), _SAMPLES)
        number += _FIRST
        name = self._names[self.degradations[degradation]]
        sizes = self.sizes or (self.plan.size,)
        job = self.plan.job("train", name, range(number, number + 1))
        job = replace(job, size=sizes[number % len(sizes)])
        if not COLOURLESS.intersection(parts_of(name)):
            job = replace(job, recoloured=self.recoloured, drawn=self.drawn)
        made = make_sample(job, number, compress_level=0)
        return made.lq, made.hq, json.dumps(made.meta).encode()

    def name(self, sample: int) -> str:
        """A sample's degradation and number, for messages."""
        degradation, number = divmod(int(sample), _SAMPLES)
        return f"{self.degradations[degradation]} {_FIRST + number}"
