"""Restoring pictures: one jitted program on overlapping tiles of one size."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from cotir_jax import partitioning, text
from cotir_jax.checkpoints import model_folder
from cotir_jax.models import pipeline
from cotir_jax.models.autoencoder import Autoencoder, PatchAutoencoder
from cotir_jax.models.transformer import Text, Transformer
from cotir_jax.pictures import list_pictures, load_picture, save_picture, side_by_side
from cotir_jax.restore_split import Restore, restore_listing

DEFAULT_PROMPT = "Please restore this degraded photo."

# Tiles per call of the program: fewer are padded to this, so one program serves every picture.
TILE_BATCH = 4

# XLA's CPU compiler multiplies in float32, and would make a float32 copy of all stacked bfloat16
# weights before the loop over layers: for klein-4b at 512x512, 17 GB of temporaries in place of 2.
_CPU_OPTIONS = {"xla_disable_hlo_passes": "while-loop-invariant-code-motion"}


class Restorer:
    """A model that restores pictures.

    Args:
      model: the transformer.
      autoencoder: of pictures and latents.
      encoders: of prompts.
      mesh: devices that all lie on.
    """

    def __init__(
        self,
        model: Transformer,
        autoencoder: Autoencoder | PatchAutoencoder,
        encoders: text.TextEncoders,
        mesh: Mesh,
    ):
        self.config = model.config
        self.mesh = mesh
        self.encoders = encoders
        graphdef, weights = nnx.split(model)
        # What trains is kept in float32; in a forward pass it is cast to this anyway.
        weights = jax.tree.map(lambda x: x.astype(self.config.dtype), weights)
        autoencoder_graphdef, autoencoder_weights = nnx.split(autoencoder)
        self.weights = weights, autoencoder_weights

        def run(weights, pictures, prompt, empty, key, num_steps):
            return pipeline.restore_pictures(
                nnx.merge(graphdef, weights[0]),
                nnx.merge(autoencoder_graphdef, weights[1]),
                pictures,
                prompt,
                key,
                num_steps,
                empty,
            )

        on_cpu = mesh.devices.flat[0].platform == "cpu"
        self.program = jax.jit(
            run, static_argnames="num_steps", compiler_options=_CPU_OPTIONS if on_cpu else None
        )

    @classmethod
    def load(cls, folder: str | Path = "nano", mesh: Mesh | None = None) -> Restorer:
        """Loads a model folder; a bare name that is no folder means one shipped with the package.

        Args:
          folder: from `cotir convert` or from training.
          mesh: devices to use; by default all, with the weights spread over them.

        Raises:
          ValueError: when there is no such model, it is damaged, or lacks a part.
        """
        path = Path(folder)
        if not path.exists() and path.name == str(folder):
            path = model_folder.PACKAGED / path.name
        config = model_folder.load_config(path)
        mesh = mesh or partitioning.make_mesh({"fsdp": -1})
        rules = partitioning.RULES
        # The small parts first: what is missing shows before gigabytes are read.
        autoencoder = model_folder.load_autoencoder(path, mesh)
        encoders = text.load_text_encoders(path, config, mesh, rules)
        return cls(model_folder.load_model(path, mesh, rules), autoencoder, encoders, mesh)

    def __call__(
        self,
        picture: np.ndarray,
        prompt: str = DEFAULT_PROMPT,
        *,
        num_steps: int | None = None,
        key: jax.Array | None = None,
        tile: int | None = None,
    ) -> np.ndarray:
        """Restores one picture at its own size.

        Args:
          picture: uint8 `[height, width, 3]`.
          prompt: what is wrong with it, in words.
          num_steps: sampling steps; the model's own number by default.
          key: of the starting noise; `jax.random.key(0)` by default.
          tile: side of the tiles in pixels, a multiple of the patch; 0 for the whole picture.

        Returns:
          uint8 `[height, width, 3]`.

        Raises:
          ValueError: for another shape or dtype, or an impossible tile.
        """
        if picture.ndim != 3 or picture.shape[-1] != 3 or picture.dtype != np.uint8:
            raise ValueError(
                f"picture {picture.shape} {picture.dtype}: expected uint8 [height, width, 3]"
            )
        tile = self.config.tile if tile is None else tile
        if tile < 0 or tile % self.config.patch:
            raise ValueError(f"tile={tile}: must be 0 or a multiple of {self.config.patch}")
        height, width = picture.shape[:2]
        patch = self.config.patch
        shape = (tile, tile) if tile else (_up(height, patch), _up(width, patch))
        padded = _pad(picture, shape)
        tiles, corners = _cut(padded, shape)
        key = jax.random.key(0) if key is None else key
        restored = self._run(tiles, prompt, num_steps or self.config.num_steps, key)
        return _blend(restored, corners, padded.shape)[:height, :width]

    def _run(self, tiles: np.ndarray, prompt: str, num_steps: int, key: jax.Array) -> np.ndarray:
        batch = min(TILE_BATCH, len(tiles)) if self.config.tile == 0 else TILE_BATCH
        guided = self.config.guidance > 0 and not self.config.guidance_embed
        prompts = self._texts(prompt, batch), self._texts("", batch) if guided else None
        results = []
        with jax.set_mesh(self.mesh):
            for start in range(0, len(tiles), batch):
                part = tiles[start : start + batch]
                missing = batch - len(part)
                full = np.concatenate([part, np.repeat(part[-1:], missing, axis=0)])
                out = self.program(self.weights, full, *prompts, key, num_steps=num_steps)
                results.append(np.asarray(out)[: len(part)])
        return np.concatenate(results)

    def _texts(self, prompt: str, batch: int) -> Text:
        one = text.encode_prompts(self.encoders, [prompt])
        return jax.tree.map(lambda x: np.repeat(x, batch, axis=0), one)


def restore_path(
    restorer: Restore,
    source: Path,
    out: Path,
    prompt: str = DEFAULT_PROMPT,
    *,
    num_steps: int | None = None,
    seed: int = 0,
    tile: int | None = None,
    compare: bool = False,
) -> Iterator[str]:
    """Restores a picture or a folder of pictures.

    Args:
      restorer: a `Restorer`, or a function that is called like one.
      source: picture file or folder.
      out: a file name for a single picture, or a folder; it is made where needed.
      seed: of the starting noise.
      compare: write degraded and restored side by side instead of the restored picture.

    Yields:
      A line per picture.

    Raises:
      ValueError: for an unreadable single picture, or after the last one of a folder when some
        could not be read.
    """
    source, out = Path(source), Path(out)
    single = source.is_file()
    failed, key = [], jax.random.key(seed)
    paths = [source] if single else list_pictures(source)
    for path in paths:
        target = out if single and out.suffix else out / f"{path.stem}.png"
        try:
            picture = load_picture(path)
        except ValueError as error:
            if single:
                raise
            failed.append(path.name)
            yield f"skipped {error}"
            continue
        restored = restorer(picture, prompt, num_steps=num_steps, key=key, tile=tile)
        save_picture(side_by_side([picture, restored]) if compare else restored, target)
        yield f"{path.name} {picture.shape[1]}x{picture.shape[0]} -> {target}"
    if failed:
        raise ValueError(f"{len(failed)} of {len(paths)} pictures could not be read: {failed[:5]}")


def restore_test_split(
    restorer: Restore,
    test: Path,
    out: Path,
    prompts: str,
    num_steps: int | None = None,
    part: tuple[int, int] = (0, 1),
) -> Iterator[str]:
    """Restores a benchmark's test split (`test.jsonl`) into `out/<prompts>/`.

    Args:
      test: folder with `test.jsonl` and `lq/`.
      out: results folder.
      prompts: "vague" or "precise".
      num_steps: sampling steps; the model's own number by default.
      part: which of how many parts of the split: processes share it.

    Yields:
      A line per picture.

    Raises:
      ValueError: for a missing or damaged split.
    """
    yield from restore_listing(
        restorer,
        Path(test) / "test.jsonl",
        Path(out) / prompts,
        prompts,
        part=part,
        num_steps=num_steps,
    )


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _pad(picture: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Mirrors the lower and right edges until at least `shape`; nothing is resized."""
    grow = [max(0, size - side) for side, size in zip(picture.shape[:2], shape, strict=True)]
    return np.pad(picture, ((0, grow[0]), (0, grow[1]), (0, 0)), mode="symmetric")


