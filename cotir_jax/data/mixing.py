"""The order of samples: balanced over degradations, a pure function of (seed, sample number)."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

# Apart from each other and from the sample's own random numbers in batches.py.
_ROUNDS, _EPOCHS = 1, 2


def locate(number: int, *, seed: int, counts: Sequence[int]) -> tuple[int, int]:
    """Which sample is the ``number``-th of the endless stream.

    Round ``r = number // D`` has one sample of each of the D degradations, in shuffled order. The
    r-th sample of a degradation follows a new permutation of its samples in each of its epochs.

    Args:
        number: global sample number, from 0.
        seed: not negative.
        counts: samples of each degradation, all positive.

    Returns:
        The degradation, and the position among its samples.
    """
    turn, place = divmod(number, len(counts))
    degradation = int(_round(seed, turn, len(counts))[place])
    epoch, position = divmod(turn, counts[degradation])
    order = _permutation(seed, degradation, epoch, counts[degradation])
    return degradation, int(order[position])


@lru_cache(maxsize=64)
def _round(seed: int, turn: int, degradations: int) -> np.ndarray:
    return np.random.default_rng([seed, _ROUNDS, turn]).permutation(degradations)


@lru_cache(maxsize=128)  # room for every degradation's epoch; an entry may have 1e5 numbers
def _permutation(seed: int, degradation: int, epoch: int, count: int) -> np.ndarray:
    rng = np.random.default_rng([seed, _EPOCHS, degradation, epoch])
    return rng.permutation(count).astype(np.int32)
