"""Restoring pictures: one jitted program, for whole pictures or overlapping crops of one size."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import jax
import numpy as np

from cotir_jax.checkpoints.loaded_model import LoadedModel
from cotir_jax.explaining.explainer import DEFAULT_PROMPT, Explainer
from cotir_jax.images import tiling
from cotir_jax.images.photo import Photo, check_pixels, unit_range
from cotir_jax.models import pipeline
from cotir_jax.models.transformer import Text
from cotir_jax.restoring import colour
from cotir_jax.restoring.result import Picture, Restored, as_photo

# Pictures above this many pixels are restored in crops of `LARGE_TILE` by models that take a
# picture whole: FLUX was trained at about one megapixel.
LARGEST_WHOLE = 1024 * 1024
LARGE_TILE = 1024

Progress = Callable[[int, int], None]
# Indices of pictures, and the size of the program that takes them whole, or None for crops.
Group = tuple[list[int], tuple[int, int] | None]


class RestoreOptions(NamedTuple):
    """How pictures are restored.

    Attributes:
      prompt: what is wrong with them, in words.
      num_steps: sampling steps; None stands for the model's own number.
      seed: of the starting noise.
      tile: side in pixels of the largest piece that goes through the program at once, a multiple
        of the patch; 0 for the entire picture. It bounds memory. For None, and for models that
        look at a picture crop by crop (`config.tile`), see `Restorer.restore_array`.
      explain: also compute what was wrong with each picture.
      match_colour: take the low frequencies from the degraded picture (`colour.py`): against
        colour shifts, and wrong where light or colour are what is to be repaired.
    """

    prompt: str = DEFAULT_PROMPT
    num_steps: int | None = None
    seed: int = 0
    tile: int | None = None
    explain: bool = False
    match_colour: bool = False


class Restorer(LoadedModel):
    """A loaded model that restores pictures; `Restorer.load("nano")` makes one.

    Attributes:
      jitted: the restore program, for use in other JAX code:
        `jitted(weights, pictures, text, empty_text, corners, key, num_steps=1)`; arguments and
        result as in `pipeline.restore_range`.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        """Takes the arguments of `LoadedModel`."""
        super().__init__(*args, **kwargs)

        def run(weights, pictures, text, empty_text, corners, key, num_steps):
            return pipeline.restore_range(
                *self.merge(weights), pictures, text, key, num_steps, empty_text, corners
            )

        self.jitted = jax.jit(run, static_argnames="num_steps")
        self._program = self.compile(run, static_argnames="num_steps")

    def __call__(
        self,
        picture: Picture,
        prompt: str = DEFAULT_PROMPT,
        *,
        num_steps: int | None = None,
        seed: int = 0,
        tile: int | None = None,
        explain: bool = False,
        match_colour: bool = False,
        progress: Progress | None = None,
    ) -> Restored:
        """Restores one picture at its own size.

        Args:
          picture: a file, its bytes, a Pillow picture, a `Photo`, or an array uint8 or uint16
            `[height, width, 3]` (also `[height, width]`, or with alpha `[height, width, 4]`).
          prompt: what is wrong with it, in words.
          num_steps: sampling steps; by default the model's own number.
          seed: of the starting noise.
          tile: as in `RestoreOptions`.
          explain: also compute what was wrong with it.
          match_colour: as in `RestoreOptions`.
          progress: called with how many of how many calls of the program are done.

        Raises:
          ValueError: for an unreadable picture, another shape or dtype, or an impossible tile.
        """
        options = RestoreOptions(prompt, num_steps, seed, tile, explain, match_colour)
        return self.restore_group([as_photo(picture)], None, options, progress)[0]

    def batch(
        self,
        pictures: Sequence[Picture],
        prompt: str = DEFAULT_PROMPT,
        *,
        progress: Progress | None = None,
        **options: Any,
    ) -> list[Restored]:
        """Restores several pictures; those that go through one program share its calls.

        A picture's result is that of a single call with the bucket that `plan_groups` gives its
        size.

        Args:
          pictures: each as in a single call.
          prompt: for all of them.
          progress: called with how many of how many pictures are done.
          options: the other fields of `RestoreOptions`.
        """
        chosen = RestoreOptions(prompt, **options)
        photos = [as_photo(picture) for picture in pictures]
        done: dict[int, Restored] = {}
        for indices, bucket in self.plan_groups([p.pixels.shape[:2] for p in photos], chosen.tile):
            results = self.restore_group([photos[i] for i in indices], bucket, chosen)
            done |= dict(zip(indices, results, strict=True))
            if progress:
                progress(len(done), len(photos))
        return [done[index] for index in range(len(photos))]

    def plan_groups(self, sizes: Sequence[tuple[int, int]], tile: int | None = None) -> list[Group]:
        """Groups pictures so that few programs are compiled and all devices have work.

        Args:
          sizes: height and width of each picture.
          tile: as in `RestoreOptions`.

        Returns:
          Groups: indices into `sizes`, as many as there are devices at most, and the size of the
          program that takes them whole; None for a picture that is restored crop by crop.
        """
        whole = [size for size in sizes if not self.crop_side(size, tile)]
        # One program is left for crops where there are any.
        most = tiling.MAX_PROGRAMS - (len(whole) < len(sizes))
        buckets = tiling.choose_buckets(whole, self.config.patch, max_programs=most)
        groups: list[Group] = []
        waiting: dict[tuple[int, int] | None, list[int]] = {}
        for index, size in enumerate(sizes):
            bucket = buckets.get(size)
            waiting.setdefault(bucket, []).append(index)
            if len(waiting[bucket]) == (self.parts if bucket else 1):
                groups.append((waiting.pop(bucket), bucket))
        return groups + [(indices, bucket) for bucket, indices in waiting.items()]

    def restore_group(
        self,
        photos: Sequence[Photo],
        bucket: tuple[int, int] | None,
        options: RestoreOptions,
        progress: Progress | None = None,
    ) -> list[Restored]:
        """Restores one of the groups of `plan_groups`.

        Args:
          photos: those of the group.
          bucket: of the group; None restores each picture by itself, whole or in crops.
          options: as in a single call.
          progress: for pictures that are restored by themselves, as in a single call.
        """
        pixels = [photo.pixels for photo in photos]
        if bucket is None:
            results = [self.restore_array(one, options, progress) for one in pixels]
        else:
            results = self._restore_whole(pixels, bucket, options)
        restored = []
        for photo, result in zip(photos, results, strict=True):
            if options.match_colour:
                result = colour.match_low_frequencies(result, photo.pixels)
            thoughts = self.explainer(photo.pixels) if options.explain else None
            restored.append(Restored(dataclasses.replace(photo, pixels=result), thoughts))
        return restored

    def restore_array(
        self, pixels: np.ndarray, options: RestoreOptions, progress: Progress | None = None
    ) -> np.ndarray:
        """Restores an array at its own size; nothing is resized.

        A model with `config.tile` looks at overlapping crops of that size, the context that it was
        trained with, whatever `tile` says: attention over more than that would be spread too thin
        (Chu et al. 2022, arXiv 2112.04491, find the same of statistics over entire pictures).
        Other models take a picture whole up to `LARGEST_WHOLE` pixels, mirrored up to a bucket of
        sizes, and larger ones in crops of `LARGE_TILE`.

        Args:
          pixels: uint8 or uint16 `[height, width, 3]`.
          options: prompt, num_steps, seed and tile are used.
          progress: called with how many of how many calls of the program are done.

        Returns:
          Array of the same shape and dtype.

        Raises:
          ValueError: for another shape or dtype, or an impossible tile.
        """
        check_pixels(pixels)
        tile, patch, size = options.tile, self.config.patch, pixels.shape[:2]
        if tile is not None and (tile < 0 or tile % patch):
            raise ValueError(f"tile={tile}: must be 0 or a multiple of {patch}")
        side = self.crop_side(size, tile)
        if not side:
            return self._restore_whole([pixels], tiling.bucket(size, patch), options)[0]
        half = np.iinfo(pixels.dtype).max / 2

        def run(crops: np.ndarray, corners: np.ndarray) -> jax.Array:
            return (self._run(crops, corners, options) + 1) * half

        batch = self._crop_batch(size, side, tile)
        return tiling.restore_in_tiles(
            pixels, run, tile=side, multiple=patch, batch=batch, progress=progress
        )

    @cached_property
    def explainer(self) -> Explainer:
        """Tells what was wrong with a picture, from the adapter's thoughts."""
        return Explainer.load(self)

    def crop_side(self, size: tuple[int, int], tile: int | None = None) -> int:
        """Side of the crops that a picture of this height and width is restored in; 0: whole."""
        if self.config.tile:
            return self.config.tile
        if tile is None:
            return LARGE_TILE if math.prod(size) > LARGEST_WHOLE else 0
        return tile if max(size) > tile else 0

    def embed_prompts(self, prompt: str, batch: int) -> tuple[Text, Text | None]:
        """Embeddings of the prompt for each of a batch, and of an empty one where that guides."""
        return self.embed(prompt, batch), self.embed("", batch) if self.config.two_passes else None

    def _crop_batch(self, size: tuple[int, int], side: int, tile: int | None) -> int:
        """Crops of one call: a fixed few, or as many as fit in a tile."""
        if not self.config.tile or tile is None:
            return self.crops_per_call
        sides = size if tile == 0 else (tile, tile)
        counts = [len(tiling.starts(length, side, self.config.patch)) for length in sides]
        return self.up_to_parts(math.prod(counts))

    def _restore_whole(
        self, pictures: Sequence[np.ndarray], bucket: tuple[int, int], options: RestoreOptions
    ) -> list[np.ndarray]:
        """Restores pictures whole, mirrored up to `bucket`; at most one for each device."""
        padded = [unit_range(tiling.mirror(picture, bucket)) for picture in pictures]
        padded += padded[-1:] * (self.parts - len(padded))
        out = np.asarray(self._run(np.stack(padded), None, options))
        results = []
        for picture, one in zip(pictures, out, strict=False):
            half = np.iinfo(picture.dtype).max / 2
            values = (one[: picture.shape[0], : picture.shape[1]] + 1) * half
            results.append(np.rint(values).astype(picture.dtype))
        return results

    def _run(
        self, pictures: np.ndarray, corners: np.ndarray | None, options: RestoreOptions
    ) -> jax.Array:
        batch = unit_range(pictures), *self.embed_prompts(options.prompt, len(pictures)), corners
        steps, key = options.num_steps or self.config.num_steps, jax.random.key(options.seed)
        return self.call(self._program, batch, key, num_steps=steps)
