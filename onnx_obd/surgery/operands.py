"""Where each weight multiplies data, and which parameter can shift the result: what a refit may move."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from onnx_obd.calibration.measure import Batch
from onnx_obd.mirror.mirror import Mirror
from onnx_obd.mirror.products import Product, product_of
from onnx_obd.mirror.program import Step
from onnx_obd.mirror.uses import rearranges

_SHIFTS = {"Add": {0: 1.0, 1: 1.0}, "Sub": {1: -1.0}, "BatchNormalization": {3: -1.0}}
"""Where a node's output may go next, and the operands there whose rise by factor · d is a rise of the output by d."""


@dataclass(frozen=True)
class Shift:
    """A parameter that shifts the node's output: adding factor · d[elements] to it adds d to y[g, :, r]."""

    name: str
    elements: Tensor
    factor: float


@dataclass(frozen=True)
class Operand:
    """A weight as the matrices of one node.

    Attributes:
        name: the weight.
        step: the node that multiplies by it; ``position`` is the weight's place among its inputs.
        elements: int64 [G, R, K]: which element of the flattened weight stands where in the matrices.
        shift: where a constant added to each output can go; None if nowhere.
    """

    name: str
    step: Step
    position: int
    elements: Tensor
    shift: Shift | None

    @property
    def slots(self) -> tuple[int, ...]:
        """The values to look at: the node's operands; 0 stands for one that is absent."""
        return self.step.inputs

    @property
    def output(self) -> int:
        """A slot that the node writes."""
        return next(slot for slot in self.step.outputs if slot)

    def product(self, values: Sequence) -> Product:
        """The node on recorded values of ``slots``."""
        return product_of(self.step.operator, self.position, values, self.step.attributes)

    def matrix(self, weight: Tensor) -> Tensor:
        """A tensor of the weight's shape as matrices [G, R, K]."""
        return weight.detach().reshape(-1)[self.elements]

    def unmatrix(self, matrix: Tensor, like: Tensor) -> Tensor:
        """Matrices [G, R, K] as a tensor of the weight's shape and dtype."""
        flat = torch.empty(like.numel(), dtype=matrix.dtype)
        flat[self.elements.reshape(-1)] = matrix.reshape(-1)
        return flat.reshape(like.shape).to(like.dtype)


def find_operands(mirror: Mirror, batch: Batch, names: Iterable[str]) -> tuple[list[Operand], dict[str, str]]:
    """The operands of the named weights in graph order, and why the other weights have none.

    Args:
        batch: of any size; the shapes are read off one run.
    """
    places = {name: _places(mirror, mirror.weight_slots()[name]) for name in names}
    skipped = {
        name: f"multiplies in {len(found)} nodes" if found else "its node lies in a subgraph"
        for name, found in places.items()
        if len(found) != 1
    }
    alone = {name: found[0] for name, found in places.items() if len(found) == 1}
    slots = tuple({slot for step, _ in alone.values() for slot in (*step.inputs, *step.outputs) if slot})
    with torch.no_grad():
        values = dict(zip(slots, mirror.evaluate(batch.inputs, outputs=slots), strict=True)) if slots else {}
    found = []
    for name, (step, position) in alone.items():
        operand = _operand(mirror, batch, name, step, position, values)
        if isinstance(operand, str):
            skipped[name] = operand
        else:
            found.append(operand)
    order = {id(step): i for i, step in enumerate(mirror.program.steps)}
    return sorted(found, key=lambda operand: order[id(operand.step)]), skipped


def _operand(
    mirror: Mirror, batch: Batch, name: str, step: Step, position: int, values: Mapping[int, Any]
) -> Operand | str:
    """The operand, or why there is none."""
    product = product_of(step.operator, position, [values.get(slot) for slot in step.inputs], step.attributes)
    if product is None:
        return f"no matrix form of {step.operator.name} is known"
    ids = torch.arange(mirror.weights[name].numel(), dtype=torch.float64)
    elements = product.matrix(_rearranged(mirror, batch, name, step.inputs[position], ids)).long()
    if elements.numel() != len(ids) or not torch.equal(elements.reshape(-1).sort().values.double(), ids):
        return f"{step.operator.name} sees it in parts or joined with other values"
    return Operand(name, step, position, elements, _shift(mirror, step, product, values.get(step.outputs[0])))


