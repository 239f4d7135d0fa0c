"""Weights stored as integers become float parameters.

An integer tensor q of the file whose every reader takes it for (q - zero_point) scale, with scale and zero point fixed,
is a weight like any other: its parameter holds those values. Before the readers, a step puts the parameter back on its
grid, saturate(round(w / scale + zero_point)), with the gradient straight through the rounding. So the mirror computes
what the file computes with the integers that are written back, whatever is done to the parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from onnx import TensorProto
from torch import Tensor

from onnx_obd.graph.weights import Weight
from onnx_obd.mirror.ops.cast import NARROW
from onnx_obd.mirror.ops.quantize import round_to
from onnx_obd.mirror.program import CallWithBodies, Step
from onnx_obd.mirror.registry import Operator, Stored
from onnx_obd.mirror.second import elementwise, movement
from onnx_obd.mirror.values import TORCH_DTYPE, ElementType, Quantised, plain, to_numpy, to_torch

STORED_TYPES = frozenset(TORCH_DTYPE) - {
    TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.BOOL,
    TensorProto.INT64, TensorProto.UINT64, TensorProto.COMPLEX64, TensorProto.COMPLEX128,
}  # fmt: skip
"""Element types that weights are quantised to."""

_UNSIGNED = {bits: elem_type for elem_type, bits in NARROW.items() if TORCH_DTYPE[elem_type] == torch.uint8}
"""The element types of numbers that stand in bytes, by their bits."""


@dataclass(frozen=True)
class IntegerWeight:
    """How the values of one stored tensor and its integers belong together.

    ``slot`` is where its readers find the integers; ``scale`` and ``zero_point`` broadcast against them. ``unpack`` and
    ``pack`` go between the tensor as stored and one integer for each value, of type ``element``.
    """

    weight: Weight
    slot: int
    scale: Tensor
    zero_point: Tensor
    unpack: Callable[[Tensor], Tensor]
    pack: Callable[[Tensor, Tensor], Tensor]
    element: ElementType

    def decode(self, stored: np.ndarray) -> Tensor:
        """The values, (q - zero_point) scale."""
        q = self.unpack(to_torch(stored))
        working = torch.promote_types(self.scale.dtype, torch.float32)
        return ((q.to(working) - self.zero_point.to(working)).to(self.scale.dtype) * self.scale).contiguous()

    def encode(self, values: Tensor, stored: np.ndarray) -> np.ndarray:
        """The tensor to store for new values: the nearest integers, and where a value is as it was, the old ones."""
        values, old = values.detach().cpu().to(self.scale.dtype), self.unpack(to_torch(stored))
        nearest = plain(_on_grid(values, self.scale, self.zero_point, self.element)).to(old.dtype)
        q = torch.where(self.decode(stored) == values, old, nearest)
        return to_numpy(self.pack(q, to_torch(stored))).astype(stored.dtype)

    def step(self, parameter: int, scale: int, zero_point: int) -> Step:
        """The step that computes the integers from the slots of the parameter, the scale and the zero point."""
        call = partial(_on_grid, element=self.element)
        return Step(f"weight '{self.weight.name}'", _ON_GRID, call, (parameter, scale, zero_point), (self.slot,))


def _on_grid(values: Tensor, scale: Tensor, zero_point: Tensor, element: ElementType) -> Quantised:
    return round_to(values / scale + zero_point, 0, element)  # a zero point may lie between integers


_ON_GRID = Operator("onnx_obd", "OnGrid", (1,), _on_grid, second=elementwise, recodes=True)


def find_integer_weights(
    steps: Sequence[Step],
    outputs: Sequence[int],
    constants: Mapping[int, Any],
    parameters: Mapping[int, Callable[[], Tensor]],
    stored: Mapping[int, Weight],
) -> list[IntegerWeight]:
    """The constants that are weights stored as integers.

    Args:
        steps: of the root program, with its outputs.
        constants: slot -> value.
        parameters: slot -> function that reads the value of a float weight.
        stored: slot of a constant -> where it is stored.
    """
    fixed = _Fixed(steps, constants, parameters)
    found = []
    for slot, weight in stored.items():
        if weight.elem_type in STORED_TYPES and slot not in outputs:
            readers = list(_readers(steps, outputs, slot))
            grid = _common_grid(constants[slot], readers, fixed)
            if grid is not None:
                *grid, bits = grid
                elem_type = _UNSIGNED.get(bits, weight.elem_type)
                found.append(IntegerWeight(weight, slot, *grid, ElementType(elem_type, TORCH_DTYPE[elem_type])))
    return found


@dataclass(frozen=True)
class _Reader:
    """A use of a stored tensor. ``outer`` gives the slot in the root program of what the step reads, where it has one;
    ``moved``: the tensor was rearranged on its way."""

    step: Step
    position: int
    outer: Callable[[int], int | None]
    moved: bool

    @property
    def entry(self) -> Stored | None:
        return next((entry for entry in self.step.operator.stored if entry.operand == self.position), None)


def _readers(
    steps: Sequence[Step],
    outputs: Sequence[int],
    slot: int,
    outer: Callable[[int], int | None] = lambda slot: slot,
    moved: bool = False,
) -> Iterator[_Reader | None]:
    """Who reads the value in a slot, behind steps that rearrange it and in bodies; None if it leaves the program."""
    if slot in outputs:
        yield None
    for step in steps:
        for position, source in enumerate(step.inputs):
            if source != slot:
                continue
            if isinstance(step.call, CallWithBodies):
                yield from _inside(step, position, outer, moved)
            elif step.operator.second is movement and position not in step.host:
                for output in step.outputs:
                    yield from _readers(steps, outputs, output, outer, True)
            else:
                yield _Reader(step, position, outer, moved)


def _inside(step: Step, position: int, outer: Callable, moved: bool) -> Iterator[_Reader | None]:
    call, start = step.call, step.call.own_inputs
    if position < start:
        yield None
    for body, count in call.bodies.values():
        if start <= position < start + count:
            inside = body.inputs[len(body.inputs) - count :]
            captured = {0: 0, **dict(zip(inside, map(outer, step.inputs[start : start + count]), strict=True))}
            yield from _readers(body.steps, body.outputs, inside[position - start], captured.get, moved)
        start += count


def _common_grid(stored: Tensor, readers: Sequence[_Reader | None], fixed: _Fixed) -> tuple | None:
    """Scale, zero point, unpack, pack and bits, if all readers agree on them."""
    grids = [None if reader is None else _grid(stored, reader, fixed) for reader in readers]
    if not grids or any(grid is None for grid in grids):
        return None
    first = grids[0]
    same = all(torch.equal(a, b) for grid in grids for a, b in zip(first[:2], grid[:2], strict=True))
    return first if same else None


def _grid(stored: Tensor, reader: _Reader, fixed: _Fixed) -> tuple | None:
    entry, step = reader.entry, reader.step
    if entry is None:
        return None
    slots = [reader.outer(step.inputs[p]) if p < len(step.inputs) else 0 for p in entry.reads]
    if not all(slot in fixed for slot in slots):
        return None
    unpack = partial(entry.unpack, **step.attributes) if entry.unpack else lambda stored: stored
    pack = partial(entry.pack, **step.attributes) if entry.pack else lambda q, stored: q
    scale, zero_point = entry.grid(unpack(stored), *(fixed.value(slot) for slot in slots), **step.attributes)
    if reader.moved and (scale.numel() > 1 or zero_point.numel() > 1 or entry.unpack):
        return None
    if reader.moved:
        scale, zero_point = scale.reshape(()), zero_point.reshape(())
    bits = entry.bits(**step.attributes) if entry.bits else None
    return scale.masked_fill(scale == 0, 1), zero_point, unpack, pack, bits


class _Fixed:
    """The values that do not depend on the inputs of the model, computed when asked for."""

    def __init__(self, steps: Sequence[Step], constants: Mapping[int, Any], parameters: Mapping[int, Callable]):
        self.values, self.parameters = {0: None, **constants}, parameters
        self.producers: dict[int, Step] = {}
        for step in steps:
            if not step.operator.random and all(slot in self for slot in step.inputs):
                self.producers.update(dict.fromkeys(step.outputs, step))

    def __contains__(self, slot: int | None) -> bool:
        return slot in self.values or slot in self.parameters or slot in self.producers

    def value(self, slot: int) -> Any:
        if slot not in self.values and slot in self.parameters:
            self.values[slot] = self.parameters[slot]()
        elif slot not in self.values:
            step = self.producers[slot]
            results = step(*(self.value(source) for source in step.inputs))
            self.values.update(zip(step.outputs, results, strict=False))
        return self.values[slot]
