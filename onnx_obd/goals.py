"""Deletion towards a goal other than a sparsity, along one path: no second derivative is computed twice.

What is judged at every step of the way is what would be shipped: the repaired model, where repair is asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial

from torch import Tensor

from onnx_obd.candidates import (
    UNITS_ALONE,
    Candidate,
    candidate,
    losses,
    measured_round,
    original_masks,
    planned_rounds,
    rank,
)
from onnx_obd.errors import UsageError
from onnx_obd.export import exported_size
from onnx_obd.plan.elementwise import schedule
from onnx_obd.plan.targets import RESOLUTION, Goal, furthest
from onnx_obd.records import Plan, Saliency
from onnx_obd.repair import REPAIRED, refit_survivors
from onnx_obd.run import Run
from onnx_obd.surgery.mask import apply_masks, restore, snapshot

FURTHEST = 0.995
"""The sparsity of the last round."""

STEPS = 2
"""To there, so many times the rounds: of 24 each deletes a fifth of what is left."""


PROVENANCE = 2048
"""Bytes to keep free in a file of a wanted size for the note of where it came from."""


def prune_towards(run: Run, method: str, goal: Goal) -> Candidate:
    """Delete in rounds as far as the goal allows, or until it is met.

    In the round that oversteps, the sparsity is bisected with that round's scores. The mirror is left with the result,
    repaired where that is asked for.

    Raises:
        UsageError: the file cannot come below the size asked for.
    """
    start = time.perf_counter()
    restore(run.mirror, run.original)
    loss, history = losses(run), []
    plan, room = Plan(original_masks(run), 0.0), True
    room_left, name = _test(run, goal), f"{method}{REPAIRED}" if run.options.repair else method
    steps = STEPS * run.options.rounds
    for number, end in enumerate(schedule(FURTHEST, steps), 1):
        if not room or end <= plan.sparsity:
            continue
        began = time.perf_counter()
        saliency = rank(run, method, number, steps, run.mirror.weights, partial(_plan, run, end, plan.keep))
        attempt = _attempts(run, saliency, plan.keep, name)
        plan, low = attempt(end), plan.sparsity
        room = room_left(plan)
        if not room:
            low = furthest(lambda sparsity, attempt=attempt: room_left(attempt(sparsity)), low, end)
            plan = attempt(low if goal.limits_damage else low + RESOLUTION)
        after = losses(run)
        history.append(measured_round(plan, loss, after, began))
        loss = after
    if room and goal.target_size is not None:
        raise UsageError(f"at {plan.sparsity:.1%} sparsity the file is still larger than {goal.target_size} bytes")
    return candidate(run, name, plan, history, start)


def meets_goal(run: Run, each: Candidate) -> bool:
    """Is a candidate within the goal of the run, if there is one? The mirror is left with its weights.

    How many units go within a goal the search for them has settled; training does not change that.
    """
    goal = run.options.goal
    if goal is None or each.quality.method.startswith(UNITS_ALONE):
        return True
    restore(run.mirror, each.weights)
    return _small_enough(run, goal) if goal.target_size is not None else goal.allows(each.quality, run.original_quality)


def _test(run: Run, goal: Goal) -> Callable[[Plan], bool]:
    """Given a plan that was carried out: may more be deleted?"""
    if goal.target_size is not None:
        return lambda _: not _small_enough(run, goal)
    return lambda plan: goal.allows(candidate(run, "", plan, [], time.perf_counter()).quality, run.original_quality)


def _small_enough(run: Run, goal: Goal) -> bool:
    note = {"": " " * PROVENANCE}
    return exported_size(run.model, run.changed_weights(), run.options.format, note) <= goal.target_size


def _plan(run: Run, sparsity: float, keep: Mapping[str, Tensor], saliency: Saliency) -> Plan:
    return planned_rounds(run, sparsity, 1, keep).plan(1, saliency, keep)


def _attempts(run: Run, saliency: Saliency, keep: Mapping[str, Tensor], name: str) -> Callable[[float], Plan]:
    """Given a sparsity: delete so much with these scores, from where the mirror stands now, and repair it if asked."""
    before = snapshot(run.mirror)

    def attempt(sparsity: float) -> Plan:
        restore(run.mirror, before)
        plan = _plan(run, sparsity, keep, saliency)
        apply_masks(run.mirror, plan.keep)
        if run.options.repair:
            refit_survivors(run, plan.keep, name)
        return plan

    return attempt
