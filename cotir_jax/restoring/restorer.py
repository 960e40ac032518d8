"""Restoring pictures: one jitted program, on whole pictures or on overlapping crops of one size."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from cotir_jax.checkpoints import model_folder, quantization
from cotir_jax.checkpoints.text_encoders import load_text_encoders
from cotir_jax.explaining import explainer as explain
from cotir_jax.images import tiling
from cotir_jax.images.photo import Photo, check_pixels, unit_range
from cotir_jax.models import pipeline
from cotir_jax.models.autoencoder import Autoencoder, PatchAutoencoder
from cotir_jax.models.transformer import Text, Transformer
from cotir_jax.parallel.sharding import BATCH_AXES, RULES, batch_sharding, make_mesh
from cotir_jax.restoring import colour
from cotir_jax.restoring.result import Picture, Restored, as_photo
from cotir_jax.text import encoders as text

DEFAULT_PROMPT = "Please restore this degraded photo."

# Pictures above this many pixels are restored in crops of `LARGE_TILE` by models that take a
# picture whole: FLUX was trained at about one megapixel.
LARGEST_WHOLE = 1024 * 1024
LARGE_TILE = 1024

Progress = Callable[[int, int], None]


class Restorer:
    """A model that restores pictures.

    Args:
      model: the transformer.
      autoencoder: of pictures and latents.
      encoders: of prompts.
      mesh: devices that all lie on.
      folder: where the model came from; explanations are calibrated by a file there.

    Attributes:
      jitted: the restore program, for use with other JAX code:
        `jitted(weights, pictures, text, empty_text, corners, key, num_steps=1)`; arguments and
        result as in `pipeline.restore_range`.
      weights: its first argument: states of transformer and autoencoder.
      graphdefs: the static halves of both, for `nnx.merge`.
    """

    def __init__(
        self,
        model: Transformer,
        autoencoder: Autoencoder | PatchAutoencoder,
        encoders: text.TextEncoders,
        mesh: Mesh,
        folder: Path | None = None,
    ):
        self.config, self.mesh, self.encoders, self.folder = model.config, mesh, encoders, folder
        graphdef, weights = nnx.split(model)
        # What trains is kept in float32; in a forward pass it is cast to this anyway.
        weights = jax.tree.map(lambda x: x.astype(self.config.dtype), weights)
        autoencoder_graphdef, autoencoder_weights = nnx.split(autoencoder)
        self.weights = weights, autoencoder_weights
        self.graphdefs = graphdef, autoencoder_graphdef
        self._parts = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
        self._text = lru_cache(maxsize=16)(self._encode)

        def run(weights, pictures, text, empty_text, corners, key, num_steps):
            return pipeline.restore_range(
                nnx.merge(graphdef, weights[0]),
                nnx.merge(autoencoder_graphdef, weights[1]),
                pictures,
                text,
                key,
                num_steps,
                empty_text,
                corners,
            )

        self.jitted = jax.jit(run, static_argnames="num_steps")
        platform = mesh.devices.flat[0].platform
        self._crops_per_call = pipeline.crops_per_call(platform)
        # jax takes compiler options only of a program that is not part of another.
        options = pipeline.CPU_OPTIONS if platform == "cpu" else None
        self._program = jax.jit(run, static_argnames="num_steps", compiler_options=options)

    @classmethod
    def load(
        cls, folder: str | Path = "nano", mesh: Mesh | None = None, int8: bool = False
    ) -> Restorer:
        """Loads a model folder; a bare name that is no folder means one shipped with the package.

        Args:
          folder: from `cotir convert` or from training.
          mesh: devices to use; by default all, with the weights spread over them.
          int8: hold the blocks' kernels as int8 (`quantization.py`; needs qwix).

        Raises:
          ValueError: when there is no such model, it is damaged, or lacks a part.
        """
        path = Path(folder)
        packaged = model_folder.PACKAGED / path.name
        bare = path.name == str(folder) and not (path / "model.json").exists()
        if bare and (packaged.is_dir() or not path.exists()):
            path = packaged
        config = model_folder.load_config(path)
        mesh = mesh or make_mesh({"fsdp": -1})
        rules = RULES
        # The small parts first: what is missing shows before gigabytes are read.
        autoencoder = model_folder.load_autoencoder(path, mesh)
        encoders = load_text_encoders(path, config, mesh, rules)
        restorer = cls(
            model_folder.load_model(path, mesh, rules), autoencoder, encoders, mesh, path
        )
        if int8:
            blocks = quantization.quantize_blocks(restorer.weights[0])
            restorer.weights = blocks, restorer.weights[1]
        return restorer

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
          num_steps: sampling steps; the model's own number by default.
          seed: of the starting noise.
          tile: side in pixels of the largest piece that goes through the program at once, a
            multiple of the patch; 0 for the whole picture. It bounds memory. By default, and for
            models that look at a picture crop by crop (`config.tile`), see `pixels`.
          explain: also compute what was wrong with it.
          match_colour: take the low frequencies from the degraded picture (`colour.py`): against
            colour shifts, and wrong where light or colour are what is to be repaired.
          progress: called with how many of how many calls of the program are done.

        Raises:
          ValueError: for an unreadable picture, another shape or dtype, or an impossible tile.
        """
        return self.group(
            [as_photo(picture)],
            None,
            prompt,
            num_steps=num_steps,
            seed=seed,
            tile=tile,
            explain=explain,
            match_colour=match_colour,
            progress=progress,
        )[0]

    def batch(
        self,
        pictures: Sequence[Picture],
        prompt: str = DEFAULT_PROMPT,
        *,
        tile: int | None = None,
        progress: Progress | None = None,
        **options: Any,
    ) -> list[Restored]:
        """Restores several pictures; those that go through one program share its calls.

        Args are those of a single call; `progress` counts pictures. A picture's result is that of a
        single call with the bucket that `plan` gives its size.
        """
        photos = [as_photo(picture) for picture in pictures]
        done: dict[int, Restored] = {}
        for indices, bucket in self.plan([photo.pixels.shape[:2] for photo in photos], tile):
            group = [photos[index] for index in indices]
            results = self.group(group, bucket, prompt, tile=tile, **options)
            done |= dict(zip(indices, results, strict=True))
            if progress:
                progress(len(done), len(photos))
        return [done[index] for index in range(len(photos))]

    def group(
        self,
        photos: Sequence[Photo],
        bucket: tuple[int, int] | None,
        prompt: str = DEFAULT_PROMPT,
        *,
        num_steps: int | None = None,
        seed: int = 0,
        tile: int | None = None,
        explain: bool = False,
        match_colour: bool = False,
        progress: Progress | None = None,
    ) -> list[Restored]:
        """Restores one of the groups of `plan`; the other arguments are those of a single call."""
        pixels = [photo.pixels for photo in photos]
        if bucket is None:
            results = [
                self.pixels(
                    one, prompt, num_steps=num_steps, seed=seed, tile=tile, progress=progress
                )
                for one in pixels
            ]
        else:
            results = self._whole(pixels, bucket, prompt, num_steps=num_steps, seed=seed)
        return [
            self._finish(photo, result, explain, match_colour)
            for photo, result in zip(photos, results, strict=True)
        ]

    def plan(
        self, sizes: Sequence[tuple[int, int]], tile: int | None = None
    ) -> list[tuple[list[int], tuple[int, int] | None]]:
        """Groups pictures so that few programs are compiled and all devices have work.

        Args:
          sizes: height and width of each picture.
          tile: as in a call.

        Returns:
          Groups: indices into `sizes`, as many as there are devices at most, and the size of the
          program that takes them whole; None for a picture that is restored crop by crop.
        """
        whole = [index for index, size in enumerate(sizes) if not self.crop_side(size, tile)]
        # One program is left for crops where there are any.
        most = tiling.MAX_PROGRAMS - (len(whole) < len(sizes))
        buckets = tiling.choose_buckets(
            [sizes[index] for index in whole], self.config.patch, max_programs=most
        )
        groups: list[tuple[list[int], tuple[int, int] | None]] = []
        waiting: dict[tuple[int, int], list[int]] = {}
        for index, size in enumerate(sizes):
            if self.crop_side(size, tile):
                groups.append(([index], None))
                continue
            bucket = buckets[size]
            waiting.setdefault(bucket, []).append(index)
            if len(waiting[bucket]) == self._parts:
                groups.append((waiting.pop(bucket), bucket))
        return groups + [(indices, bucket) for bucket, indices in waiting.items()]

    def pixels(
        self,
        pixels: np.ndarray,
        prompt: str = DEFAULT_PROMPT,
        *,
        num_steps: int | None = None,
        seed: int = 0,
        tile: int | None = None,
        progress: Progress | None = None,
    ) -> np.ndarray:
        """Restores an array at its own size; nothing is resized.

        A model with `config.tile` looks at overlapping crops of that size, the context that it was
        trained with, whatever `tile` says: attention over more than that would be spread too thin
        (Chu et al. 2022, arXiv 2112.04491, find the same of statistics over whole pictures). Models
        without take a picture whole up to `LARGEST_WHOLE` pixels, mirrored up to a bucket of sizes,
        and larger ones in crops of `LARGE_TILE`.

        Args:
          pixels: uint8 or uint16 `[height, width, 3]`.

        Returns:
          Array of the same shape and dtype.

        Raises:
          ValueError: for another shape or dtype, or an impossible tile.
        """
        check_pixels(pixels)
        if tile is not None and (tile < 0 or tile % self.config.patch):
            raise ValueError(f"tile={tile}: must be 0 or a multiple of {self.config.patch}")
        side = self.crop_side(pixels.shape[:2], tile)
        if not side:
            bucket = tiling.bucket(pixels.shape[:2], self.config.patch)
            return self._whole([pixels], bucket, prompt, num_steps=num_steps, seed=seed)[0]
        half = np.iinfo(pixels.dtype).max / 2
        batch = self._crop_batch(pixels.shape[:2], side, tile)

        def run(crops: np.ndarray, corners: np.ndarray) -> jax.Array:
            return (self._run(crops, corners, prompt, num_steps, seed) + 1) * half

        return tiling.restore_in_tiles(
            pixels, run, tile=side, multiple=self.config.patch, batch=batch, progress=progress
        )

    @property
    def programs(self) -> int:
        """How many programs have been compiled so far."""
        return self._program._cache_size()

    @cached_property
    def explainer(self) -> explain.Explainer:
        """Tells what was wrong with a picture, from the adapter's thoughts."""
        return explain.Explainer.load(self)

    def crop_side(self, size: tuple[int, int], tile: int | None = None) -> int:
        """Side of the crops that a picture of this height and width is restored in; 0: whole."""
        if self.config.tile:
            return self.config.tile
        if tile is None:
            return LARGE_TILE if math.prod(size) > LARGEST_WHOLE else 0
        return tile if max(size) > tile else 0

    def _crop_batch(self, size: tuple[int, int], side: int, tile: int | None) -> int:
        """Crops of one call: a fixed few, or as many as lie in a tile."""
        count = self._crops_per_call
        if self.config.tile and tile is not None:
            sides = size if tile == 0 else (tile, tile)
            count = math.prod(len(tiling.starts(s, side, self.config.patch)) for s in sides)
        return -(-count // self._parts) * self._parts

    def _whole(
        self,
        pictures: Sequence[np.ndarray],
        bucket: tuple[int, int],
        prompt: str,
        *,
        num_steps: int | None,
        seed: int,
    ) -> list[np.ndarray]:
        """Restores pictures whole, mirrored up to `bucket`; at most one for each device."""
        padded = [tiling.mirror(picture, bucket) for picture in pictures]
        padded += padded[-1:] * (self._parts - len(padded))
        tops = [np.iinfo(picture.dtype).max for picture in padded]
        scaled = np.stack([unit_range(picture) for picture in padded])
        out = np.asarray(self._run(scaled, None, prompt, num_steps, seed))
        return [
            np.rint((one[: p.shape[0], : p.shape[1]] + 1) * (top / 2)).astype(p.dtype)
            for p, one, top in zip(pictures, out, tops, strict=False)
        ]

    def _run(
        self,
        pictures: np.ndarray,
        corners: np.ndarray | None,
        prompt: str,
        num_steps: int | None,
        seed: int,
    ) -> jax.Array:
        split = batch_sharding(self.mesh)
        inputs = jax.device_put(
            (unit_range(pictures), *self.texts(prompt, len(pictures)), corners), split
        )
        with jax.set_mesh(self.mesh):
            return self._program(
                self.weights,
                *inputs,
                jax.random.key(seed),
                num_steps=num_steps or self.config.num_steps,
            )

    def texts(self, prompt: str, batch: int) -> tuple[Text, Text | None]:
        """Embeddings of the prompt for each of a batch, and of an empty one where that guides."""
        two_passes = self.config.guidance > 0 and not self.config.guidance_embed
        return self._text(prompt, batch), self._text("", batch) if two_passes else None

    def _encode(self, prompt: str, batch: int) -> Text:
        one = text.encode_prompts(self.encoders, [prompt])
        return jax.tree.map(lambda x: np.repeat(x, batch, axis=0), one)

    def _finish(
        self, photo: Photo, restored: np.ndarray, explain: bool, match_colour: bool
    ) -> Restored:
        thoughts = self.explainer(photo.pixels) if explain else None
        if match_colour:
            restored = colour.match_low_frequencies(restored, photo.pixels)
        return Restored(dataclasses.replace(photo, pixels=restored), thoughts)
