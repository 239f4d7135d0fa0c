"""Which variant is shipped: the method asked for or the control, by what they do on the held-back samples."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from onnx_obd.candidates import UNITS_ALONE, Candidate, candidate, original_masks, prune_by, repair
from onnx_obd.errors import NumericalError
from onnx_obd.goals import meets_goal, prune_towards
from onnx_obd.records import Plan
from onnx_obd.run import Run
from onnx_obd.surgery.mask import restore

CONTROL = "magnitude"
"""What is always measured beside the chosen method."""

RIVALS = {"auto": "obs"}
"""What a method of many readings of the diagonal is measured against too: what knows how weights make up for others."""


def choose(run: Run) -> tuple[Candidate, list[Candidate]]:
    """The method asked for, its rival if it has one, and the control, and which is the best that the goal allows.

    The mirror is left with the best.
    """
    options = run.options
    goal = options.goal
    if run.before is not None and options.units_alone:
        first = candidate(run, UNITS_ALONE, Plan(original_masks(run), None), [], time.perf_counter())
        return first, [first]
    if goal is None:
        first = prune_by(run, options.method, options.sparsity, options.rounds, repaired=options.repair)
    else:
        first = prune_towards(run, options.method, goal)
    candidates = [first]
    if options.method in RIVALS:
        rival = RIVALS[options.method]
        other = prune_by(run, rival, first.plan.sparsity, options.rounds, repaired=options.repair, foretold=False)
        candidates.append(other)
    if options.method != CONTROL or options.repair:
        control = prune_by(run, CONTROL, first.plan.sparsity, 1, foretold=False)
        candidates.append(control)
        if options.method != CONTROL and options.repair:
            candidates.append(repair(run, control))
    return best_of(run, candidates), candidates


def best_of(run: Run, candidates: Sequence[Candidate]) -> Candidate:
    """The best on the held-back samples among those that the goal allows (the first is taken to be one).

    Of class predictions, first those count whose accuracy (without labels: agreement with the original) cannot be told
    from the highest: a loss can look better than the classes do. Among these the lowest loss decides.

    Raises:
        NumericalError: its loss is not finite.
    """
    allowed = [each for each in candidates[1:] if meets_goal(run, each)]
    best = min(_most_accurate([candidates[0], *allowed], run.held_back.num_samples), key=lambda each: each.quality.loss)
    if not math.isfinite(best.quality.loss):
        raise NumericalError("the pruned model's loss is not finite")
    restore(run.mirror, best.weights)
    return best


def _most_accurate(candidates: Sequence[Candidate], num_samples: int) -> list[Candidate]:
    """Those within two standard errors of the highest accuracy; all if there are no classes.

    The standard error of Agresti and Coull (1998), sqrt(p (1 - p) / (n + 4)) with p = (right + 2) / (n + 4), is not
    zero where all samples are right.
    """

    def accuracy(each: Candidate) -> float | None:
        return each.quality.agreement if each.quality.accuracy is None else each.quality.accuracy

    known = [accuracy(each) for each in candidates]
    if None in known:
        return list(candidates)
    highest = max(known)
    p = (highest * num_samples + 2) / (num_samples + 4)
    margin = 2 * math.sqrt(p * (1 - p) / (num_samples + 4))
    return [each for each, value in zip(candidates, known, strict=True) if value >= highest - margin]
