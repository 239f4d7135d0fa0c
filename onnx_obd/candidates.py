"""Pruned variants of one model: made in rounds, compared on the held-back samples."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from onnx_obd.calibration.quality import assess, head_values
from onnx_obd.curvature import estimate_curvature
from onnx_obd.curvature.prediction import predict_jointly
from onnx_obd.curvature.store import CurvatureKey, load_curvature, save_curvature
from onnx_obd.evidence import gather
from onnx_obd.guard import guarded, loss_after
from onnx_obd.plan.nm import Pattern, reduction_axis
from onnx_obd.plan.rounds import Rounds
from onnx_obd.plan.scope import make_pools, parse_sparsity_of
from onnx_obd.records import Curvature, Plan, Quality, Round, Saliency
from onnx_obd.recovery import Recipe, Training
from onnx_obd.repair import REPAIRED, refit_survivors
from onnx_obd.run import Run
from onnx_obd.saliency import criteria_of, find_criterion, score
from onnx_obd.surgery.compensate import accept
from onnx_obd.surgery.mask import apply_masks, restore, snapshot
from onnx_obd.surgery.surgeon import compensating_updates

UNITS_ALONE = "units removed"
"""What the variant is called from which nothing but units was removed."""


@dataclass(frozen=True)
class Candidate:
    """One pruned variant: its weights, how it came about, and how good it is on the held-back samples."""

    quality: Quality
    plan: Plan
    weights: Mapping[str, Tensor]
    rounds: tuple[Round, ...]
    notes: tuple[str, ...] = ()


def prune_by(run: Run, method: str, sparsity: float, rounds: int, *, repaired: bool = False) -> Candidate:
    """Delete weights by a criterion in rounds, its curvature re-estimated before each.

    The mirror starts from the original weights and is left with the result.

    Args:
        repaired: refit what survives after every round, so that the next one ranks the weights as they will be.
    """
    start = time.perf_counter()
    options = run.options
    restore(run.mirror, run.original)
    keep = original_masks(run)
    # What may return gets rounds at the final sparsity in which to do so.
    steps = (rounds + 1) // 2 if options.variant == "regrow" else rounds
    schedule = planned_rounds(run, sparsity, steps, keep)
    values = snapshot(run.mirror)  # of deleted weights: what they were before
    history: list[Round] = []
    plan, notes, loss, done, number = Plan(keep, None), (), losses(run), 0.0, 0
    while done < rounds:
        began, number, upto = time.perf_counter(), number + 1, min(done + 1, rounds)
        if options.variant == "regrow":
            keep = original_masks(run)
        ranked = values if options.variant == "regrow" else run.mirror.weights
        saliency = rank(run, method, number, max(number, rounds), ranked, partial(_plan, schedule, upto, keep))
        if options.variant == "regrow":
            restore(run.mirror, values)
        before = snapshot(run.mirror)
        delete = partial(_delete, run, method, schedule, saliency, keep, before, history, loss)
        attempt, found = delete(upto)
        if found.went_too_far and options.trust == "refine":
            restore(run.mirror, before)
            upto = done + 0.5
            attempt, found = delete(upto)
        if found.went_too_far and options.trust == "stop" and history:
            restore(run.mirror, before)
            notes = (*notes, _stopped(plan, found))
            if repaired:
                notes += refit_survivors(run, keep, f"{method}{REPAIRED}")
            break
        plan, done, keep = attempt, upto, dict(attempt.keep)
        history.append(replace(found, seconds=time.perf_counter() - began))
        loss = (loss[0] + found.measured_scoring, found.loss_held_back)
        if repaired and done > rounds // 2:  # measured: repairing the first half too changes nothing
            notes = refit_survivors(run, keep, f"{method}{REPAIRED}")
            loss = losses(run)
        if done < rounds and options.retrain_epochs:
            if options.variant == "decay":
                restore(run.mirror, before)
            _retrain(run, keep, f"{method}: training")
            loss = losses(run)
        present = snapshot(run.mirror)
        values = {name: torch.where(keep[name], w, values[name]) if name in keep else w for name, w in present.items()}
    found = candidate(run, f"{method}{REPAIRED}" if repaired else method, plan, history, start)
    return replace(found, notes=notes)


def _delete(
    run: Run,
    method: str,
    schedule: Rounds,
    saliency: Saliency,
    keep: Mapping[str, Tensor],
    before: Mapping[str, Tensor],
    history: Sequence[Round],
    loss: tuple[float, float],
    upto: float,
) -> tuple[Plan, Round]:
    """Carry out the plan of a round, and what it was predicted to do and did.

    ``before`` are the weights that the mirror has, ``loss`` is theirs.
    """
    began = time.perf_counter()
    plan = schedule.plan(upto, saliency, keep)
    apply_masks(run.mirror, plan.keep)
    if "h_of_surgeon" in find_criterion(criteria_of(method)[0]).needs:
        _make_up(run, before)
    predicted = predicted_jointly(run, history, plan.keep)
    if predicted and not history:
        predicted["predicted_together"] = predicted["predicted_jointly"]
    else:
        predicted |= predicted_together(run, before, plan.keep)
    return plan, replace(measured_round(plan, loss, losses(run), began), **predicted)


def _stopped(plan: Plan, further: Round) -> str:
    return (
        f"stopped at {100 * plan.sparsity:.0f} %: going on to {100 * further.sparsity:.0f} % changed the loss by "
        f"{further.measured_scoring:.3g} where derivatives predict {further.predicted_together:.3g}"
    )


def repair(run: Run, pruned: Candidate) -> Candidate:
    """The same masks with refitted weights and biases, as a candidate of its own.

    The held-back samples then say whether it is better than what it came from. The mirror is left with the result.
    """
    start = time.perf_counter() - pruned.quality.seconds
    method = f"{pruned.quality.method}{REPAIRED}"
    restore(run.mirror, pruned.weights)
    notes = refit_survivors(run, pruned.plan.keep, method)
    return replace(candidate(run, method, pruned.plan, list(pruned.rounds), start), notes=notes)


def _plan(schedule: Rounds, number: float, keep: Mapping[str, Tensor], saliency: Saliency) -> Plan:
    return schedule.plan(number, saliency, keep)


def rank(
    run: Run,
    method: str,
    number: int,
    rounds: int,
    weights: Mapping[str, Tensor],
    plan_of: Callable[[Saliency], Plan],
) -> Saliency:
    """The scores of ``weights``, with the derivatives where the mirror stands.

    Of a method of several criteria, the scores after whose deletion (``plan_of``) the measured loss is lowest: they
    read the same curvature, and none is best everywhere. Then tensors are spared where that is measured to
    be better (``guard``).
    """
    options, criteria = run.options, [find_criterion(name) for name in criteria_of(method)]
    curvature = None
    prunable = {name: weights[name] for name in run.prunable}
    with run.progress.stage(f"{method}: round {number} of {rounds}") as report, run.timed("curvature"):
        if any(criterion.needs_curvature for criterion in criteria):
            curvature = _curvature(run, number, report)
        found = []
        for criterion in criteria:
            evidence = gather(criterion, run.scoring, run.prunable, curvature, run.operands[0])
            found.append(score(criterion.name, prunable, curvature, evidence, seed=options.seed + number))
        if len(found) == 1:
            return found[0]
        best = min(found, key=lambda saliency: loss_after(run.scoring, plan_of(saliency).keep))
        return guarded(run.acceptance, run.scoring, best, plan_of)


def _make_up(run: Run, before: Mapping[str, Tensor]) -> None:
    """The surgeon's update of the survivors for what was deleted since, so far as it lowers the loss."""
    updates = compensating_updates(run.fitting, run.operands[0], before, run.options.seed)
    accept(run.mirror, updates, run.acceptance.loss, run.acceptance.loss())


