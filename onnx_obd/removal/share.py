"""A given share of the units removed, the cheapest of all first; which units of a family these are; what is left."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from onnx_obd.plan.widths import Offer
from onnx_obd.removal.thinning import Thinned, Thinning
from onnx_obd.removal.time_of_sizes import liked_multiple

ROUNDS = 8
"""Steps in which a given share of the units goes; the curvature is estimated anew in each."""

Ascending = Mapping[int, list[int]]
"""Family -> the ids of its units that are left, from the one with the lowest loss on."""


@dataclass(frozen=True)
class Offers:
    """What can be had from a state: the time of one run of it, the units, and the offers of the families."""

    microseconds: float
    ascending: Ascending
    families: Mapping[int, Offer]


def ascending_in(thinning: Thinning, state: Thinned, losses: Mapping[int, float]) -> Ascending:
    left = thinning.left(state.gone)
    return {f: sorted((unit.id for unit in units), key=losses.__getitem__) for f, units in left.items()}


def going_to(ascending: Ascending, sizes: Mapping[int, int]) -> list[int]:
    """The cheapest units of each family, so many that ``sizes`` are left."""
    return [unit for f, left in sizes.items() for unit in ascending[f][: len(ascending[f]) - left]]


def without_share(thinning: Thinning, share: float) -> Thinned:
    """Without that share of all units, up to what kernels like: a ragged size can be slower than the whole."""
    total = len(thinning.units.units)

    def sizes(ascending: Ascending, losses: Mapping[int, float], part: float) -> Mapping[int, int]:
        gone = total - sum(map(len, ascending.values()))
        left = _cheapest(ascending, losses, round(share * total * part) - gone)
        return _in_multiples(thinning, ascending, losses, left)

    return in_rounds(thinning, sizes)


def in_rounds(
    thinning: Thinning, sizes: Callable[[Ascending, Mapping[int, float], float], Mapping[int, int]]
) -> Thinned:
    """The cheapest units removed in ``ROUNDS`` steps, the loss of each estimated anew in every one.

    Args:
        sizes: of the units that are left, their losses and the part of the way that is to be done: how many are to be
            left of each family.
    """
    run, state = thinning.run, thinning.whole
    for number in range(1, ROUNDS + 1):
        with run.progress.stage(f"removing units: round {number} of {ROUNDS}") as report:
            losses = thinning.losses(state, report)
            ascending = ascending_in(thinning, state, losses)
            going = going_to(ascending, sizes(ascending, losses, number / ROUNDS))
            state = thinning.without(state, going, report) if going else state
        if run.options.retrain_epochs:
            state = thinning.trained(state, None, run.options.retrain_epochs)
    return state


def _cheapest(ascending: Ascending, losses: Mapping[int, float], count: int) -> dict[int, int]:
    """What is left of each family when so many units are gone, the cheapest of all first, one of each staying."""
    left = {family: len(units) for family, units in ascending.items()}
    family_of = {unit: family for family, units in ascending.items() for unit in units}
    for unit in sorted(family_of, key=losses.__getitem__):
        if count > 0 and left[family_of[unit]] > 1 and math.isfinite(losses[unit]):
            left[family_of[unit]] -= 1
            count -= 1
    return left


def _in_multiples(
    thinning: Thinning, ascending: Ascending, losses: Mapping[int, float], sizes: Mapping[int, int]
) -> dict[int, int]:
    """The nearest sizes that kernels like: a few units more or fewer of each; those of infinite loss stay."""
    rounded = {}
    for family, units in ascending.items():
        multiple = liked_multiple(len(thinning.families[family]))
        least = max(1, sum(not math.isfinite(losses[unit]) for unit in units))
        liked = (sizes[family] + multiple // 2) // multiple * multiple
        rounded[family] = min(len(units), max(least, liked))
    return rounded


def told_units(thinning: Thinning, state: Thinned) -> str:
    """How many units went, and how many are left of each family."""
    families = thinning.left(state.gone)
    parts = [
        f"{thinning.families[family][0].kind} {len(units)} of {len(thinning.families[family])}"
        for family, units in families.items()
        if len(units) < len(thinning.families[family])
    ]
    flushed = f"; {thinning.subnormal} subnormal weights set to zero" if thinning.subnormal else ""
    return f"units removed: {len(state.gone)} of {len(thinning.units.units)}; left: {_briefly(parts)}{flushed}"


def _briefly(parts: Sequence[str], most: int = 12) -> str:
    more = f" and {len(parts) - most} more" if len(parts) > most else ""
    return (", ".join(parts[:most]) + more) if parts else "all"
