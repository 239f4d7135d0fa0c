"""What pruning may not spoil: a loss over one or several values of the graph, chosen from the graph and the data.

Without labels the loss is the divergence of the pruned model's outputs from the original's (see ``heads``). With
labels it is cross-entropy or squared error against them. Where an output is not differentiable (ArgMax, ZipMap,
NonMaxSuppression), the loss looks at the last float tensors before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from onnx_obd.calibration.custom import CustomHead
from onnx_obd.calibration.heads import Head, ProbabilityHead, SigmoidHead, SoftmaxHead, SquaredHead, random_signs
from onnx_obd.calibration.outputs import float_outputs, terminal
from onnx_obd.calibration.python_source import find_function, is_function_spec
from onnx_obd.calibration.temperature import spread, supported
from onnx_obd.errors import DataError, UsageError
from onnx_obd.mirror.mirror import Mirror

KINDS = ("auto", "kl", "squared", "labels", "divergence")

CONFIDENT = 0.5
"""Unmarked outputs [N, C] are taken for logits if the mean top softmax probability is above this and the top class
differs between samples. The other way round costs little: squared error is the limit of the softened divergence."""


@dataclass(frozen=True)
class Objective:
    """A weighted sum of heads. ``notes`` tell what the graph did not say plainly."""

    heads: tuple[Head, ...]
    supervised: bool = False
    notes: tuple[str, ...] = ()

    @property
    def slots(self) -> tuple[int, ...]:
        return tuple(head.slot for head in self.heads)

    @property
    def classifies(self) -> bool:
        return isinstance(self.heads[0], (SoftmaxHead, ProbabilityHead))

    def targets(self, values: Sequence[Tensor], labels: Tensor | None) -> list[Any]:
        used = labels if self.supervised else None
        return [head.target(z, used) for head, z in zip(self.heads, values, strict=True)]

    def loss(self, values: Sequence[Tensor], targets: Sequence[Any], count: int) -> Tensor:
        """Mean per sample, a scalar."""
        terms = zip(self.heads, values, targets, strict=True)
        return sum(head.loss(z, target, count) for head, z, target in terms)

    def hessian_diag(self, values: Sequence[Tensor], targets: Sequence[Any], count: int) -> list[Tensor]:
        terms = zip(self.heads, values, targets, strict=True)
        return [head.hessian_diag(z, target, count) for head, z, target in terms]

    def probe(
        self, values: Sequence[Tensor], targets: Sequence[Any], count: int, generator: torch.Generator
    ) -> list[Tensor]:
        """S e for random signs e: vectors of the values' shapes with E[u uᵀ] = d2 loss / dz2 within each sample."""
        terms = zip(self.heads, values, targets, strict=True)
        return [head.factor(z, target, count, random_signs(z, generator)) for head, z, target in terms]

    def columns(self, values: Sequence[Tensor], targets: Sequence[Any], count: int) -> Iterator[list[Tensor]]:
        """Every column of S, those of all samples side by side: vectors u whose u uᵀ sum to d2 loss / dz2 exactly.

        The samples must stand on axis 0 of the values.
        """
        for position, (head, z, target) in enumerate(zip(self.heads, values, targets, strict=True)):
            others = [torch.zeros_like(value) for value in values]
            for column in head.columns(z, target, count):
                yield [*others[:position], column, *others[position + 1 :]]

    def draw(
        self, values: Sequence[Tensor], targets: Sequence[Any], count: int, generator: torch.Generator
    ) -> list[Tensor]:
        """Gradients for labels sampled from the model's own predictions, with the covariance of ``probe``."""
        terms = zip(self.heads, values, targets, strict=True)
        return [head.draw(z, target, count, generator) for head, z, target in terms]

    def gradient(self, values: Sequence[Tensor], targets: Sequence[Any], count: int) -> list[Tensor]:
        """d loss / dz."""
        with torch.enable_grad():
            leaves = [value.detach().requires_grad_() for value in values]
            return list(torch.autograd.grad(self.loss(leaves, targets, count), leaves))

    def describe(self) -> str:
        what = " + ".join(head.describe() for head in self.heads)
        if not self.supervised:
            return f"{what}, against the original outputs"
        return f"{what.replace('KL divergence', 'cross-entropy')}, against the labels"


