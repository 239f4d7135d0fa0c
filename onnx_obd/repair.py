"""After deletion: the survivors refitted to what their nodes computed in the original."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from torch import Tensor

from onnx_obd.run import Run
from onnx_obd.surgery.compensate import compensate

REPAIRED = " + repair"
"""What a method is called with it."""


def refit_survivors(run: Run, keep: Mapping[str, Tensor], label: str) -> tuple[str, ...]:
    """Refit the mirror's weights that the masks leave, and biases, in place; what there is to be said of it.

    Fitted on one part of the scoring samples, each node's refit accepted by the loss on the other; with mixtures of
    these where samples are few.

    Args:
        label: what is being repaired, for the progress shown and the notes.
    """
    operands, skipped = run.operands
    with run.progress.stage(label) as report, run.timed("repair"):
        refits = compensate(
            run.refitting, run.refit_acceptance, operands, run.original, keep, seed=run.options.seed, progress=report
        )
    refitted = {refit.name for refit in refits if refit.step}
    reasons = Counter([refit.reason for refit in refits if refit.reason] + list(skipped.values()))
    return (
        f"{label}: {len(refitted)} of {len(run.prunable)} weights were refitted where that lowered the loss",
        *(f"not refitted, {count} times: {reason}" for reason, count in reasons.items()),
    )
