"""The order of samples: shares of degradations, a pure function of (seed, sample number)."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from cotir_jax.bench.composites import folder_name

# Apart from each other and from the sample's own random numbers in batches.py.
_ROUNDS, _EPOCHS = 1, 2


def locate(
    number: int, *, seed: int, counts: Sequence[int], shares: tuple[int, ...] = ()
) -> tuple[int, int]:
    """Which sample is the ``number``-th of the endless stream.

    A round has as many samples of each degradation as its share says, one by default, in shuffled
    order. The n-th sample of a degradation follows a new permutation of its samples in each of its
    epochs.

    Args:
        number: global sample number, from 0.
        seed: not negative.
        counts: samples of each degradation, all positive.
        shares: samples of each degradation in a round, all positive; empty for one each.

    Returns:
        The degradation, and the position among its samples.
    """
    shares = shares or (1,) * len(counts)
    turn, place = divmod(number, sum(shares))
    drawn = _round(seed, turn, shares)
    degradation = int(drawn[place])
    before = turn * shares[degradation] + np.count_nonzero(drawn[:place] == degradation)
    epoch, position = divmod(int(before), counts[degradation])
    order = _permutation(seed, degradation, epoch, counts[degradation])
    return degradation, int(order[position])


def shares_of(degradations: Sequence[str], shares: Sequence[tuple[str, int]]) -> tuple[int, ...]:
    """Each degradation's samples in a round.

    Args:
        degradations: folder names, as an index has them.
        shares: (degradation, samples) pairs of ``config.data.shares``; one for what is not named.

    Raises:
        ValueError: an unknown degradation, or less than one sample.
    """
    named = {folder_name(name): count for name, count in shares}
    for name, count in named.items():
        if name not in degradations or count != int(count) or count < 1:
            raise ValueError(
                f"config.data.shares: got {name}: {count}; expected 1 or more samples of one of "
                f"{', '.join(degradations)}, or --config.data.shares='()' for all alike"
            )
    return tuple(int(named.get(name, 1)) for name in degradations)


@lru_cache(maxsize=64)
def _round(seed: int, turn: int, shares: tuple[int, ...]) -> np.ndarray:
    every = np.repeat(np.arange(len(shares)), shares)
    return np.random.default_rng([seed, _ROUNDS, turn]).permutation(every)


@lru_cache(maxsize=128)  # room for every degradation's epoch; an entry may have 1e5 numbers
def _permutation(seed: int, degradation: int, epoch: int, count: int) -> np.ndarray:
    rng = np.random.default_rng([seed, _EPOCHS, degradation, epoch])
    return rng.permutation(count).astype(np.int32)
