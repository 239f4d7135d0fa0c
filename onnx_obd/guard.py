"""Measured sensitivity: a tensor is spared where it alone would bear most of the damage.

A ranking across tensors is as good as its scale for each of them. Where a tensor is about to be emptied or a depthwise
kernel starved, no second derivative at the present weights knows of it; but it can be measured before it is done.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import Tensor

from onnx_obd.calibration.measure import Calibration
from onnx_obd.errors import NumericalError
from onnx_obd.records import Plan, Saliency
from onnx_obd.surgery.mask import apply_masks, restore

MOST = 8
"""Tensors that are tried, those that lose the largest share: what is about to be emptied is among them."""

SPARED = 1e12
"""Scores of a spared tensor are multiplied by this: it goes last, in its own order."""


def loss_after(calibration: Calibration, keep: Mapping[str, Tensor]) -> float:
    """The measured loss with these masks, infinite if it is not finite; the mirror is left as it was."""
    before = {name: calibration.mirror.weights[name].detach().clone() for name in keep}
    apply_masks(calibration.mirror, keep)
    try:
        return calibration.loss()
    except NumericalError:
        return math.inf
    finally:
        restore(calibration.mirror, before)


def guarded(
    measured: Calibration, confirmed: Calibration, saliency: Saliency, plan_of: Callable[[Saliency], Plan]
) -> Saliency:
    """The scores with those tensors spared whose part of a plan does more damage than all the rest of it.

    Of the tensors that lose a larger share of their weights than the average, ``MOST`` at most, the one that loses most
    first, each is spared if so many deletions elsewhere raise the loss by less than half as much. It is a guard, not an
    optimiser: sparing whatever lowers the loss of a round was measured to make the end no better.

    Args:
        measured: samples by which each is judged, with the mirror's present weights.
        confirmed: samples on which all of it has to lower the loss too.
        plan_of: what would be deleted by given scores.
    """
    found, plan = saliency, plan_of(saliency)
    now, least, unguarded = measured.loss(), loss_after(measured, plan.keep), plan.keep
    for name in _at_risk(measured, plan)[:MOST]:
        trial = replace(found, scores={**found.scores, name: SPARED * found.scores[name]})
        loss = loss_after(measured, plan_of(trial).keep)
        if loss - now < 0.5 * (least - now):
            found, least = trial, loss
    if found is saliency or loss_after(confirmed, plan_of(found).keep) >= loss_after(confirmed, unguarded):
        return saliency
    return found


def _at_risk(calibration: Calibration, plan: Plan) -> list[str]:
    """The tensors that a plan takes more than an even share from, by that share."""
    present = {name: calibration.mirror.weights[name].detach() != 0 for name in plan.keep}
    gone = {name: int((alive & ~plan.keep[name]).sum()) for name, alive in present.items()}
    share = {name: gone[name] / max(1, int(alive.sum())) for name, alive in present.items()}
    even = sum(gone.values()) / max(1, sum(int(alive.sum()) for alive in present.values()))
    return sorted((name for name in share if share[name] > even), key=share.__getitem__, reverse=True)