def choose_objective(
    mirror: Mirror,
    batches: Sequence[Sequence[Any]],
    labels: Tensor | None = None,
    *,
    kind: str = "auto",
    temperature: float | None = None,
) -> Objective:
    """The objective that fits the graph and the samples.

    Args:
        batches: inputs of a few batches, from which scales and the look of the outputs are taken; every value of the
            first is kept for a moment, so let it be small.
        labels: int64 classes [N] or float targets [N, ...] of all samples; None for a label-free objective.
        kind: "auto", "kl" (the outputs are logits or distributions), "squared", "labels" / "divergence" to insist
            on using or ignoring the labels, or "module:function" for a loss of the user's own (see ``custom``).
        temperature: of the softened divergence; by default the spread of the logits, or with labels 1, and more where
            the network is surer than the samples can tell (``temperature.supported``).

    Raises:
        ModelError: no float output depends on a weight.
        DataError: labels that do not fit the outputs.
        UsageError: no such kind.
    """
    if kind not in KINDS and not is_function_spec(kind):
        raise UsageError(f"no objective '{kind}'; there are {', '.join(KINDS)} and module:function")
    if kind == "labels" and labels is None:
        raise UsageError("the objective is 'labels', but the samples have none")
    supervised = labels is not None and kind != "divergence"
    slots, notes = float_outputs(mirror, batches[0])
    if is_function_spec(kind):
        head: Head = CustomHead(mirror.name_of(slots[0]), slots[0], kind, find_function(kind))
        return Objective((head,), supervised, tuple(notes))
    looks = [_Look(mirror, slot, as_distribution=kind != "squared") for slot in slots]
    with torch.no_grad():
        values = [mirror.evaluate(inputs, outputs=[look.slot for look in looks]) for inputs in batches]
    wants = _Wants(kind, supervised, supervised and not labels.is_floating_point(), temperature)
    heads = [look.head(found, wants, notes) for look, found in zip(looks, zip(*values, strict=True), strict=True)]
    if supervised:
        heads = [_labelled_head(heads, labels)]
    heads = [replace(head, weight=1.0 / len(heads)) for head in heads]
    return Objective(tuple(heads), supervised, tuple(notes))


@dataclass(frozen=True)
class _Wants:
    """What the user said: the kind of objective, whether there are labels, and of classes, and the temperature."""

    kind: str
    supervised: bool
    classes: bool
    temperature: float | None

    def temperature_of(self, rows: Sequence[Tensor]) -> float:
        """That asked for, or the one that fits the logits."""
        return self.temperature or (supported(rows) if self.supervised else spread(rows))


@dataclass
class _Look:
    """A float output, or what a terminal Softmax or Sigmoid makes it from, and the head that fits its values."""

    mirror: Mirror
    output: int
    as_distribution: bool
    slot: int = field(init=False)
    distribution: Any = field(init=False)

    def __post_init__(self) -> None:
        step = terminal(self.mirror, self.output)
        found = step is not None and step.operator.distribution is not None and self.as_distribution
        self.slot = step.inputs[0] if found else self.output
        self.distribution = step.operator.distribution if found else None
        if callable(self.distribution):
            self.distribution = partial(self.distribution, **step.attributes)

    def head(self, values: Sequence[Tensor], wants: _Wants, notes: list[str]) -> Head:
        name = self.mirror.name_of(self.slot)
        if self.distribution == "bernoulli":
            pairs = [torch.stack((z, torch.zeros_like(z)), -1).reshape(-1, 2) for z in values]
            fitting = supported(pairs) if wants.supervised else spread([pair[:, :1] for pair in pairs], centred=False)
            return SigmoidHead(name, self.slot, wants.temperature or fitting)
        rows = self.distribution
        if rows is None and wants.kind != "squared" and _are_probabilities(values):
            logits = [_last_axis_rows(p).clamp_min(ProbabilityHead.FLOOR).log() for p in values]
            return ProbabilityHead(name, self.slot, wants.temperature_of(logits))
        if rows is None and wants.kind != "squared" and values[0].dim() >= 2:
            looks_so = values[0].dim() == 2 and (wants.classes or _look_like_logits(values))
            if wants.kind == "kl" or looks_so:
                rows = _last_axis_rows
            if looks_so and not wants.classes and wants.kind != "kl":
                notes.append(f"output '{name}' looks like logits of a classifier; --objective squared if it is not")
        if rows is not None:
            return SoftmaxHead(name, self.slot, rows, wants.temperature_of([rows(z) for z in values]))
        everything = torch.cat([z.double().reshape(-1) for z in values])
        variance = float(everything.var()) if everything.numel() > 1 else 0.0
        return SquaredHead(name, self.slot, variance if variance > 0 else 1.0)


def _last_axis_rows(z: Tensor) -> Tensor:
    return z.reshape(-1, z.shape[-1])


def _look_like_logits(values: Sequence[Tensor]) -> bool:
    rows = torch.cat([_last_axis_rows(z).float() for z in values])
    if rows.shape[1] < 2 or len(rows) < 2:
        return False
    top, classes = torch.softmax(rows, -1).max(-1)
    return bool(top.mean() > CONFIDENT) and len(classes.unique()) > 1


def _are_probabilities(values: Sequence[Tensor]) -> bool:
    """Rows of at least two numbers in [0, 1] that sum to 1."""
    return all(
        z.dim() >= 2
        and z.shape[-1] >= 2
        and bool((z >= 0).all())
        and torch.allclose(z.sum(-1), torch.ones_like(z.sum(-1)), atol=1e-3)
        for z in values
    )


def _labelled_head(heads: Sequence[Head], labels: Tensor) -> Head:
    """The head that the labels belong to: the first of the fitting kind."""
    wants_classes = not labels.is_floating_point()
    for head in heads:
        if isinstance(head, SquaredHead) != wants_classes:
            return head
    what = "integer classes, but no output looks like class scores" if wants_classes else "floats"
    raise DataError(f"the labels are {what}; use --objective divergence to ignore them")
