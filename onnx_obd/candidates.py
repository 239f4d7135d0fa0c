"""Pruned variants of one model: made in rounds, compared on the held-back samples."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from onnx_obd.calibration.quality import assess, head_values
from onnx_obd.curvature import estimate_curvature
from onnx_obd.errors import NumericalError
from onnx_obd.finetune import finetune
from onnx_obd.plan.elementwise import plan_elements, schedule
from onnx_obd.records import Plan, Quality, Round
from onnx_obd.run import Run
from onnx_obd.saliency import find_criterion, score
from onnx_obd.surgery.mask import apply_masks, restore, snapshot

CONTROL = "magnitude"
"""What is always measured beside the chosen method."""


@dataclass(frozen=True)
class Candidate:
    """One pruned variant: its weights, how it came about, and how good it is on the held-back samples."""

    quality: Quality
    plan: Plan
    weights: Mapping[str, Tensor]
    rounds: tuple[Round, ...]


def prune_by(run: Run, method: str, sparsity: float, rounds: int) -> Candidate:
    """Delete weights by a criterion in rounds, its curvature re-estimated before each.

    The mirror starts from the original weights and is left with the result.
    """
    start = time.perf_counter()
    options, criterion = run.options, find_criterion(method)
    restore(run.mirror, run.original)
    keep: dict[str, Tensor] = {name: run.original[name] != 0 for name in run.prunable}
    targets = schedule(sparsity, rounds, start=_zeros(keep))
    history: list[Round] = []
    loss = (run.scoring.loss(), run.held_back.loss())
    plan = None
    for number, target in enumerate(targets, 1):
        began = time.perf_counter()
        with run.progress.stage(f"{method}: round {number} of {len(targets)}") as report, run.timed("curvature"):
            curvature = None
            if criterion.needs_curvature:
                curvature = estimate_curvature(
                    options.curvature,
                    run.scoring,
                    run.probed,
                    run.prunable,
                    num_probes=options.num_probes,
                    seed=options.seed + number,
                    progress=report,
                )
        saliency = score(method, {name: run.mirror.weights[name] for name in run.prunable}, curvature)
        plan = plan_elements(saliency, target, keep)
        keep = dict(plan.keep)
        apply_masks(run.mirror, keep)
        after = (run.scoring.loss(), run.held_back.loss())
        history.append(
            Round(
                sparsity=plan.sparsity,
                predicted=plan.predicted_loss_change,
                measured_scoring=after[0] - loss[0],
                measured_held_back=after[1] - loss[1],
                loss_held_back=after[1],
                seconds=time.perf_counter() - began,
            )
        )
        last = number == len(targets)
        _train(run, keep, options.finetune_epochs if last else options.retrain_epochs, f"{method}: training")
        loss = (run.scoring.loss(), run.held_back.loss()) if not last else after
    quality = assess(
        run.held_back,
        head_values(run.held_back),
        run.original_values,
        method=method,
        sparsity=plan.sparsity,
        seconds=time.perf_counter() - start,
    )
    return Candidate(quality, plan, snapshot(run.mirror), tuple(history))


def _zeros(keep: Mapping[str, Tensor]) -> float:
    total = sum(mask.numel() for mask in keep.values())
    return 1 - sum(int(mask.sum()) for mask in keep.values()) / total


def _train(run: Run, keep: Mapping[str, Tensor], epochs: int, label: str) -> None:
    if epochs:
        with run.progress.stage(label) as report, run.timed("training"):
            finetune(
                run.scoring,
                run.held_back,
                keep,
                epochs=epochs,
                learning_rate=run.options.learning_rate,
                seed=run.options.seed,
                progress=report,
            )


def choose(run: Run) -> tuple[Candidate, list[Candidate]]:
    """The method asked for and the control, and which of them has the lower held-back loss."""
    options = run.options
    candidates = [prune_by(run, options.method, options.sparsity, options.rounds)]
    if options.method != CONTROL:
        candidates.append(prune_by(run, CONTROL, options.sparsity, 1))
    best = min(candidates, key=lambda candidate: candidate.quality.loss)
    if not math.isfinite(best.quality.loss):
        raise NumericalError("the pruned model's loss is not finite")
    restore(run.mirror, best.weights)
    return best, candidates
