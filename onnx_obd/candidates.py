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


def prune_by(
    run: Run, method: str, sparsity: float, rounds: int, *, repaired: bool = False, foretold: bool = True
) -> Candidate:
    """Delete weights by a criterion in rounds, its curvature re-estimated before each.

    The mirror starts from the original weights and is left with the result.

    Args:
        repaired: refit what survives after every round, so that the next one ranks the weights as they will be.
        foretold: of every round also say what its derivatives predict, which takes as long as estimating them does.
    """
    start = time.perf_counter()
    options, name = run.options, f"{method}{REPAIRED}" if repaired else method
    restore(run.mirror, run.original)
    deletion = _Deletion(run, method, sparsity, rounds, foretold or options.trust != "note")
    notes: tuple[str, ...] = ()
    while deletion.done < rounds:
        before = snapshot(run.mirror)
        too_far = deletion.next_round()
        if too_far is not None:
            restore(run.mirror, before)
            notes = (*notes, _stopped(deletion.plan, too_far))
            if repaired:
                notes += refit_survivors(run, deletion.keep, name)
            break
        if repaired and deletion.done > rounds // 2:  # measured: repairing the first half too changes nothing
            notes = refit_survivors(run, deletion.keep, name)
            deletion.changed()
        if deletion.done < rounds and options.retrain_epochs:
            if options.variant == "decay":
                restore(run.mirror, before)
            _retrain(run, deletion.keep, f"{method}: training")
            deletion.changed()
    found = candidate(run, name, deletion.plan, deletion.history, start)
    return replace(found, notes=notes)


class _Deletion:
    """Weights deleted by a criterion, as far as it has come; the run's mirror is where it stands.

    Attributes:
        done: rounds, in halves where a round was found to go too far.
        plan, keep: what has been deleted, as it was planned and as masks.
        values: of the weights, before they were deleted.
        history: the rounds.
        loss: on the scoring and on the held-back samples.
    """

    def __init__(self, run: Run, method: str, sparsity: float, rounds: int, foretold: bool):
        self.run, self.method, self.rounds, self.foretold = run, method, rounds, foretold
        self.regrows = run.options.variant == "regrow"
        self.keep = original_masks(run)
        # What may return gets rounds at the final sparsity in which to do so.
        self.schedule = planned_rounds(run, sparsity, (rounds + 1) // 2 if self.regrows else rounds, self.keep)
        self.plan, self.values, self.loss = Plan(self.keep, None), snapshot(run.mirror), losses(run)
        self.history: list[Round] = []
        self.done, self.number = 0.0, 0

    def next_round(self) -> Round | None:
        """Rank and delete; only if going on as planned is not to be trusted and the run shall then stop, what it did.

        The mirror then has to be restored.
        """
        run, trust, began = self.run, self.run.options.trust, time.perf_counter()
        upto, self.number = min(self.done + 1, self.rounds), self.number + 1
        keep = original_masks(run) if self.regrows else self.keep
        ranked = self.values if self.regrows else run.mirror.weights
        plan_of = partial(_plan, self.schedule, upto, keep)
        saliency = rank(run, self.method, self.number, max(self.number, self.rounds), ranked, plan_of)
        if self.regrows:
            restore(run.mirror, self.values)
        before = snapshot(run.mirror)
        plan, found = self._delete(saliency, keep, before, upto)
        if found.went_too_far and trust == "refine":
            restore(run.mirror, before)
            upto = self.done + 0.5
            plan, found = self._delete(saliency, keep, before, upto)
        if found.went_too_far and trust == "stop" and self.history:
            return found
        self.plan, self.keep, self.done = plan, dict(plan.keep), upto
        self.history.append(replace(found, seconds=time.perf_counter() - began))
        self.loss = (self.loss[0] + found.measured_scoring, found.loss_held_back)
        self._remember()
        return None

    def changed(self) -> None:
        """Told that the survivors have been refitted or trained."""
        self.loss = losses(self.run)
        self._remember()

    def _remember(self) -> None:
        for name, weight in snapshot(self.run.mirror).items():
            kept = self.keep.get(name)
            self.values[name] = weight if kept is None else torch.where(kept, weight, self.values[name])

    def _delete(
        self, saliency: Saliency, keep: Mapping[str, Tensor], before: Mapping[str, Tensor], upto: float
    ) -> tuple[Plan, Round]:
        """Carry out a plan; and what it was predicted to do to the weights ``before``, and did."""
        run, began = self.run, time.perf_counter()
        plan = self.schedule.plan(upto, saliency, keep)
        apply_masks(run.mirror, plan.keep)
        if "h_of_surgeon" in find_criterion(criteria_of(self.method)[0]).needs:
            _make_up(run, before)
        found = measured_round(plan, self.loss, losses(run), began)
        if not self.foretold:
            return plan, found
        predicted = predicted_jointly(run, self.history, plan.keep)
        if predicted and not self.history:
            predicted["predicted_together"] = predicted["predicted_jointly"]
        else:
            predicted |= predicted_together(run, before, plan.keep)
        return plan, replace(found, **predicted)


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
    """That of this round; of the first one, which is that of the original, it is kept, and may come from a file."""
    if number == 1 and run.first_curvature is not None:
        return run.first_curvature
    options = run.options
    if number == 1 and options.curvature_from:
        found = load_curvature(options.curvature_from, curvature_key(run), {n: run.original[n] for n in run.prunable})
    else:
        found = estimate_curvature(
            options.curvature,
            run.scoring,
            run.probed,
            run.prunable,
            num_probes=options.num_probes,
            seed=options.seed + number,
            progress=report,
        )
    if number == 1:
        run.first_curvature = found
        if options.save_curvature:
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
