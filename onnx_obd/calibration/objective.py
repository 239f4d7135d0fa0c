"""What pruning may not spoil: a loss over one or several values of the graph, chosen from the graph and the data.

Without labels the loss is the divergence of the pruned model's outputs from the original's (see ``heads``). With
labels it is cross-entropy or squared error against them. Where an output is not differentiable (ArgMax, ZipMap,
NonMaxSuppression), the loss looks at the last float tensors before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from onnx_obd.calibration.custom import CustomHead
from onnx_obd.calibration.heads import Head, ProbabilityHead, SigmoidHead, SoftmaxHead, SquaredHead
from onnx_obd.calibration.python_source import find_function, is_function_spec
from onnx_obd.errors import DataError, ModelError, UsageError
from onnx_obd.mirror.mirror import Mirror
from onnx_obd.mirror.program import Program, Step
from onnx_obd.mirror.second import movement
from onnx_obd.mirror.values import is_float

KINDS = ("auto", "kl", "squared", "labels", "divergence")

DEFAULT_TEMPERATURE = 4.0
"""Softens the original's outputs so that confident predictions still carry curvature."""

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
        terms = zip(self.heads, values, targets, strict=True)
        return [head.probe(z, target, count, generator) for head, z, target in terms]

    def describe(self) -> str:
        what = " + ".join(head.describe() for head in self.heads)
        return f"{what}, against {'the labels' if self.supervised else 'the original outputs'}"


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
        batches: inputs of a few batches, from which scales and the look of the outputs are taken.
        labels: int64 classes [N] or float targets [N, ...] of all samples; None for a label-free objective.
        kind: "auto", "kl" (the outputs are logits or distributions), "squared", "labels" / "divergence" to insist
            on using or ignoring the labels, or "module:function" for a loss of the user's own (see ``custom``).
        temperature: of the softened divergence; 4 by default, 1 with labels.

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
    temperature = temperature or (1.0 if supervised else DEFAULT_TEMPERATURE)
    program, records = _record(mirror, batches)
    values, notes = _float_outputs(mirror, program, records[0])
    if is_function_spec(kind):
        head = CustomHead(mirror.name_of(values[0]), values[0], kind, find_function(kind))
        return Objective((head,), supervised, tuple(notes))
    classes = supervised and not labels.is_floating_point()
    heads = []
    for slot in values:
        outputs = [env[slot] for env in records]
        heads.append(_head(mirror, program, slot, outputs, temperature, kind, classes, notes))
    if supervised:
        heads = [_labelled_head(heads, labels)]
    heads = [replace(head, weight=1.0 / len(heads)) for head in heads]
    return Objective(tuple(heads), supervised, tuple(notes))


def _record(mirror: Mirror, batches: Sequence[Sequence[Any]]) -> tuple[Program, list[dict[int, Any]]]:
    """The whole program, and for a few batches its float values (of the first batch) or outputs (of the rest)."""
    program = mirror.program
    with torch.no_grad():
        return program, [dict(enumerate(program.record(mirror.start(inputs)))) for inputs in batches]


def _float_outputs(mirror: Mirror, program: Program, env: dict[int, Any]) -> tuple[list[int], list[str]]:
    """The slots of the last float tensors that depend differentiably on a weight, one search per graph output."""
    depends = set(mirror.weight_slots().values())
    made_by: dict[int, Step] = {}
    for step in program.steps:
        made_by.update(dict.fromkeys(step.outputs, step))
        if step.operator.differentiable and depends.intersection(step.inputs):
            depends.update(slot for slot in step.outputs if is_float(env[slot]))
    found, notes = [], []
    for name, slot in zip(mirror.output_names, program.outputs, strict=True):
        ends = _last_floats(slot, depends - set(mirror.weight_slots().values()), made_by, set())
        if ends != [slot]:
            reached = ", ".join(f"'{mirror.name_of(end)}'" for end in ends) or "no weight"
            notes.append(f"output '{name}' is not differentiable: the objective uses {reached}")
        found += [end for end in ends if end not in found]
    if not found:
        raise ModelError("no float output depends on a weight, so there is nothing to prune by; see 'onnx-obd inspect'")
    return found, notes


def _last_floats(slot: int, depends: set[int], made_by: dict[int, Step], seen: set[int]) -> list[int]:
    if slot in depends:
        return [slot]
    if slot in seen or slot not in made_by:
        return []
    seen.add(slot)
    found = [end for source in made_by[slot].inputs for end in _last_floats(source, depends, made_by, seen)]
    return list(dict.fromkeys(found))


def _head(
    mirror: Mirror,
    program: Program,
    slot: int,
    outputs: Sequence[Tensor],
    temperature: float,
    kind: str,
    classes: bool,
    notes: list[str],
) -> Head:
    name = mirror.name_of(slot)
    made_by = {out: step for step in program.steps for out in step.outputs}
    step = _behind_movement(slot, made_by)
    if step is not None and step.operator.distribution and kind != "squared":
        source = step.inputs[0]
        distribution = step.operator.distribution
        if distribution == "bernoulli":
            return SigmoidHead(mirror.name_of(source), source, temperature)
        return SoftmaxHead(mirror.name_of(source), source, _bound(distribution, step), temperature)
    if kind != "squared" and _are_probabilities(outputs):
        return ProbabilityHead(name, slot, temperature)
    if kind == "kl" or (kind != "squared" and outputs[0].dim() == 2 and (classes or _look_like_logits(outputs))):
        if not classes and kind != "kl":
            notes.append(f"output '{name}' looks like logits of a classifier; --objective squared if it is not")
        return SoftmaxHead(name, slot, _last_axis_rows, temperature)
    values = torch.cat([z.detach().double().reshape(-1) for z in outputs])
    variance = float(values.var()) if values.numel() > 1 else 0.0
    return SquaredHead(name, slot, variance if variance > 0 else 1.0)


def _behind_movement(slot: int, made_by: dict[int, Step]) -> Step | None:
    """The step that computed a value, looking through steps that only rearrange it."""
    step = made_by.get(slot)
    while step is not None and step.operator.second is movement and len(step.outputs) == 1:
        step = made_by.get(step.inputs[0])
    return step


def _bound(rows: Callable[..., Tensor], step: Step) -> Callable[[Tensor], Tensor]:
    return lambda z: rows(z, **step.attributes)


def _last_axis_rows(z: Tensor) -> Tensor:
    return z.reshape(-1, z.shape[-1])


def _look_like_logits(outputs: Sequence[Tensor]) -> bool:
    rows = torch.cat([z.reshape(-1, z.shape[-1]).float() for z in outputs])
    if rows.shape[1] < 2 or len(rows) < 2:
        return False
    top, classes = torch.softmax(rows, -1).max(-1)
    return bool(top.mean() > CONFIDENT) and len(classes.unique()) > 1


def _are_probabilities(outputs: Sequence[Tensor]) -> bool:
    """Rows of at least two numbers in [0, 1] that sum to 1."""
    return all(
        z.dim() >= 2
        and z.shape[-1] >= 2
        and bool((z >= 0).all())
        and torch.allclose(z.sum(-1), torch.ones_like(z.sum(-1)), atol=1e-3)
        for z in outputs
    )


def _labelled_head(heads: Sequence[Head], labels: Tensor) -> Head:
    """The head that the labels belong to: the first of the fitting kind."""
    wants_classes = not labels.is_floating_point()
    for head in heads:
        if isinstance(head, SquaredHead) != wants_classes:
            return head
    what = "integer classes, but no output looks like class scores" if wants_classes else "floats"
    raise DataError(f"the labels are {what}; use --objective divergence to ignore them")
