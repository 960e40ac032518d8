"""Training batches from shards, with Grain: decode, crop, choose a prompt, tokenise, stack."""

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import grain
import numpy as np
from absl import flags

from cotir_jax.data.fresh_samples import FreshSamples
from cotir_jax.data.mixing import locate, shares_of
from cotir_jax.data.prompts import check_vague_schedule, choose_prompt, vague_probability
from cotir_jax.data.samples import CorruptSample, crop_pair, read_texts
from cotir_jax.data.shard_index import ShardIndex
from cotir_jax.text.tokenizer import TextTokenizer

_CROPS = 3  # see mixing.py
_MAX_CORRUPT_SHARE = 0.01
_SAMPLES_BEFORE_ERROR = 200
# Batches come from workers through pipes (500 MB/s measured), not shared memory: containers have
# little of that by default, a worker that finds none left dies, and some stays behind on close().
_THROUGH_PIPES = grain.experimental.DatasetOptions(min_shm_size=2**62)
_log = logging.getLogger(__name__)
# What batches are made of.
Samples = ShardIndex | FreshSamples


@dataclass(frozen=True)
class Stage:
    """Steps ``first_step`` to ``end_step - 1`` with one patch size and global batch size.

    ``first_sample`` is the number of samples before it.
    """

    first_step: int
    end_step: int
    patch_size: int
    batch_size: int
    first_sample: int = 0


def stage_batches(
    index: Samples,
    stage: Stage,
    *,
    seed: int,
    tokenizer: TextTokenizer,
    pooled_tokenizer: TextTokenizer | None = None,
    vague_schedule: Sequence[tuple[int, float]],
    shares: Sequence[tuple[str, int]] = (),
    rows: Sequence[int] | None = None,
    num_workers: int = 0,
    num_threads: int = 4,
    first_step: int | None = None,
) -> grain.IterDataset[dict[str, Any]]:
    """Reads the batches of a stage, one per step.

    Step s has the sample numbers ``first_sample + (s - first_step) * batch_size`` of the stage and
    on; each process reads the rows that its devices hold. A batch is a function of (seed, step,
    rows), whatever the workers and threads: a run continues from the number of its step, with other
    processes and workers too. ``iter()`` of the result prefetches, and has ``close``.

    Args:
        index: where the samples are.
        stage: which steps, and the global batch size.
        seed: of order, crops and prompts.
        tokenizer: of the encoder that gives an embedding per token; T below are its tokens.
        pooled_tokenizer: of the encoder that gives one vector per prompt, where the model has one;
            P below.
        vague_schedule: (from step, probability of the vague prompt) pairs.
        shares: (degradation, samples in a round) pairs; one for what is not named.
        rows: of each batch, in order; all by default.
        num_workers: processes that prepare batches; 0 uses threads of this one. They import the
            main script, which therefore needs its ``if __name__ == "__main__":``.
        num_threads: threads of each of these processes; each prepares a batch at a time.
        first_step: first step that is read; by default the stage's.

    Returns:
        Dicts, b = rows: ``lq``, ``hq`` uint8 ``[b, patch, patch, 3]``; ``prompt``, ``scene``,
        ``degradation``, ``plan``, ``Tokens`` ``[b, T]``; with a pooled tokenizer also ``pooled``,
        the prompt's ``Tokens`` ``[b, P]``; ``group`` int32 ``[b]``, the degradation's place in
        ``index.degradations``; ``corrupt`` int32 ``[b]``, corrupt samples passed over.

    Raises:
        ValueError: sizes, shares or the schedule are out of range; while iterating: a picture is
            smaller than the patch, or a degradation has no usable sample.
    """
    check_vague_schedule(vague_schedule)
    rows = tuple(range(stage.batch_size) if rows is None else map(int, rows))
    begin = stage.first_step if first_step is None else first_step
    _check_sizes(stage, seed, rows, begin, num_workers, num_threads)
    reader = _SampleReader(
        index, stage, seed, tokenizer, pooled_tokenizer, tuple(vague_schedule),
        shares_of(index.degradations, shares), rows,
    )  # fmt: skip
    _allow_unparsed_flags()
    positions = [(step - stage.first_step) * len(rows) for step in (begin, stage.end_step)]
    # Stacked before to_iter_dataset, so that workers share complete batches between them: stacked
    # after it, what is in a batch would depend on their number.
    batches = grain.MapDataset.range(*positions).map(reader).batch(len(rows), drop_remainder=True)
    batches = batches.to_iter_dataset(
        grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=num_threads + 1)
    )
    batches = grain.experimental.WithOptionsIterDataset(batches, _THROUGH_PIPES)
    return batches.mp_prefetch(
        grain.MultiprocessingOptions(num_workers=num_workers), worker_init_fn=_start_worker
    )


