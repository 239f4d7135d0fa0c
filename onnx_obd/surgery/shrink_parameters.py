"""What spells the sizes of axes - shapes, split points, group counts - and what it has to say once units are gone.

A size may be spelled by an attribute, by a stored tensor that a node reads, or by one element of a stored tensor that
reaches the node through shape arithmetic (``Concat(Shape(x)[0], 12, 64)`` into a Reshape). The arithmetic is run again
with the new shapes; where it then gives something else than the node needs, the stored element it came from is
changed, and the arithmetic is run once more to see that this was enough. A number that was computed from a length of
something else, such as the width of the input for that of the queries, is spelled instead where it is joined with
others or read, if it is the same for all inputs. Where nodes that need different sizes read one result, as PyTorch's
newer exporter writes it, all but the first get a copy of the node that computes it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from onnx_obd.errors import ModelError
from onnx_obd.graph.weights import Path
from onnx_obd.surgery.shrink_arithmetic import Arithmetic, Edits, Reader, reader_of
from onnx_obd.units.kept import Kept
from onnx_obd.units.trace import Trace, TracedStep, Value


class CannotShrink(ModelError):
    """A size is spelled where it cannot be changed."""


@dataclass(frozen=True)
class Requirement:
    """What a node has to read at an input."""

    step: TracedStep
    position: int
    numbers: list[int]

    @property
    def value(self) -> Value:
        return self.step.inputs[self.position] if self.position < len(self.step.inputs) else 0

    @property
    def where(self) -> str:
        return f"node {self.step.step.node}: parameter {self.position}"


def size_edits(trace: Trace, kept: Kept) -> Edits:
    """The edits that make every node spell the sizes that are left.

    Raises:
        CannotShrink: two nodes need different things of one number, or a number cannot be changed where it comes from.
    """
    edits, required = Edits(), []
    for step in trace.steps:
        required += _of_step(step, trace, kept, edits)
    for requirement in [r for r in required if r.value == 0]:
        required.remove(requirement)
        edits.own[_node_path(requirement.step, requirement.where), requirement.position] = np.array(requirement.numbers)
    arithmetic = Arithmetic(trace, kept)
    _change(trace, arithmetic, _changes(arithmetic, required, edits), edits)
    arithmetic = Arithmetic(trace, kept, edits)
    for requirement in required:
        numbers, _ = arithmetic.read(requirement.step, requirement.position)
        if numbers is None or numbers.reshape(-1).tolist() != requirement.numbers:
            raise CannotShrink(f"{requirement.where} is computed in a way that cannot be followed")
    return edits


def _of_step(step: TracedStep, trace: Trace, kept: Kept, edits: Edits) -> Iterator[Requirement]:
    """What the parameters of one node must be; those that are attributes go into the edits."""
    operator, found = step.step.operator, {}
    for name, axis in step.correspondence.names.items():
        if name in operator.keywords and step.node.get(name):
            found[name] = int(kept.axis(axis).sum())
    if operator.spelled is not None:
        found |= operator.spelled(kept.node(step))
    positions = {parameter.name: i for i, parameter in enumerate(operator.parameters)}
    for name, new in found.items():
        old = step.node.get(name)
        if isinstance(old, torch.Tensor):
            old = old.reshape(-1).tolist()
        elif isinstance(old, tuple):
            old = list(old)
        if name in operator.keywords:
            _set_attribute(edits, step, name, old, new)
        elif new != old or step.inputs[positions[name]] in trace.known:
            yield Requirement(step, positions[name], new)


def _node_path(step: TracedStep, where: str) -> Path:
    """Of a node that is to read a tensor of its own."""
    if step.step.path is None or step.step.path[0] == "function":
        raise CannotShrink(f"{where} stands in a function body")
    return step.step.path


def _set_attribute(edits: Edits, step: TracedStep, name: str, old: Any, new: Any) -> None:
    """``edits`` also holds what must stay as it is: a node inside a function may be run for several calls."""
    if step.step.path is None:
        if new != old:
            raise CannotShrink(f"node {step.step.node}: '{name}' stands in a function that ONNX defines")
    elif edits.attributes.setdefault((step.step.path, name), (old, new))[1] != new:
        raise CannotShrink(f"node {step.step.node}: '{name}' would have to differ between two calls of its function")


Changes = dict[Value, dict[Reader, dict[int, int]]]
"""Value -> one that reads it -> position -> the number it must find there."""


Change = tuple[Value, Reader, int, int]
"""A value, one that reads it, a position and the number it must find there."""


def _changes(arithmetic: Arithmetic, required: Sequence[Requirement], edits: Edits) -> Changes:
    """What each asks for; who asks for something else than one before gets a copy to read (``edits.copies``)."""
    found: Changes = defaultdict(lambda: defaultdict(dict))
    for requirement in required:
        asked: Changes = defaultdict(lambda: defaultdict(dict))
        disagree = False
        for value, reader, position, new in _asked(arithmetic, requirement):
            if asked[value][reader].setdefault(position, new) != new:
                raise CannotShrink(f"{requirement.where} needs one number to be two")
            disagree |= found[value][reader].get(position, new) != new
        if disagree:
            where = _node_path(requirement.step, requirement.where), requirement.position
            edits.copies[where] = _copy(arithmetic, requirement, asked)
            continue
        for value, by_reader in asked.items():
            for reader, numbers in by_reader.items():
                found[value][reader] |= numbers
    return found


def _asked(arithmetic: Arithmetic, requirement: Requirement) -> Iterator[Change]:
    numbers, sources = arithmetic.read(requirement.step, requirement.position)
    if numbers is None or numbers.numel() != len(requirement.numbers):
        raise CannotShrink(f"{requirement.where} is computed from data")
    for index, (number, wanted) in enumerate(zip(numbers.reshape(-1).tolist(), requirement.numbers, strict=True)):
        place = int(sources[index])
        if number != wanted or arithmetic.stored(place):
            yield _where(arithmetic, requirement, index, place)


def _copy(arithmetic: Arithmetic, requirement: Requirement, asked: Changes) -> tuple[Path, dict[int, np.ndarray]]:
    """The node whose result is required, and what a copy of it has to read, by input."""
    made, others = arithmetic.made_by.get(requirement.value), {}
    for value, by_reader in asked.items():
        for (path, node, position), numbers in by_reader.items():
            if made is None or (path, node) != (made.step.path, made.step.node):
                raise CannotShrink(f"{requirement.where} shares a number with a node that needs another")
            others[position] = arithmetic.values[value].clone()
            for index, number in numbers.items():
                others[position].view(-1)[index] = number
    return _node_path(made, requirement.where), {position: numbers.numpy() for position, numbers in others.items()}


def _where(arithmetic: Arithmetic, requirement: Requirement, index: int, place: int) -> Change:
    """What to change, that the number at ``index`` be the one required.

    A stored element that it is a copy of or was computed from; else the number itself, where it is joined with others
    or read, if it is the same for all inputs.
    """
    wanted, value = requirement.numbers[index], requirement.value
    if arithmetic.stored(place):
        return *arithmetic.places[place], wanted
    if solved := arithmetic.solve(value, index, wanted, _new_lengths(requirement.step, arithmetic)):
        place, new = solved
        return *arithmetic.places[place], new
    joined = arithmetic.places.get(place, (value, reader_of(requirement.step, requirement.position), index))
    if not arithmetic.same_for_all_inputs(joined[0]):
        number = arithmetic.values[value].reshape(-1)[index]
        raise CannotShrink(f"{requirement.where} is {number} where {wanted} is needed")
    return *joined, wanted


def _new_lengths(step: TracedStep, arithmetic: Arithmetic) -> dict[int, int]:
    """Old length -> new one, of the axes of a node that shrink."""
    return {
        axis.length: new
        for value in (*step.inputs, *step.outputs)
        for axis, new in zip(arithmetic.trace.axes.get(value, ()), arithmetic.kept.lengths(value), strict=True)
        if axis.length != new
    }


def _change(trace: Trace, arithmetic: Arithmetic, changes: Changes, edits: Edits) -> None:
    """Change stored tensors as their readers need them; where they differ, those that need a change get their own."""
    readers: dict[Value, dict[Reader, TracedStep]] = defaultdict(dict)
    for step in trace.steps:
        for position, value in enumerate(step.inputs):
            if value in changes:
                readers[value][reader_of(step, position)] = step
    for value, by_reader in changes.items():
        old = arithmetic.values[value]
        wanted = {reader: old.clone() for reader in readers[value]}
        for reader, numbers in by_reader.items():
            for index, number in numbers.items():
                wanted[reader].view(-1)[index] = number
        changed = {reader: numbers for reader, numbers in wanted.items() if not torch.equal(numbers, old)}
        first = next(iter(wanted.values()))
        if changed and value in trace.stored and all(torch.equal(numbers, first) for numbers in wanted.values()):
            edits.stored[value] = first.numpy()
            continue
        for reader, numbers in changed.items():
            where = f"node {reader[1]}: parameter {reader[2]}"
            edits.own[_node_path(readers[value][reader], where), reader[2]] = numbers.numpy()
