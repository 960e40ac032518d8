"""The whole restore program as one file that runs with jax and flatbuffers alone (`jax.export`).

    import jax, numpy as np
    restore = jax.export.deserialize(bytearray(open("restore.jax", "rb").read()))
    restored = restore.call(picture, 0)       # uint8 [height, width, 3], seed

jax promises that a file runs for at least six months of later versions, and with those three weeks
older (docs.jax.dev, "Exporting and serializing").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from cotir_jax import files
from cotir_jax.images import tiling
from cotir_jax.models import pipeline
from cotir_jax.restoring.restorer import DEFAULT_PROMPT, Restorer

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
# Crops that go through the model at once.
_MOST_CROPS = 4
# The format's offsets have 31 bits.
_MOST_BYTES = 2**31 - 2**24


def export_program(
    restorer: Restorer,
    path: str | Path,
    size: tuple[int, int],
    prompt: str = DEFAULT_PROMPT,
    num_steps: int | None = None,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
) -> int:
    """Writes a program that restores pictures of one size: weights, prompt and steps are in it.

    It takes a picture, uint8 `[height, width, 3]`, and an int32 seed, and gives the restored
    picture.

    Args:
      restorer: the model; its weights are stored as they are held.
      path: of the file.
      size: height and width of the pictures.
      prompt: what is wrong with them.
      num_steps: sampling steps; the model's own number by default.
      platforms: on which it will run.

    Returns:
      Bytes written.

    Raises:
      ValueError: for weights above 2 GB, an impossible size or an unknown platform.
    """
    unknown = set(platforms) - set(PLATFORMS)
    if unknown or not platforms:
        raise ValueError(f"platforms {sorted(unknown)}: accepted are {', '.join(PLATFORMS)}")
    if min(size) < 1:
        raise ValueError(f"size {size}: expected height and width above 0")
    held = sum(array.nbytes for array in jax.tree.leaves(restorer.weights))
    if held > _MOST_BYTES:
        raise ValueError(
            f"{restorer.config.name} has {held / 1e9:.1f} GB of weights, and the file's format "
            "holds 2 GB; restore with the model folder"
        )
    function = jax.jit(whole_picture_function(restorer, size, prompt, num_steps))
    picture = jax.ShapeDtypeStruct((*size, 3), jnp.uint8)
    seed = jax.ShapeDtypeStruct((), jnp.int32)
    # The weights are constants: they must not lie on a mesh that the other machine lacks.
    exported = jax.export.export(function, platforms=tuple(platforms))(picture, seed)
    data = exported.serialize()
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(path, data)
    return len(data)


def whole_picture_function(
    restorer: Restorer, size: tuple[int, int], prompt: str, num_steps: int | None
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """What `Restorer.pixels` does with pictures of one size, cutting and blending included.

    Returns:
      A pure function of a picture, uint8 `[height, width, 3]`, and a seed.
    """
    weights = jax.tree.map(np.asarray, restorer.weights)
    steps = num_steps or restorer.config.num_steps
    patch, side = restorer.config.patch, restorer.crop_side(size)
    tops, lefts = (tiling.starts(length, side, patch) if side else [0] for length in size)
    corners = np.array([(top, left) for top in tops for left in lefts], np.int32)
    # Full calls alone, so that the program has one copy of the model.
    calls = -(-len(corners) // _MOST_CROPS)
    crops = -(-len(corners) // calls)
    text, empty = restorer.texts(prompt, crops)

    def restore(pictures: jax.Array, corners: jax.Array | None, seed: jax.Array) -> jax.Array:
        key = jax.random.key(seed)
        return restorer.jitted(weights, pictures, text, empty, corners, key, num_steps=steps)

    def whole(picture: jax.Array, seed: jax.Array) -> jax.Array:
        if side:
            restored = _in_crops(pipeline.to_unit_range(picture), restore, seed)
        else:
            bucket = tiling.bucket(size, patch)
            restored = restore(
                _mirrored(pipeline.to_unit_range(picture), bucket)[None], None, seed
            )[0]
        return pipeline.to_uint8(restored[: size[0], : size[1]])

    def _in_crops(picture: jax.Array, restore: Callable, seed: jax.Array) -> jax.Array:
        padded = _mirrored(picture, (tops[-1] + side, lefts[-1] + side))

        def crop(corner: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice(padded, (corner[0], corner[1], 0), (side, side, 3))

        def of_batch(some: jax.Array) -> jax.Array:
            return restore(jax.vmap(crop)(some), some, seed)

        filling = np.repeat(corners[-1:], calls * crops - len(corners), axis=0)
        filled = np.concatenate([corners, filling]).reshape(calls, crops, 2)
        restored = jax.lax.map(of_batch, jnp.asarray(filled))
        restored = restored.reshape(-1, side, side, 3)[: len(corners)]
        rows, columns = (tiling.blend_weights(begins, side) for begins in (tops, lefts))
        windows = rows[:, None, :, None] * columns[None, :, None, :]

        def add(total: jax.Array, part: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
            one, window, corner = part
            start = (corner[0], corner[1], 0)
            before = jax.lax.dynamic_slice(total, start, one.shape)
            return jax.lax.dynamic_update_slice(total, before + one * window, start), None

        parts = restored, jnp.asarray(windows.reshape(-1, side, side, 1)), jnp.asarray(corners)
        return jax.lax.scan(add, jnp.zeros_like(padded), parts)[0]

    return whole


def _mirrored(picture: jax.Array, size: tuple[int, int]) -> jax.Array:
    grow = [(0, to - side) for side, to in zip(picture.shape[:2], size, strict=True)]
    return jnp.pad(picture, [*grow, (0, 0)], mode="symmetric")
