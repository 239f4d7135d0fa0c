"""Masked training towards the original's outputs: those of every node, if it needs that, then what the objective sees.

No training code and no labels are needed: the teacher is the model as it was (knowledge distillation; Hinton, Vinyals,
Dean 2015; node by node: Romero et al. 2015). Where the objective has labels, these take the teacher's place at the end.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from onnx_obd.calibration.measure import Batch, Calibration
from onnx_obd.errors import NumericalError, UsageError
from onnx_obd.mirror.mirror import Mirror
from onnx_obd.mirror.values import is_float
from onnx_obd.recovery.composed import Composer
from onnx_obd.recovery.trainable import trainable_weights
from onnx_obd.surgery.mask import restore, snapshot

VALIDATION = 0.2
"""Share of the samples that are not trained on and decide which state is kept, if no others are given for that."""

LAYERWISE = 0.15
"""Share of the training that matches the outputs of the nodes: a start for what is badly damaged, not the objective."""

WARM_UP = 0.05
"""Share of the training in which the learning rate rises."""

MINIBATCH = 16
"""Samples per step."""

FEWEST_STEPS = 200
"""With which samples are moved to where student and teacher disagree."""

FADED = 0.75
"""Share of the training after which weights that fade are zero."""

HOPELESS = 0.2
"""It ends after this share of it, if the loss is ``FAR_WORSE`` than at the start and has never been better. Otherwise
it goes on, whatever the loss does: while the rate is high nothing is gained (docs/benchmarks.md)."""

VALIDATING = 0.1
"""Share of the time for validation, where the time counts."""


LEARNING_RATES = (3e-4, 1e-3, 5e-3, 2e-2)
"""Among these trials decide: deep networks of depthwise convolutions take the first, small dense ones the last."""

TRIAL_SHARE = 0.06
"""Of the whole training, for one trial. The rate falls to zero in it: while it is high, a good one too looks bad.

