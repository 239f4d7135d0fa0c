"""What stays when some atoms go; and whether nodes that move elements can do without."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from onnx_obd.mirror.axes import ShrunkNode
from onnx_obd.mirror.program import to_host
from onnx_obd.units.atoms import Axis
from onnx_obd.units.trace import Trace, TracedStep, Value


class Kept:
    """Which indices of which axes stay when the atoms ``removed`` go."""

    def __init__(self, found: Trace, removed: Collection[int]):
        self.trace = found
        self._gone = np.zeros(found.atoms.count, bool)
        self._gone[list(removed)] = True
        self._values: dict[Value, list[np.ndarray]] = {}

    def axis(self, axis: Axis) -> np.ndarray:
        """True for the indices that stay."""
        return ~self._gone[axis.labels].any(0)

    def value(self, value: Value) -> list[np.ndarray]:
        if value not in self._values:
            self._values[value] = [self.axis(axis) for axis in self.trace.axes.get(value, ())]
        return self._values[value]

    def lengths(self, value: Value) -> list[int]:
        return [int(kept.sum()) for kept in self.value(value)]

    def node(self, step: TracedStep) -> ShrunkNode:
        node = step.node
        inputs, outputs = ([self.value(value) for value in values] for values in (step.inputs, step.outputs))
        return ShrunkNode(node.operator, node.attributes, node.inputs, node.outputs, node.constant, inputs, outputs)

    def touches(self, step: TracedStep) -> bool:
        return any(not kept.all() for value in step.inputs for kept in self.value(value))


TRIALS = (0.25, 0.5, 1.0)
"""Shares of a family that are tried together, beside its first member alone: a Slice in steps of two does without a
member at its end, but not without any two."""


def stuck(found: Trace, families: Sequence[Sequence[int]]) -> dict[int, str]:
    """The families of atoms, by number, that a node which moves elements cannot do without, and why.

    Such a node is run once more without the elements of some, its parameters spelling the sizes that are left: what it
    returns must be what it returned before, without theirs. One of each family is always left.
    """
    moves = [step for step in found.steps if step.moves]
    generator, reasons = np.random.default_rng(0), {}
    for number, family in enumerate(families):
        tried = [family[:1]] + [_some(family, share, generator) for share in TRIALS if len(family) > 2]
        failing = next((step for atoms in tried if (step := broken(moves, Kept(found, atoms))) is not None), None)
        if failing is not None:
            reasons[number] = f"node {failing.step.node} cannot do without it"
    return reasons


def _some(family: Sequence[int], share: float, generator: np.random.Generator) -> list[int]:
    count = min(len(family) - 1, max(2, round(share * len(family))))
    return generator.choice(family, count, replace=False).tolist()


def broken(moves: Iterable[TracedStep], kept: Kept) -> TracedStep | None:
    """The first node that returns something else without what goes."""
    return next((step for step in moves if kept.touches(step) and not _goes_on(step, kept)), None)


def _goes_on(step: TracedStep, kept: Kept) -> bool:
    operator, node = step.step.operator, kept.node(step)
    x = torch.arange(node.inputs[0].numel(), dtype=torch.float64).reshape(node.inputs[0].shape)
    before = call_with(step, {}, [x, *node.inputs[1:]])
    spelled = operator.spelled(node) if operator.spelled is not None else {}
    try:
        after = call_with(step, spelled, [without(x, node.kept_inputs[0]), *node.inputs[1:]])
    except (RuntimeError, IndexError, ValueError, TypeError):
        return False
    pairs = zip(before, after, node.kept_outputs, strict=True)
    return all(torch.equal(without(old, masks), new) for old, new, masks in pairs)


def call_with(step: TracedStep, parameters: Mapping[str, Any], inputs: Sequence[Any]) -> tuple:
    """The outputs of the node for other inputs and ``parameters``, named as in the function of its operator."""
    operator, inputs, attributes = step.step.operator, list(inputs), dict(step.step.attributes)
    for position, parameter in enumerate(operator.parameters):
        if parameter.name not in parameters:
            continue
        if parameter.kind is parameter.KEYWORD_ONLY:
            attributes[parameter.name] = parameters[parameter.name]
        else:
            inputs += [None] * (position + 1 - len(inputs))
            inputs[position] = _like(inputs[position], parameters[parameter.name])
    inputs = [to_host(value) if position in step.step.host else value for position, value in enumerate(inputs)]
    result = partial(operator.function, **attributes)(*inputs)
    return result if isinstance(result, tuple) else (result,)


def _like(old: Any, new: list[int]) -> Any:
    if not isinstance(old, torch.Tensor):
        return tuple(new)
    return torch.tensor(new, dtype=old.dtype).reshape(old.shape if old.numel() == len(new) else -1)


def without(x: torch.Tensor, masks: Sequence[np.ndarray]) -> torch.Tensor:
    """What is left of a tensor."""
    for axis, mask in enumerate(masks):
        x = x.index_select(axis, torch.from_numpy(np.flatnonzero(mask)))
    return x
