"""The restore program as one file that runs with only jax and flatbuffers (`jax.export`).

    import jax, numpy as np
    restore = jax.export.deserialize(bytearray(open("restore.jax", "rb").read()))
    restored = restore.call(picture, 0)       # uint8 [height, width, 3], seed

jax promises that versions up to six months later, and up to three weeks older, run a file
(docs.jax.dev, "Exporting and serializing").
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from cotir_jax import files
from cotir_jax.images import tiling
from cotir_jax.models import pipeline
from cotir_jax.models.tiles import overlap_add
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
    """Writes a program that restores pictures of one size; weights, prompt and steps are in it.

    It takes a picture, uint8 `[height, width, 3]`, and an int32 seed, and returns the restored
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
    function = jax.jit(picture_function(restorer, size, prompt, num_steps))
    picture, seed = jax.ShapeDtypeStruct((*size, 3), jnp.uint8), jax.ShapeDtypeStruct((), jnp.int32)
    exported = jax.export.export(function, platforms=tuple(platforms))(picture, seed)
    data = exported.serialize()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(path, data)
    return len(data)


def picture_function(
    restorer: Restorer, size: tuple[int, int], prompt: str, num_steps: int | None
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """What `Restorer.restore_array` does with pictures of one size, on the device.

    Returns:
      A pure function of a picture, uint8 `[height, width, 3]`, and a seed.
    """
    # Constants of the program: they must not refer to a mesh that the other machine lacks.
    weights = jax.tree.map(np.asarray, restorer.weights)
    steps = num_steps or restorer.config.num_steps
    patch, side = restorer.config.patch, restorer.crop_side(size)
    starts = [tiling.starts(length, side, patch) if side else [0] for length in size]
    # Full calls only, so that the program has one copy of the model.
    count = math.prod(map(len, starts))
    per_call = -(-count // -(-count // _MOST_CROPS))
    text, empty = restorer.embed_prompts(prompt, per_call)

    def restore(picture: jax.Array, seed: jax.Array) -> jax.Array:
        def run(pictures: jax.Array, corners: jax.Array | None) -> jax.Array:
            key = jax.random.key(seed)
            return restorer.jitted(weights, pictures, text, empty, corners, key, num_steps=steps)

        ends = [begins[-1] + side for begins in starts] if side else tiling.bucket(size, patch)
        grow = [(0, end - length) for end, length in zip(ends, size, strict=True)]
        mirrored = jnp.pad(pipeline.to_unit_range(picture), [*grow, (0, 0)], mode="symmetric")[None]
        if side:
            windows = tuple(tiling.blend_weights(begins, side) for begins in starts)
            restored = overlap_add(
                run, mirrored, tuple(starts), windows, channels=3, per_call=per_call
            )
        else:
            restored = run(mirrored, None)
        return pipeline.to_uint8(restored[0, : size[0], : size[1]])

    return restore