def _curvature(run: Run, number: int, report: Callable[[int, int], None]) -> Curvature:
    """That of this round; the first one may come from a file, or be saved to one."""
    options = run.options
    if number == 1 and options.curvature_from:
        return load_curvature(options.curvature_from, curvature_key(run), {n: run.original[n] for n in run.prunable})
    found = estimate_curvature(
        options.curvature,
        run.scoring,
        run.probed,
        run.prunable,
        num_probes=options.num_probes,
        seed=options.seed + number,
        progress=report,
    )
    if number == 1 and options.save_curvature:
        save_curvature(found, options.save_curvature, curvature_key(run))
    return found


def curvature_key(run: Run) -> CurvatureKey:
    """What the curvature of the first round depends on."""
    names = ("curvature", "num_probes", "probe_samples", "seed")
    options = {name: getattr(run.options, name) for name in names}
    return CurvatureKey(
        run.model.sha256, run.scoring.samples.sha256, {**options, "objective": run.objective.describe()}
    )


def predicted_jointly(run: Run, history: Sequence[Round], keep: Mapping[str, Tensor]) -> dict[str, float]:
    """The joint prediction of all deletions so far and the change it predicts, as long as the two agree.

    Of deletion alone: nothing once weights are trained or repaired in between, or if a node has no forward derivative.
    """
    if run.options.retrain_epochs or any(each.left_band for each in history):
        return {}
    deleted = {name: run.original[name] * mask for name, mask in keep.items()}
    present = snapshot(run.mirror)
    if any(not torch.equal(present[name], deleted[name]) for name in deleted):
        return {}
    try:
        rise = predict_jointly(run.scoring, run.original, deleted)
    except (NotImplementedError, RuntimeError):
        return {}
    return {"predicted_jointly": rise, "measured_since_original": run.scoring.loss() - run.original_loss}


