"""Which variant is shipped: the method asked for or the control, by what they do on the held-back samples."""

from __future__ import annotations

import math
from collections.abc import Sequence

from onnx_obd.candidates import Candidate, prune_by
from onnx_obd.errors import NumericalError
from onnx_obd.goals import original_quality, prune_towards
from onnx_obd.run import Run
from onnx_obd.surgery.mask import restore

CONTROL = "magnitude"
"""What is always measured beside the chosen method."""


def choose(run: Run) -> tuple[Candidate, list[Candidate]]:
    """The method asked for and the control, and which of them is the best that the goal allows.

    The mirror is left with the best.
    """
    options = run.options
    goal = options.goal
    if goal is None:
        first = prune_by(run, options.method, options.sparsity, options.rounds)
    else:
        first = prune_towards(run, options.method, goal)
    candidates = [first]
    if options.method != CONTROL:
        candidates.append(prune_by(run, CONTROL, first.plan.sparsity, 1))
    return best_of(run, candidates), candidates


def best_of(run: Run, candidates: Sequence[Candidate]) -> Candidate:
    """The candidate of lowest held-back loss among those that the goal allows (the first is taken to be one).

    Raises:
        NumericalError: its loss is not finite.
    """
    goal = run.options.goal
    allowed = [each for each in candidates[1:] if goal is None or goal.allows(each.quality, original_quality(run))]
    best = min([candidates[0], *allowed], key=lambda each: each.quality.loss)
    if not math.isfinite(best.quality.loss):
        raise NumericalError("the pruned model's loss is not finite")
    restore(run.mirror, best.weights)
    return best
