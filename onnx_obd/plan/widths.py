"""How many units of each family go: least loss for the time that is to be gained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import inf, isfinite


@dataclass(frozen=True)
class Offer:
    """What a family of units has to give.

    Attributes:
        losses: of each unit that is left, what the loss rises by without it.
        gains: number of units left -> microseconds gained if the dearest so many are kept.
    """

    losses: Sequence[float]
    gains: Mapping[int, float]

    def hull(self) -> list[tuple[float, float, int]]:
        """(microseconds gained, loss, units left) along the lower convex hull from (0, 0), as it is on the way down."""
        ascending = sorted(self.losses)
        loss_of = [0.0, *accumulate(ascending)]
        lost = {left: loss_of[len(ascending) - left] for left in self.gains}
        points = [(gain, lost[left], left) for left, gain in self.gains.items() if gain > 0 and isfinite(lost[left])]
        corners = [(0.0, 0.0, len(ascending))]
        for point in sorted(points, key=lambda each: (each[0], -each[1])):
            while len(corners) > 1 and _slope(corners[-2], corners[-1]) >= _slope(corners[-2], point):
                corners.pop()
            if point[0] > corners[-1][0]:
                corners.append(point)
        return corners


def _slope(a: tuple[float, float, int], b: tuple[float, float, int]) -> float:
    return (b[1] - a[1]) / (b[0] - a[0]) if b[0] > a[0] else inf


def choose_sizes(offers: Mapping[int, Offer], aim: float) -> dict[int, int]:
    """Family -> units left, for those that lose some: until ``aim`` microseconds are gained or nothing can be gained.

    Along the convex hulls, the cheapest microseconds of all families first. That is optimal for the time it gains,
    which is ``aim`` or, by the last step along one hull, more (the fractional multiple-choice knapsack; Sinha, Zoltners
    1979). Gains of several families are taken to add up.
    """
    steps = [
        (_slope(a, b), b[0] - a[0], family, b[2])
        for family, offer in offers.items()
        for corners in [offer.hull()]
        for a, b in pairwise(corners)
    ]
    chosen: dict[int, int] = {}
    for _, gain, family, left in sorted(steps):
        if aim <= 0:
            break
        chosen[family], aim = left, aim - gain
    return chosen


def fewer(offers: Mapping[int, Offer], sizes: Mapping[int, int], least: float) -> dict[int, Offer]:
    """The offers without those that take as much of a family as ``sizes`` do, or gain less than ``least``."""
    return {
        f: Offer(offer.losses, {left: g for left, g in offer.gains.items() if left > sizes.get(f, 0) and g >= least})
        for f, offer in offers.items()
    }
