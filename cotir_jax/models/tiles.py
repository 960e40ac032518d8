"""Overlap-add on the device: a function applied tile after tile, its results blended.

`images.tiling` does the same with numpy for pictures on the host.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np


def overlap_add(
    function: Callable[[jax.Array, jax.Array], jax.Array],
    x: jax.Array,
    starts: tuple[Sequence[int], Sequence[int]],
    weights: tuple[np.ndarray, np.ndarray],
    *,
    channels: int,
    scale_in: int = 1,
    scale_out: int = 1,
    per_call: int = 1,
) -> jax.Array:
    """Applies a function to overlapping tiles and adds up the weighted results.

    One loop over calls, so the function is compiled once, and memory is that of one call, the
    input and the result.

    Args:
      function: maps tiles `[per_call * batch, height, width, channels of x]`, where `height` is
        `scale_in` times that of a tile, and their corners, int32 `[per_call, 2]` (top, left), to
        `[per_call * batch, height, width, channels]` at `scale_out`.
      x: `[batch, height * scale_in, width * scale_in, channels of x]`.
      starts: where the tiles begin along both sides, in units that the scales multiply.
      weights: of the tiles along both sides, float32 `[tiles, size * scale_out]`; over every
        place they add up to one.
      channels: of the result.
      scale_in: samples of the input for each unit.
      scale_out: samples of the result for each unit.
      per_call: tiles that go through the function at once. The last call is filled up with its
        last tile, at weight 0.

    Returns:
      float32 `[batch, height * scale_out, width * scale_out, channels]`.
    """
    batch, height, width = x.shape[0], x.shape[1] // scale_in, x.shape[2] // scale_in
    tops, lefts = (jnp.asarray(begins, jnp.int32) for begins in starts)
    rows, columns = map(jnp.asarray, weights)
    count = len(tops) * len(lefts)
    tile = [array.shape[1] // scale_out for array in weights]

    def add_call(call: jax.Array, total: jax.Array) -> jax.Array:
        numbers = call * per_call + jnp.arange(per_call)
        row, column = jnp.divmod(jnp.minimum(numbers, count - 1), len(lefts))
        corners = jnp.stack([tops[row], lefts[column]], axis=1)
        size = (batch, tile[0] * scale_in, tile[1] * scale_in, x.shape[3])
        tiles = [jax.lax.dynamic_slice(x, _at(corner, scale_in), size) for corner in corners]
        results = function(jnp.concatenate(tiles), corners).astype(jnp.float32)
        for index, result in enumerate(jnp.split(results, per_call)):
            weight = rows[row[index]][:, None, None] * columns[column[index]][:, None]
            if count % per_call:
                weight = jnp.where(numbers[index] < count, weight, 0)
            corner = _at(corners[index], scale_out)
            before = jax.lax.dynamic_slice(total, corner, result.shape)
            total = jax.lax.dynamic_update_slice(total, before + result * weight, corner)
        return total

    empty = jnp.zeros((batch, height * scale_out, width * scale_out, channels), jnp.float32)
    return jax.lax.fori_loop(0, -(-count // per_call), add_call, empty)


def _at(corner: jax.Array, scale: int) -> tuple[int | jax.Array, ...]:
    return 0, corner[0] * scale, corner[1] * scale, 0


def tile_plan(side: int, largest: int) -> tuple[int, list[int], int]:
    """Cuts one side into overlapping tiles of one size, as few and as small as they can be.

    Args:
      side: length of the side, in latent positions (packed).
      largest: of a tile, at least 4.

    Returns:
      size of the tiles, where each starts, and the least overlap of neighbours (a quarter of
      `largest`, 0 for a single tile).
    """
    if side <= largest:
        return side, [0], 0
    overlap = largest // 4
    count = -(-(side - overlap) // (largest - overlap))
    size = -(-(side + (count - 1) * overlap) // count)
    return size, [i * (side - size) // (count - 1) for i in range(count)], overlap


def tile_weights(side: int, largest: int, scale: int) -> np.ndarray:
    """How much each tile counts at its positions; at every place of the side the sum is 1.

    A tile counts nothing in the outer quarter of the overlap, where the padding of convolutions
    reaches; from there its weight rises smoothly (raised cosine) over half the overlap. The ends of
    the side itself have no such margin.

    Args:
      side: as in `tile_plan`.
      largest: as in `tile_plan`.
      scale: samples for each latent position (1 for latents, the patch for pixels).

    Returns:
      float32 `[tiles, size * scale]`.
    """
    size, starts, overlap = tile_plan(side, largest)
    inside = (np.arange(size * scale) + 0.5) / scale  # distance from the tile's first edge
    weights = np.ones((len(starts), size * scale))
    for index in range(1, len(starts)):
        ramp = np.clip((inside - overlap / 4) / (overlap / 2), 0, 1)
        rise = 0.5 - 0.5 * np.cos(np.pi * ramp)
        weights[index] *= rise
        weights[index - 1] *= rise[::-1]
    total = np.zeros(side * scale)
    for start, weight in zip(starts, weights, strict=True):
        total[start * scale :][: len(weight)] += weight
    for start, weight in zip(starts, weights, strict=True):
        weight /= total[start * scale :][: len(weight)]
    return weights.astype(np.float32)


def in_tiles(
    function: Callable[[jax.Array], jax.Array],
    x: jax.Array,
    *,
    largest: int,
    scale_in: int,
    scale_out: int,
    channels: int,
) -> jax.Array:
    """Applies a function at once, or to tiles of at most `largest` latent positions in turn.

    Args:
      function: `[batch, height * scale_in, width * scale_in, channels of x]` to
        `[batch, height * scale_out, width * scale_out, channels]`.
      x: as the function's argument.
      largest: side of a tile in latent positions, at most; 0: no tiles.
      scale_in: as in `overlap_add`.
      scale_out: as in `overlap_add`.
      channels: of the result.

    Returns:
      float32 `[batch, height * scale_out, width * scale_out, channels]`.
    """
    sides = [side // scale_in for side in x.shape[1:3]]
    if not largest or max(sides) <= largest:
        return function(x)
    return overlap_add(
        lambda tiles, _: function(tiles),
        x,
        tuple(tile_plan(side, largest)[1] for side in sides),
        tuple(tile_weights(side, largest, scale_out) for side in sides),
        channels=channels,
        scale_in=scale_in,
        scale_out=scale_out,
    )
