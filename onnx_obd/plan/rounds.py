"""Deletion in rounds: how much goes in each, by pools of weights or under an n:m pattern."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from onnx_obd.plan.elementwise import plan_elements
from onnx_obd.plan.nm import Pattern, restrict
from onnx_obd.plan.scope import Pool, plan_pools
from onnx_obd.records import Plan, Saliency

ROUNDS = 12
"""More are worth little (docs/benchmarks.md)."""

FEWEST_ROUNDS = 3
"""Where they take long."""

BYTES_OF_ROUNDS = 30e9
"""Of all values that the nodes make of the samples in all rounds, about: a few minutes on one core."""


def default_rounds(value_bytes: int) -> int:
    """In how many rounds to delete if nobody says.

    Args:
        value_bytes: of all values of one run of all samples.
    """
    return min(ROUNDS, max(FEWEST_ROUNDS, round(BYTES_OF_ROUNDS / max(1, value_bytes))))


@dataclass(frozen=True)
class Rounds:
    """The plans of ``count`` rounds.

    Attributes:
        pools: what is ranked against what, and the sparsity in the end.
        start: the masks of the zeros that the original has.
        pattern: the n:m pattern that decides what may go, instead of the pools.
        axes: the axis of the pattern for each weight that gets it.
    """

    count: int
    pools: Sequence[Pool]
    start: Mapping[str, Tensor]
    pattern: Pattern | None = None
    axes: Mapping[str, int] = field(default_factory=dict)

    def plan(self, number: float, saliency: Saliency, keep: Mapping[str, Tensor]) -> Plan:
        """The plan of round ``number``, from 1, or half-way between two; what ``keep`` has deleted stays deleted.

        Rounds after the last are planned like the last: at the final sparsity.
        """
        index = round(2 * min(number, self.count)) - 1
        if self.pattern is None:
            targets = [pool.targets(2 * self.count, self.start)[index] for pool in self.pools]
            return plan_pools(saliency, self.pools, targets, keep)
        restricted, sparsity = restrict(saliency, self.pattern, self.axes, keep)
        everything = Pool(tuple(saliency.scores), sparsity)
        return plan_elements(restricted, everything.targets(2 * self.count, self.start)[index], keep)
