"""The order of samples and the choice of prompts, as functions of numbers alone."""

from collections import Counter

import numpy as np
import pytest

from cotir_jax.data.mixing import locate
from cotir_jax.data.prompts import Prompts, choose_prompt, vague_probability


def test_rounds_are_balanced_and_epochs_are_permutations():
    counts = (5, 7, 4)
    drawn = [locate(n, seed=1, counts=counts) for n in range(3 * 5 * 7 * 4)]
    rounds = [tuple(d for d, _ in drawn[at : at + 3]) for at in range(0, len(drawn), 3)]
    assert all(sorted(one) == [0, 1, 2] for one in rounds)
    # 140 rounds, 6 orders: each about 23 times.
    orders = Counter(rounds)
    assert len(orders) == 6 and min(orders.values()) > 8
    for degradation, count in enumerate(counts):
        places = [place for d, place in drawn if d == degradation]
        epochs = [tuple(places[at : at + count]) for at in range(0, len(places), count)]
        assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
        assert len(set(epochs)) > len(epochs) // 3  # of four samples, 24 orders
    assert drawn != [locate(n, seed=2, counts=counts) for n in range(len(drawn))]


def test_a_round_has_each_degradations_share_and_epochs_stay_permutations():
    counts, shares = (5, 7, 4), (1, 3, 2)
    drawn = [locate(n, seed=1, counts=counts, shares=shares) for n in range(6 * 5 * 7 * 4)]
    rounds = [tuple(d for d, _ in drawn[at : at + 6]) for at in range(0, len(drawn), 6)]
    assert all(sorted(one) == [0, 1, 1, 1, 2, 2] for one in rounds)
    assert len(set(rounds)) > 30  # of 60 orders
    for degradation, count in enumerate(counts):
        places = [place for d, place in drawn if d == degradation]
        epochs = [places[at : at + count] for at in range(0, len(places), count)]
        assert all(sorted(epoch) == list(range(count)) for epoch in epochs)


def test_prompt_shares():
    prompts = Prompts(("v0", "v1"), {"snow": ("s0", "s1"), "lost_colour": ("l",), "jpeg-x": ("j",)})

    def shares(vague, degradation="snow", jpeg_type=None):
        rng = np.random.default_rng(0)
        drawn = Counter(
            choose_prompt(rng, prompts, degradation=degradation, questions=("qv", "qp"),
                          jpeg_type=jpeg_type, vague=vague)
            for _ in range(20_000)
        )  # fmt: skip
        return {prompt: count / 20_000 for prompt, count in drawn.items()}

    near = {"abs": 0.015}  # four standard deviations
    assert shares(0.0) == pytest.approx({"s0": 0.35, "s1": 0.35, "qp": 0.3}, **near)
    assert shares(1.0) == pytest.approx({"v0": 0.4, "v1": 0.4, "qv": 0.2}, **near)
    mixed = {"v0": 0.12, "v1": 0.12, "qv": 0.06, "s0": 0.245, "s1": 0.245, "qp": 0.21}
    assert shares(0.3) == pytest.approx(mixed, **near)
    assert shares(0.0, "lost_colour") == pytest.approx({"l": 0.2, "qp": 0.8}, **near)
    assert shares(0.0, jpeg_type="JPEG-X") == pytest.approx({"j": 0.7, "qp": 0.3}, **near)


def test_vague_probability_steps_up():
    schedule = ((0, 0.2), (10, 0.3), (20, 0.4))
    found = [vague_probability(schedule, step) for step in (0, 9, 10, 19, 20, 99)]
    assert found == [0.2, 0.2, 0.3, 0.3, 0.4, 0.4]
