"""After deletion: the survivors of a candidate refitted to what its nodes computed in the original."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace

from onnx_obd.candidates import Candidate, candidate
from onnx_obd.run import Run
from onnx_obd.surgery.compensate import compensate
from onnx_obd.surgery.mask import restore


def repair(run: Run, pruned: Candidate) -> Candidate:
    """The same masks with refitted weights and biases, as a candidate of its own.

    Fitted on one part of the scoring samples, each node's refit accepted by the loss on the other; the held-back
    samples then say whether the result is better than what it came from. The mirror is left with the result.
    """
    start = time.perf_counter() - pruned.quality.seconds
    method = f"{pruned.quality.method} + repair"
    restore(run.mirror, pruned.weights)
    operands, skipped = run.operands
    with run.progress.stage(method) as report, run.timed("repair"):
        refits = compensate(
            run.fitting,
            run.acceptance,
            operands,
            run.original,
            pruned.plan.keep,
            seed=run.options.seed,
            progress=report,
        )
    refitted = {refit.name for refit in refits if refit.step}
    notes = [f"{method}: {len(refitted)} of {len(run.prunable)} weights were refitted where that lowered the loss"]
    reasons = Counter([refit.reason for refit in refits if refit.reason] + list(skipped.values()))
    notes += [f"not refitted, {count} times: {reason}" for reason, count in reasons.items()]
    found = candidate(run, method, pruned.plan, list(pruned.rounds), start)
    return replace(found, notes=tuple(notes))
