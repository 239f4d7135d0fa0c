"""Sizes chosen along convex hulls, against all combinations."""

import itertools

import numpy as np
import pytest

from onnx_obd.plan.widths import Offer, choose_sizes


def offers(seed):
    rng = np.random.default_rng(seed)
    found = {}
    for family in range(4):
        count = int(rng.integers(3, 7))
        gains = {left: float(rng.normal(count - left, 0.7)) for left in range(1, count)}
        found[family] = Offer(rng.exponential(size=count).tolist(), gains)
    return found


def total(offers, left):
    pairs = [(offers[f].gains[n], sum(sorted(offers[f].losses)[: len(offers[f].losses) - n])) for f, n in left.items()]
    return tuple(map(sum, zip(*pairs, strict=True))) if pairs else (0.0, 0.0)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("aim", [0.5, 3.0, 6.0])
def test_nothing_that_gains_as_much_loses_less(seed, aim):
    given = offers(seed)
    chosen = choose_sizes(given, aim)
    gain, loss = total(given, chosen)
    assert gain >= aim
    choices = [[None, *offer.gains] for offer in given.values()]
    for combination in itertools.product(*choices):
        other = total(given, {f: n for f, n in enumerate(combination) if n is not None})
        assert other[0] < gain - 1e-9 or other[1] >= loss - 1e-9


def test_what_gains_nothing_stays():
    given = {0: Offer([0.0, 0.0, 0.0], {1: -1.0, 2: 0.0}), 1: Offer([5.0, 6.0, 7.0], {1: 3.0, 2: 1.0})}
    assert choose_sizes(given, 10.0) == {1: 1}


def test_what_nothing_can_be_said_of_stays():
    inf = float("inf")
    assert choose_sizes({0: Offer([inf, inf], {1: 5.0}), 1: Offer([1.0, inf], {1: 1.0})}, 10.0) == {1: 1}


def test_sizes_between_which_no_time_is_gained_are_passed_over():
    flat = Offer([1.0] * 8, {7: 0.1, 6: 0.1, 5: 0.2, 4: 4.0, 2: 4.2})
    assert choose_sizes({0: flat}, 0.1) == {0: 4}