def _starts(side: int, tile: int) -> list[int]:
    """Tile starts that overlap by at least a quarter and end at the edge."""
    if side <= tile:
        return [0]
    count = 1 + -(-(side - tile) // (tile - tile // 4))
    return [round(index * (side - tile) / (count - 1)) for index in range(count)]


def _cut(picture: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, list[tuple[int, int]]]:
    height, width = shape
    corners = [
        (top, left)
        for top in _starts(picture.shape[0], height)
        for left in _starts(picture.shape[1], width)
    ]
    tiles = [picture[top : top + height, left : left + width] for top, left in corners]
    return np.stack(tiles), corners


def _blend(tiles: np.ndarray, corners: list[tuple[int, int]], shape: tuple[int, ...]) -> np.ndarray:
    """Averages overlapping tiles under a smooth window, so that no edge shows."""
    height, width = tiles.shape[1:3]
    window = (_window(height)[:, None] * _window(width))[..., None]
    total = np.zeros(shape, np.float32)
    weight = np.zeros((*shape[:2], 1), np.float32)
    for tile, (top, left) in zip(tiles, corners, strict=True):
        total[top : top + height, left : left + width] += tile * window
        weight[top : top + height, left : left + width] += window
    return np.round(total / weight).astype(np.uint8)


def _window(size: int) -> np.ndarray:
    return np.sin((np.arange(size) + 0.5) * np.pi / size).astype(np.float32) ** 2 + 1e-3