def predicted_together(run: Run, before: Mapping[str, Tensor], keep: Mapping[str, Tensor]) -> dict[str, float]:
    """What derivatives at the weights ``before`` predict for the deletion, its cross terms included.

    Nothing if weights changed otherwise too, or if a node has no forward derivative.
    """
    deleted = {name: before[name] * mask for name, mask in keep.items()}
    if any(not torch.equal(run.mirror.weights[name].detach(), value) for name, value in deleted.items()):
        return {}
    try:
        return {"predicted_together": predict_jointly(run.scoring, before, deleted)}
    except (NotImplementedError, RuntimeError):
        return {}


def candidate(run: Run, method: str, plan: Plan, history: list[Round], start: float) -> Candidate:
    """The mirror's present weights, measured on the held-back samples. ``start`` is when work on them began."""
    seconds = time.perf_counter() - start
    values = head_values(run.held_back)
    quality = assess(run.held_back, values, run.original_values, method=method, sparsity=plan.sparsity, seconds=seconds)
    return Candidate(quality, plan, snapshot(run.mirror), tuple(history))


def losses(run: Run) -> tuple[float, float]:
    """On the scoring and on the held-back samples."""
    return run.scoring.loss(), run.held_back.loss()


def measured_round(plan: Plan, before: tuple[float, float], after: tuple[float, float], began: float) -> Round:
    """What a deletion did to the losses."""
    return Round(
        sparsity=plan.sparsity,
        predicted=plan.predicted_loss_change,
        measured_scoring=after[0] - before[0],
        measured_held_back=after[1] - before[1],
        loss_held_back=after[1],
        seconds=time.perf_counter() - began,
    )


def original_masks(run: Run) -> dict[str, Tensor]:
    """True where the original is not zero already."""
    return {name: run.original[name] != 0 for name in run.prunable}


def planned_rounds(run: Run, sparsity: float, count: int, start: Mapping[str, Tensor]) -> Rounds:
    options = run.options
    overrides = parse_sparsity_of(options.sparsity_of)
    pools = make_pools(run.prunable, sparsity, scope=options.scope, sparsity_of=overrides)
    axes = nm_axes(run, options.pattern) if options.pattern else {}
    return Rounds(count, pools, start, options.pattern, axes)


def nm_axes(run: Run, pattern: Pattern) -> dict[str, int]:
    """The axis of each prunable weight along which it can have the pattern; without those that cannot."""
    operands, _ = run.operands
    shapes = {operand.name: tuple(run.original[operand.name].shape) for operand in operands}
    axes = {operand.name: reduction_axis(operand.elements, shapes[operand.name]) for operand in operands}
    return {name: axis for name, axis in axes.items() if pattern.fits(shapes[name], axis)}


def _retrain(run: Run, keep: Mapping[str, Tensor], label: str) -> None:
    options = run.options
    recipe = Recipe(options.retrain_epochs, None, options.learning_rate, options.seed, options.variant == "decay")
    with run.progress.stage(label) as report, run.timed("training"):
        training = Training(
            run.fitting, run.origin.original, keep, recipe, teacher=run.origin.mirror, validation=run.acceptance
        )
        training.run(report)