What the best one has gained is kept. Few steps prefer too low a rate where weights have been refitted already.
"""

FAR_WORSE = 2.0
"""So many times as high a loss: no higher rate is tried after one so far above the lowest of the trials."""


@dataclass(frozen=True)
class Recipe:
    """How long and how fast.

    Attributes:
        epochs: passes over the samples at most; None if only the time counts.
        minutes: stop after so long; None if only the epochs count. The schedule follows whichever ends first.
        learning_rate: Adam's step size, relative to the root mean square of each tensor's surviving weights; None for
            the one of ``LEARNING_RATES`` that does best in a short trial.
        seed: of the order of the samples.
        fade: weights to be deleted shrink to zero during the training instead of being zero from the start.
    """

    epochs: int | None = None
    minutes: float | None = None
    learning_rate: float | None = None
    seed: int = 0
    fade: bool = False

    def __post_init__(self) -> None:
        if self.epochs is None and self.minutes is None:
            raise UsageError("training needs a number of epochs or of minutes")

    def progress(self, epochs: float, seconds: float) -> float:
        """How much of the training is done, in [0, 1]."""
        parts = [epochs / self.epochs if self.epochs is not None else 0.0]
        if self.minutes is not None:
            parts.append(seconds / (60 * self.minutes) if self.minutes > 0 else 1.0)
        return min(1.0, max(parts))


@dataclass
class State:
    """Where a training stands; with the mirror's weights and Adam's moments, all that it takes to go on.

    Losses are means over the validation samples; ``best`` are the weights of the lowest, ``highest_loss`` is what it
    rose to on the way, ``layerwise`` how much of the training matches nodes, ``moments`` what Adam remembers of each
    weight.
    """

    best: dict[str, Tensor]
    best_loss: float
    start_loss: float
    highest_loss: float = 0.0
    learning_rate: float = 0.0
    layerwise: float = LAYERWISE
    epoch: int = 0
    seconds: float = 0.0
    moments: dict[str, dict[str, Tensor]] = field(default_factory=dict)


class Training:
    """Training in place: what ``keep`` deletes stays exactly zero, tensors without a mask are trained whole.

    Args:
        calibration: samples to train on; the held-back samples are never seen.
        validation: samples that decide which state is kept. They must not have been fitted to before, or the state at
            the start looks better than it is. By default some of ``calibration`` are set aside.
        original: the weights of the teacher.
        teacher: the mirror they belong to, where it is not the one that is trained (units were removed from that).
        composer: of the samples in ``calibration``, where one is at hand: what may be done to them is known to it.
    """

    def __init__(
        self,
        calibration: Calibration,
        original: Mapping[str, Tensor],
        keep: Mapping[str, Tensor],
        recipe: Recipe,
        teacher: Mirror | None = None,
        validation: Calibration | None = None,
        composer: Composer | None = None,
    ):
        self.mirror, self.objective, self.recipe = calibration.mirror, calibration.objective, recipe
        self.original, self.teacher = original, teacher or calibration.mirror
        parts = _split(calibration, self.teacher, original, recipe.seed) if validation is None else None
        self.train, self.validation = parts or (calibration, validation)
        self.names = trainable_weights(self.mirror, self.objective.slots)
        self.deleted = {name: ~mask for name, mask in keep.items() if not mask.all()}
        weights = snapshot(self.mirror)
        self.doomed = {name: weights[name][gone] for name, gone in self.deleted.items()} if recipe.fade else {}
        self.nodes = _product_slots(calibration, self.teacher)
        self.composer = composer or Composer(self.train.batches, self.objective, self.teacher, original)
        self.scale = {name: _scale(weights[name], keep.get(name)) for name in self.names}
        loss = self.validation.loss() if not recipe.fade else math.inf
        self.state = State(weights, loss, loss)
        self.disputes: list[float] = []  # seconds a sample

    def resume(self, state: State, present: Mapping[str, Tensor]) -> None:
        """Go on from a saved state with the weights as they were then."""
        restore(self.mirror, present)
        self.state = state

    def run(
        self,
        progress: Callable[[int, int], None] | None = None,
        after_epoch: Callable[[State], None] | None = None,
    ) -> State:
        """Train to the end of the recipe, or until that is hopeless; the mirror is left with the best state.

        ``after_epoch`` is called when an epoch and its validation are done.
        """
        state = self.state
        begin = time.perf_counter() - state.seconds
        if not state.learning_rate:
            state.learning_rate = self.recipe.learning_rate or self._trials()
            if not self.nodes or (state.best_loss < state.start_loss and not self.recipe.fade):
                state.layerwise = 0.0
        optimizer = self._optimizer()
        done = self.recipe.progress(state.epoch, state.seconds)
        loss, next_at = math.nan, 0.0
        while done < 1 and not self._hopeless(done, loss):
            matching, early = done < state.layerwise, not self._late(done)
            done = self._epoch(optimizer, begin)
            state.epoch += 1
            state.seconds = time.perf_counter() - begin
            done = max(done, self.recipe.progress(state.epoch, state.seconds))
            matched = matching and done >= state.layerwise
            if state.seconds >= next_at or matched or done >= 1 or (early and self._late(done)):
                loss = self._validate(done)
                now = time.perf_counter() - begin
                next_at = now + (now - state.seconds) * (1 / VALIDATING - 1) if self.recipe.minutes is not None else 0.0
            if matched and not self.recipe.fade:
                restore(self.mirror, state.best)  # what matching the nodes has gained, or the start if that is better
            weights = {name: self.mirror.weights[name] for name in self.names}
            state.moments = {name: optimizer.state[w] for name, w in weights.items() if w in optimizer.state}
            if after_epoch:
                after_epoch(state)
            if progress:
                progress(round(1000 * done), 1000)
        self.mirror.zero_grad(set_to_none=True)
        restore(self.mirror, state.best)
        self._delete(1.0)
        return state

    def _epoch(self, optimizer: torch.optim.Optimizer, begin: float) -> float:
        """One pass over the training samples, or less if the time is up."""
        generator = torch.Generator().manual_seed((self.recipe.seed << 20) + self.state.epoch)
        steps = _minibatches(self.train.batches, generator)
        done = 0.0
        for number, batches in enumerate(steps):
            done = self.recipe.progress(self.state.epoch + number / len(steps), time.perf_counter() - begin)
            if done >= 1:
                break
            rate = _rate(done) * self.state.learning_rate
            self._step(optimizer, batches, done, rate, generator, matching=done < self.state.layerwise)
        return done

    def _step(
        self,
        optimizer: torch.optim.Optimizer,
        batches: Sequence[Batch],
        done: float,
        rate: float,
        generator: torch.Generator,
        matching: bool = False,
    ) -> None:
        for group, name in zip(optimizer.param_groups, self.names, strict=True):
            group["lr"] = rate * self.scale[name]
        optimizer.zero_grad(set_to_none=True)
        total = sum(batch.count for batch in batches)
        for batch in batches:
            drawn = self._drawn(batch, generator)
            (self._loss(drawn, matching) * (batch.count / total)).backward()
        optimizer.step()
        self._delete(done)

    def _drawn(self, batch: Batch, generator: torch.Generator) -> Batch:
        """What is trained on in the place of a batch."""
        if not self.composer.possible:
            return batch
        inputs = self.composer.composed(batch, generator)
        if self._worth_disputing():
            start = time.perf_counter()
            inputs = self.composer.disputed(inputs, batch.count, self.mirror, generator)
            self.disputes.append((time.perf_counter() - start) / batch.count)
        return self.composer.answered(batch, inputs)

    def _worth_disputing(self) -> bool:
        """It takes half of a step: for few steps that is too much, but the first ones, by which it is known."""
        if not self.objective.classifies:  # of other outputs the large ones differ most: measured, no gain
            return False
        if self.recipe.minutes is None or len(self.disputes) < 3:
            return True
        return FEWEST_STEPS * 2 * min(self.disputes) * MINIBATCH <= 60 * self.recipe.minutes

    def _trials(self) -> float:
        """The learning rate after a few steps of which, on the objective itself, the validation loss is lowest.

        From the lowest rate upwards, until one does far worse: a rate that moves what was refitted and does not get on
        from there may do worse than a lower and a higher one. The mirror goes on from the best trial, if that is better
        than where it was; then nodes need not be matched first.
        """
        before, losses, state = snapshot(self.mirror), {}, self.state
        for rate in LEARNING_RATES:
            try:
                losses[rate] = self._trial(rate)
                if losses[rate] < state.best_loss and not self.recipe.fade:
                    state.best, state.best_loss = snapshot(self.mirror), losses[rate]
            finally:
                restore(self.mirror, before)
            if losses[rate] > FAR_WORSE * min(losses.values()):
                break
        if state.best_loss < state.start_loss:
            restore(self.mirror, state.best)
        return min(losses, key=losses.__getitem__)

    def _trial(self, rate: float) -> float:
        generator, recipe = torch.Generator().manual_seed(self.recipe.seed), self.recipe
        optimizer, start = self._optimizer(), time.perf_counter()
        steps, done = _minibatches(self.train.batches, generator), 0.0
        for number in itertools.count():
            done = recipe.progress(number / len(steps), time.perf_counter() - start) / TRIAL_SHARE
            if done >= 1:
                break
            self._step(optimizer, steps[number % len(steps)], LAYERWISE, rate * (1 - done), generator)
        self._delete(1.0)
        try:
            return self.validation.loss()
        except NumericalError:  # it has diverged
            return math.inf

    def _loss(self, batch: Batch, matching: bool) -> Tensor:
        """The mean loss of one batch: of the nodes' outputs while these are matched, of the objective from then on."""
        if not matching:
            values = self.mirror.evaluate(batch.inputs, outputs=self.objective.slots)
            return self.objective.loss(values, batch.targets, batch.count)
        with torch.no_grad():
            wanted = self.teacher.evaluate(batch.inputs, outputs=self.nodes, weights=self.original)
        found = self.mirror.evaluate(batch.inputs, outputs=self.nodes)
        errors = [
            (y - y0).square().mean() / y0.var(correction=0).clamp_min(1e-12)
            for y, y0 in zip(found, wanted, strict=True)
        ]
        return sum(errors) / len(errors)

    @torch.no_grad()
    def _delete(self, done: float) -> None:
        """Zero what is deleted; or shrink it in a straight line towards zero."""
        left = max(0.0, 1 - done / FADED) if self.recipe.fade else 0.0
        for name, gone in self.deleted.items():
            weight = self.mirror.weights[name]
            if left:
                weight[gone] = left * self.doomed[name]
            else:
                weight.masked_fill_(gone, 0.0)

    def _validate(self, done: float) -> float:
        """The validation loss; NaN while weights still fade."""
        if self.recipe.fade and done < FADED:
            return math.nan  # not yet a pruned model
        self._delete(1.0)
        try:
            loss = self.validation.loss()
        except NumericalError:  # it has diverged; the best state stays
            loss = math.inf
        self.state.highest_loss = max(self.state.highest_loss, loss)
        if loss < self.state.best_loss:
            self.state.best, self.state.best_loss = snapshot(self.mirror), loss
        return loss

    def _hopeless(self, done: float, loss: float) -> bool:
        """Is the rate so high that it will only get back to where it was, if at all?"""
        state = self.state
        return self._late(done) and state.best_loss >= state.start_loss and loss > FAR_WORSE * state.start_loss

    def _late(self, done: float) -> bool:
        return done > self.state.layerwise + HOPELESS

    def _optimizer(self) -> torch.optim.Adam:
        parameters = [self.mirror.weights[name] for name in self.names]
        optimizer = torch.optim.Adam([{"params": [weight]} for weight in parameters], betas=(0.9, 0.99), fused=True)
        for name, moments in self.state.moments.items():
            optimizer.state[self.mirror.weights[name]] = dict(moments)
        return optimizer


