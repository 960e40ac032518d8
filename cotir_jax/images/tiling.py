"""Overlap-add of tiles on the host, and few sizes for pictures that are restored whole.

Tiles are blended under raised-cosine windows that are divided by their sum, so the weights of all
tiles over a pixel add up to one; pictures are mirrored at their lower and right edges until they
are covered by full tiles. Nothing is resized. `models.tiles` does the same on the device.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

# Compiled programs that a folder of pictures may need.
MAX_PROGRAMS = 6

# Part of a tile that it shares with the next one, at least.
_OVERLAP = 0.25
# Steps of the grid of sides per doubling: a side grows by at most a fifth.
_STEPS_PER_OCTAVE = 4
# Sizes that are merged one by one; more of them are put on the grid of `bucket` first.
_MOST_MERGED = 256

Size = tuple[int, int]


def starts(side: int, tile: int, multiple: int) -> list[int]:
    """Spreads tiles evenly along one side; neighbours share a quarter of a tile, or more.

    All lengths are in pixels.

    Returns:
      First pixels of the tiles, ascending multiples of `multiple`. The last tile ends at the side
      rounded up to a multiple; a single tile may end beyond it.

    Raises:
      ValueError: for a tile that is not a multiple.
    """
    if tile <= 0 or tile % multiple:
        raise ValueError(f"tile={tile}: expected a positive multiple of {multiple}")
    last = -(-side // multiple) - tile // multiple
    if last <= 0:
        return [0]
    stride = max(1, math.floor(tile / multiple * (1 - _OVERLAP)))
    gaps = -(-last // stride)
    return [index * last // gaps * multiple for index in range(gaps + 1)]


def blend_weights(begins: Sequence[int], tile: int) -> np.ndarray:
    """Computes the weights of tiles along one side that begin at `begins` and leave no gap.

    Returns:
      float32 `[tiles, tile]`; over every pixel they add up to one.
    """
    window = np.sin((np.arange(tile) + 0.5) * np.pi / tile) ** 2
    total = np.zeros(begins[-1] + tile)
    for begin in begins:
        total[begin : begin + tile] += window
    return np.stack([window / total[begin : begin + tile] for begin in begins]).astype(np.float32)


def mirror(picture: np.ndarray, size: Size) -> np.ndarray:
    """Mirrors `[height, width, ...]` at its lower and right edges up to `size`, however small."""
    grow = [to - side for side, to in zip(picture.shape[:2], size, strict=True)]
    rest = [(0, 0)] * (picture.ndim - 2)
    return np.pad(picture, [(0, grow[0]), (0, grow[1]), *rest], mode="symmetric")


def restore_in_tiles(
    pixels: np.ndarray,
    run: Callable[[np.ndarray, np.ndarray], Any],
    *,
    tile: int,
    multiple: int,
    batch: int,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Restores a picture of any size tile by tile.

    Memory is that of the picture, the result, one row of tiles as float32, and two batches.

    Args:
      pixels: uint8 or uint16 `[height, width, 3]`.
      run: called with tiles `[batch, tile, tile, 3]` in the dtype of `pixels` and their upper left
        corners in pixels, int32 `[batch, 2]` (y, x); returns float `[batch, tile, tile, 3]` on the
        scale of `pixels`. It may return arrays that are still being computed, which are read only
        after the next call. The last batch is filled up with copies of its last tile.
      tile: side of the tiles, a multiple of `multiple`.
      multiple: what all corners are multiples of: the model's patch.
      batch: tiles per call.
      progress: called with how many of how many batches are done.

    Returns:
      Array of the shape and dtype of `pixels`, rounded and clipped.

    Raises:
      ValueError: for an impossible tile or batch.
    """
    if batch < 1:
        raise ValueError(f"batch={batch}: expected at least 1")
    tops, lefts = (starts(side, tile, multiple) for side in pixels.shape[:2])
    corners = np.array([(top, left) for top in tops for left in lefts], np.int32)
    blend = _Blend(np.empty_like(pixels, order="C"), tops, lefts, tile)
    total = -(-len(corners) // batch)
    waiting: tuple[np.ndarray, Any] | None = None
    for number in range(total + 1):
        part = corners[number * batch : (number + 1) * batch]
        following = None
        if len(part):
            full = np.concatenate([part, np.repeat(part[-1:], batch - len(part), axis=0)])
            following = part, run(np.stack([crop(pixels, c, tile) for c in full]), full)
        if waiting is not None:
            for corner, restored in zip(waiting[0], np.asarray(waiting[1]), strict=False):
                blend.add(restored, corner)
            if progress:
                progress(number, total)
        waiting = following
    return blend.finish()


class _Blend:
    """Fills `out`, integers `[height, width, channels]`, with tiles that come row by row.

    The tiles start at `tops` and `lefts`; one row of them is held as float32.
    """

    def __init__(self, out: np.ndarray, tops: Sequence[int], lefts: Sequence[int], tile: int):
        self._out, self._tile, self._top = out, tile, 0
        self._rows = dict(zip(tops, blend_weights(tops, tile), strict=True))
        self._columns = dict(zip(lefts, blend_weights(lefts, tile), strict=True))
        self._band = np.zeros((tile, lefts[-1] + tile, out.shape[2]), np.float32)

    def add(self, restored: np.ndarray, corner: np.ndarray) -> None:
        top, left = (int(c) for c in corner)
        if top > self._top:
            self._emit(top)
        weights = self._rows[top][:, None] * self._columns[left]
        self._band[:, left : left + self._tile] += restored * weights[..., None]

    def finish(self) -> np.ndarray:
        self._emit(self._top + self._tile)
        return self._out

    def _emit(self, until: int) -> None:
        """Writes the rows that no later tile touches, and moves the band down to `until`."""
        height, width = self._out.shape[:2]
        count = until - self._top
        done = self._band[: min(count, height - self._top), :width]
        np.clip(done, 0, np.iinfo(self._out.dtype).max, out=done)
        self._out[self._top : self._top + len(done)] = np.rint(done, out=done)
        self._band[: self._tile - count] = self._band[count:]
        self._band[self._tile - count :] = 0
        self._top = until


def crop(pixels: np.ndarray, corner: Sequence[int], tile: int) -> np.ndarray:
    """Cuts a square of side `tile`; beyond the edges the picture is mirrored, not copied."""
    for axis, begin in enumerate(corner):
        side = pixels.shape[axis]
        index: Any = slice(begin, begin + tile)
        if begin + tile > side:
            index = np.pad(np.arange(side), (0, begin + tile - side), mode="symmetric")[index]
        pixels = pixels[index] if axis == 0 else pixels[:, index]
    return pixels


def bucket(size: Size, multiple: int) -> Size:
    """Returns the size of the program that takes a picture in one piece, so that few serve all.

    Sides are rounded up to multiples of `multiple` on a geometric grid of four steps per doubling:
    none grows by more than a fifth and `multiple`.
    """
    return _up_to_grid(size[0], multiple), _up_to_grid(size[1], multiple)


def choose_buckets(
    sizes: Sequence[Size], multiple: int, max_programs: int = MAX_PROGRAMS
) -> dict[Size, Size]:
    """Chooses few sizes that hold all pictures, with little area added by mirroring.

    Greedy: sizes are rounded up to multiples, then the two groups are merged whose union (the
    larger of both heights by the larger of both widths) adds the least area over all pictures,
    until no more than `max_programs` are left. Hundreds of sizes are first put on the grid of
    `bucket`.

    Args:
      sizes: height and width of each picture; a size that comes several times counts that often.
      multiple: what the sides are multiples of.
      max_programs: how many sizes there may be.

    Returns:
      Size of the program for each of `sizes`.

    Raises:
      ValueError: when no program is allowed.
    """
    if max_programs < 1:
        raise ValueError(f"max_programs={max_programs}: expected at least 1")
    rounded = {size: (_up(size[0], multiple), _up(size[1], multiple)) for size in sizes}
    group = rounded
    if len(set(rounded.values())) > _MOST_MERGED:
        group = {size: bucket(size, multiple) for size in sizes}
    different = sorted(set(group.values()))
    place = {one: index for index, one in enumerate(different)}
    counts = np.bincount([place[group[size]] for size in sizes], minlength=len(different))
    labels = _merge(np.array(different), counts, max_programs)
    members: dict[int, list[Size]] = {}
    for size in rounded:
        members.setdefault(labels[place[group[size]]], []).append(rounded[size])
    buckets = sorted(
        ((max(h for h, _ in sides), max(w for _, w in sides)) for sides in members.values()),
        key=math.prod,
    )
    # The smallest that holds the picture, which need not be that of its own group.
    return {
        size: next(b for b in buckets if b[0] >= height and b[1] >= width)
        for size, (height, width) in rounded.items()
    }


def _merge(groups: np.ndarray, counts: np.ndarray, max_programs: int) -> list[int]:
    """Merges groups of sizes, `[groups, 2]`, until few are left; returns the one each is in."""
    labels = np.arange(len(groups))
    if len(groups) <= max_programs:
        return labels.tolist()
    groups, counts = groups.astype(float), counts.astype(float)

    def added(one: Any) -> np.ndarray:
        """Returns the area that merging group `one` with each of the others adds."""
        own = counts * groups.prod(axis=1)
        both = np.maximum(groups[one], groups).prod(axis=1) * (counts[one] + counts)
        return np.where(counts * (np.arange(len(groups)) != one) > 0, both - own - own[one], np.inf)

    costs = np.stack([added(one) for one in labels])
    for _ in range(len(groups) - max_programs):
        keep, drop = np.unravel_index(np.argmin(costs), costs.shape)
        groups[keep] = np.maximum(groups[keep], groups[drop])
        counts[keep], counts[drop] = counts[keep] + counts[drop], 0
        labels[labels == drop] = keep
        costs[drop] = costs[:, drop] = np.inf
        costs[keep] = costs[:, keep] = added(keep)
    return labels.tolist()


def _up(side: int, multiple: int) -> int:
    return -(-side // multiple) * multiple


def _up_to_grid(side: int, multiple: int) -> int:
    units = -(-side // multiple)
    step = math.floor(math.log2(units) * _STEPS_PER_OCTAVE) - 1
    while (grid := math.ceil(2 ** (step / _STEPS_PER_OCTAVE))) < units:
        step += 1
    return grid * multiple