def _check_sizes(
    stage: Stage, seed: int, rows: tuple[int, ...], first_step: int, workers: int, threads: int
) -> None:
    if seed < 0:
        raise ValueError(f"config.seed is {seed}; expected 0 or more")
    if stage.end_step <= stage.first_step or stage.patch_size < 1 or stage.batch_size < 1:
        raise ValueError(f"config.train.stages gives {stage}; steps must grow, sizes be above 0")
    if not rows or not 0 <= min(rows) <= max(rows) < stage.batch_size:
        raise ValueError(f"got rows {rows}, expected some of 0 to {stage.batch_size - 1}")
    if not stage.first_step <= first_step < stage.end_step:
        raise ValueError(f"got first step {first_step}, expected one of {stage}")
    if workers < 0 or threads < 1:
        raise ValueError(
            f"config.data.workers={workers}, config.data.threads={threads}; expected 0 or more "
            "workers and 1 or more threads"
        )


def _allow_unparsed_flags() -> None:
    # Grain 0.2.18 starts workers only where absl has parsed the flags, not in a plain script
    # (google/grain issue 1355, fixed later). This lets its one flag be read, and no other.
    name = "grain_enable_multiprocess_worker_profiling"
    if name in flags.FLAGS and not flags.FLAGS.is_parsed():
        flags.FLAGS[name].present = 1


def _start_worker(worker: int, count: int) -> None:
    # Ctrl-C goes to all processes of a terminal, SIGTERM from SLURM or `timeout` to all of a job.
    # The main one saves and then ends its workers; it has hung where a worker was gone before it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # A worker whose main process was killed would wait for ever to hand over its batch.
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)


@dataclass(eq=False)
class _SampleReader:
    """Position in these rows of a stage -> sample, as a dict of arrays."""

    index: Samples
    stage: Stage
    seed: int
    tokenizer: TextTokenizer
    pooled_tokenizer: TextTokenizer | None
    vague_schedule: tuple[tuple[int, float], ...]
    shares: tuple[int, ...]
    rows: tuple[int, ...]
    warned: set[int] = field(default_factory=set)  # in each process

    def __call__(self, position: int) -> dict[str, Any]:
        step, place = divmod(int(position), len(self.rows))
        number = self.stage.first_sample + step * self.stage.batch_size + self.rows[place]
        counts = self.index.counts
        degradation, place = locate(number, seed=self.seed, counts=counts, shares=self.shares)
        start, end = self.index.ranges[degradation].tolist()
        for skipped in range(end - start):
            sample = start + (place + skipped) % (end - start)
            try:
                out = self._read(sample, number, degradation, self.stage.first_step + step)
            except CorruptSample as error:
                if sample not in self.warned:
                    self.warned.add(sample)
                    _log.warning("corrupt sample skipped: %s: %s", self.index.name(sample), error)
                continue
            return out | {"group": np.int32(degradation), "corrupt": np.int32(skipped)}
        raise ValueError(
            f"{self.index.folder / self.index.degradations[degradation]}: all {end - start} "
            "samples are corrupt; fetch its shards again or remove the folder"
        )

    def _read(self, sample: int, number: int, degradation: int, step: int) -> dict[str, Any]:
        found = self.index.read(sample)
        if found is None:
            raise CorruptSample("incomplete")
        lq, hq, meta = found
        texts = read_texts(meta)
        rng = np.random.default_rng([self.seed, _CROPS, number])
        try:
            lq_patch, hq_patch = crop_pair(lq, hq, self.stage.patch_size, rng)
        except ValueError as error:
            raise ValueError(f"{self.index.name(sample)}: {error}") from error
        prompt = choose_prompt(
            rng,
            self.index.prompts,
            degradation=self.index.degradations[degradation],
            questions=texts.questions,
            jpeg_type=texts.jpeg_type,
            vague=vague_probability(self.vague_schedule, step),
        )
        out: dict[str, Any] = {"lq": lq_patch, "hq": hq_patch}
        names = ("prompt", "scene", "degradation", "plan")
        out |= zip(names, map(self.tokenizer, (prompt, *texts.thoughts)), strict=True)
        if self.pooled_tokenizer is not None:
            out["pooled"] = self.pooled_tokenizer(prompt)
        return out


@dataclass
class CorruptCounter:
    """Adds up the batches' ``corrupt`` and stops a run on too many.

    Attributes:
        seen: samples looked at, corrupt ones included; of a continued run those before too.
        corrupt: those of them that were corrupt.
    """

    seen: int = 0
    corrupt: int = 0

    def add(self, corrupt: np.ndarray) -> None:
        """Counts a batch.

        Args:
            corrupt: int32 ``[b]``.

        Raises:
            ValueError: more than 1 % of at least 200 samples were corrupt.
        """
        skipped = int(np.sum(corrupt))
        self.corrupt += skipped
        self.seen += skipped + len(corrupt)
        if self.seen >= _SAMPLES_BEFORE_ERROR:
            self.finish()

    def finish(self) -> None:
        """Raises ValueError where more than 1 % of all samples were corrupt, however few."""
        if self.corrupt > _MAX_CORRUPT_SHARE * self.seen:
            raise ValueError(
                f"{self.corrupt} of {self.seen} samples were corrupt, more than 1 %; the log "
                "names them: fetch their shards again"
            )