def _split(
    calibration: Calibration, teacher: Mirror, original: Mapping[str, Tensor], seed: int
) -> tuple[Calibration, Calibration]:
    """The scoring samples in two: to train on, and to validate on. The targets are those of the original."""
    parts = calibration.samples.split(VALIDATION, seed)
    present = snapshot(teacher)
    restore(teacher, original)
    try:
        made = [Calibration(teacher, calibration.objective, part, calibration.batch_size) for part in parts]
    finally:
        restore(teacher, present)
    return made[0].on(calibration.mirror), made[1].on(calibration.mirror)


def _product_slots(calibration: Calibration, teacher: Mirror) -> tuple[int, ...]:
    """The outputs of the nodes that multiply the data by weights, but for what the objective looks at.

    Those only that have the shape they have in the teacher.
    """
    mirror, slots = calibration.mirror, calibration.objective.slots
    program = mirror.program.restricted(slots)
    found = [step.outputs[0] for step in program.steps if step.operator.weights and step.operator.differentiable]
    found = [slot for slot in dict.fromkeys(found) if slot not in slots]
    with torch.no_grad():
        inputs = calibration.batches[0].inputs
        values, wanted = (m.evaluate(inputs, outputs=found) if found else () for m in (mirror, teacher))
    return tuple(
        slot
        for slot, value, target in zip(found, values, wanted, strict=True)
        if is_float(value) and value.shape == target.shape
    )


def _minibatches(batches: Sequence[Batch], generator: torch.Generator) -> list[list[Batch]]:
    """The batches in random order, several together where one has fewer than ``MINIBATCH`` samples."""
    groups: list[list[Batch]] = [[]]
    for index in torch.randperm(len(batches), generator=generator).tolist():
        if sum(batch.count for batch in groups[-1]) >= MINIBATCH:
            groups.append([])
        groups[-1].append(batches[index])
    return groups


def _rate(done: float) -> float:
    """The learning rate over its peak: a linear rise, then half a cosine."""
    return min(1.0, (done + 0.1 * WARM_UP) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * done))


def _scale(weight: Tensor, mask: Tensor | None) -> float:
    """The typical size of the surviving entries, so that one learning rate fits all tensors."""
    alive = weight[mask] if mask is not None else weight
    alive = alive[alive != 0]
    return float(alive.square().mean().sqrt().clamp(1e-3, 10.0)) if alive.numel() else 1.0
