"""Refitting what survives: least squares of every node's output to what it was in the original.

In graph order, so that a node is fitted to the inputs it now gets (X of the pruned network, Y0 of the original). A
refit is a change d of the surviving weights and of a bias,

    d[r] = argmin |X_S d - (Y0 - Y)[r]|^2 + ridge |d|^2,   S = the surviving weights of row r,

and least squares on one node's output is not the loss: it is taken at step length 1, 1/2 or 1/4, or not at all,
whichever is the first that lowers the loss on samples it was not fitted to. With several ridges the one counts after
whose change that loss is lowest: the fewer samples and the more survivors, the more of it is needed.

Source: the surgeon's compensating update (Hassibi, Stork 1993) with the original's output for target, as in layer-wise
reconstruction (Dong, Chen, Pan 2017; Frantar, Alistarh 2022); acceptance by measured loss is ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from onnx_obd.calibration.measure import Calibration
from onnx_obd.errors import NumericalError
from onnx_obd.mirror.mirror import Mirror
from onnx_obd.surgery.gram import NormalEquations, column_blocks, normal_equations
from onnx_obd.surgery.least_squares import RIDGE, solve_supported
from onnx_obd.surgery.mask import restore
from onnx_obd.surgery.operands import Operand
from onnx_obd.surgery.walk import Walk

STEPS = (1.0, 0.5, 0.25)
"""Tried in this order; each is half of the one before."""


@dataclass(frozen=True)
class Refit:
    """What became of one weight's refit: the accepted step length, 0 if none; ``reason`` if it was not tried."""

    name: str
    step: float
    loss_before: float
    loss_after: float
    reason: str = ""


def compensate(
    fitting: Calibration,
    acceptance: Calibration,
    operands: list[Operand],
    original: Mapping[str, Tensor],
    keep: Mapping[str, Tensor],
    *,
    ridges: Sequence[float] = (RIDGE,),
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Refit]:
    """Refit the surviving weights of all operands in graph order, in place; deleted weights stay exactly zero.

    Args:
        fitting, acceptance: samples to fit on and to accept by; the loss on the second never rises.
        operands: in graph order (``find_operands``).
        original: the original weights.
        keep: masks of the prunable weights.
        ridges: to try, as fractions of the mean of the Gram matrix's diagonal.
    """
    mirror, found = fitting.mirror, []
    generator = torch.Generator().manual_seed(seed)
    present, teacher, judge = Walk(fitting), Walk(fitting, original), Walk(acceptance)
    loss = judge.loss()
    for number, operand in enumerate(operands, 1):
        for columns in column_blocks(operand.elements.shape[2]):
            equations = normal_equations(present, teacher, operand, columns, generator)
            # With several ridges the strong ones are for this case, and the loss decides whether any of them is enough.
            reason = _too_few(equations, operand, keep) if len(ridges) == 1 else ""
            before, step = loss, 0.0
            if not reason:
                measure = partial(_loss_with, judge, operand)
                several = [_changes(mirror, operand, equations, keep, ridge) for ridge in ridges]
                changes, full = _best(mirror, several, measure)
                step, loss = accept(mirror, changes, measure, loss, full)
                for walk in (present, judge):
                    walk.changed(changes)
            found.append(Refit(operand.name, step, before, loss, reason))
        if progress:
            progress(number, len(operands))
    return found


def _too_few(equations: NormalEquations, operand: Operand, keep: Mapping[str, Tensor]) -> str:
    """Why there is too little data; empty if there is a position for every surviving weight of the average row."""
    alive = operand.matrix(keep[operand.name])[..., equations.columns].sum(-1).double().mean()
    if equations.positions >= alive:
        return ""
    return f"{equations.positions} positions for {alive:.0f} weights per output"


def _best(
    mirror: Mirror, found: Sequence[dict[str, Tensor]], measure: Callable[[], float]
) -> tuple[dict[str, Tensor], float | None]:
    """Of several changes the one after which the loss is lowest, and that loss; of one, nothing is measured.

    The mirror is left as it was.
    """
    if len(found) == 1:
        return found[0], None
    before = {name: mirror.weights[name].detach().clone() for name in found[0]}
    losses = []
    for changes in found:
        restore(mirror, {name: before[name] + change for name, change in changes.items()})
        losses.append(_finite(measure))
    restore(mirror, before)
    best = min(range(len(found)), key=losses.__getitem__)
    return found[best], losses[best]


def _changes(
    mirror: Mirror, operand: Operand, equations: NormalEquations, keep: Mapping[str, Tensor], ridge: float
) -> dict[str, Tensor]:
    """The refit as changes of parameters."""
    weight, columns = mirror.weights[operand.name], equations.columns
    alive = operand.matrix(keep[operand.name])
    change = torch.zeros(alive.shape, dtype=torch.float64)
    support = alive[..., columns]
    if operand.shift is not None:
        support = torch.cat((support, torch.ones_like(support[..., :1])), -1)
    solution = solve_supported(equations.gram, equations.moments.mT, support, ridge)
    width = columns.stop - columns.start
    change[..., columns] = solution[..., :width]
    found = {operand.name: operand.unmatrix(change, weight)}
    if operand.shift is not None:
        shift = operand.shift
        bias = mirror.weights[shift.name]
        flat = torch.zeros(bias.numel(), dtype=bias.dtype)
        flat[shift.elements.reshape(-1)] = (shift.factor * solution[..., width]).reshape(-1).to(bias.dtype)
        found[shift.name] = flat.reshape(bias.shape)
        if shift.name in keep:
            found[shift.name] = found[shift.name] * keep[shift.name]
    return found


def accept(
    mirror: Mirror,
    changes: Mapping[str, Tensor],
    measure: Callable[[], float],
    loss: float,
    full: float | None = None,
) -> tuple[float, float]:
    """Make changes at the first step length that lowers the loss; (step length, loss), or (0, the loss before).

    A shorter step is not tried where the loss rises from the start on: with the rises a after a step and b after half
    of it, the parabola through both and zero has there the slope 4 b - a per step.

    Args:
        full: the loss after the full step, if it was measured already.
    """
    rise, before = math.inf, {name: mirror.weights[name].detach().clone() for name in changes}
    for step in STEPS:
        restore(mirror, {name: before[name] + step * change for name, change in changes.items()})
        now = _finite(measure) if full is None else full
        if now < loss:
            return step, now
        if math.isfinite(rise) and 4 * (now - loss) >= rise:
            break
        full, rise = None, now - loss
    restore(mirror, before)
    return 0.0, loss


def _loss_with(walk: Walk, operand: Operand) -> float:
    """The loss after an operand's weights were changed, which matters at its node and behind it only."""
    walk.changed([operand.name, *([operand.shift.name] if operand.shift else [])])
    return walk.loss(operand.output)


def _finite(measure: Callable[[], float]) -> float:
    try:
        found = measure()
    except NumericalError:
        return math.inf
    return found if math.isfinite(found) else math.inf