@torch.no_grad()
def _rearranged(mirror: Mirror, batch: Batch, name: str, slot: int, ids: Tensor) -> Tensor:
    """What stands in a slot if these are the elements of a weight; number formats that it passes are left out."""
    program = mirror.program.restricted((slot,))
    steps = [replace(step, call=_as_it_is) if step.operator.recodes else step for step in program.steps]
    program = replace(program, steps=tuple(steps))
    env = mirror.start(batch.inputs, program)
    env[mirror.weight_slots()[name]] = ids.reshape(mirror.weights[name].shape)
    return program.record(env)[slot]


def _as_it_is(values: Tensor, *_: Any, **__: Any) -> Tensor:
    return values


def _places(mirror: Mirror, slot: int) -> list[tuple[Step, int]]:
    """The (node, position) pairs of the main graph at which a value arrives, past nodes that only rearrange it or write
    it in another number format."""
    found = []
    for step in mirror.program.steps:
        for position, source in enumerate(step.inputs):
            if source != slot:
                continue
            if rearranges(step, position) and not step.bodies:
                found += [place for output in step.outputs for place in _places(mirror, output)]
            else:
                found.append((step, position))
    return [(step, position) for step, position in found if not step.bodies]


def _shift(mirror: Mirror, step: Step, product: Product, output: Tensor | None) -> Shift | None:
    """The node's own bias, or the parameter of the one node that takes its output."""
    if product.bias is not None:
        bias = product.bias
        rows = _ids(mirror, step.inputs[bias.position], bias.rows)
        return Shift(*rows, 1 / bias.factor) if rows and bias.factor else None
    takers = [other for other in mirror.program.steps if step.outputs[0] in other.inputs]
    if product.outputs is None or step.outputs[0] in mirror.program.outputs or len(takers) != 1:
        return None
    (taker,) = takers
    per_channel = (1,) * (output.dim() - 2) if taker.operator.name == "BatchNormalization" else ()
    for position, factor in _SHIFTS.get(taker.operator.name, {}).items():
        slot = taker.inputs[position]
        rows = slot != step.outputs[0] and _ids(
            mirror, slot, lambda ids: _rows(ids.reshape(*ids.shape, *per_channel), product, output)
        )
        if rows:
            return Shift(*rows, factor)
    return None


def _ids(mirror: Mirror, slot: int, rows: Callable[[Tensor], Tensor | None]) -> tuple[str, Tensor] | None:
    """The parameter in that slot, in whatever number format, and which of its elements goes to which row [G, R].

    None unless it is used here alone, and no element goes to two rows.
    """
    makers = {output: step for step in mirror.program.steps if step.operator.recodes for output in step.outputs}
    while slot in makers:
        slot = makers[slot].inputs[0]
    name = next((name for name, own in mirror.weight_slots().items() if own == slot), None)
    if name is None or len(_places(mirror, slot)) != 1:
        return None
    bias = mirror.weights[name]
    found = rows(torch.arange(bias.numel(), dtype=torch.float64).reshape(bias.shape))
    if found is None or len(found.unique()) < found.numel():
        return None
    return name, found.long()


def _rows(ids: Tensor, product: Product, output: Tensor) -> Tensor | None:
    """Which element of a bias reaches each output row [G, R]; None if it depends on the position."""
    try:
        rows = product.outputs(ids.expand(output.shape))
    except RuntimeError:  # it broadcasts the output to a larger shape
        return None
    first = rows[:, :1]
    return first[:, 0] if torch.equal(rows, first.expand_as(rows)) else None
