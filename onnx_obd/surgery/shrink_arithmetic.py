"""Shape arithmetic run again for other shapes, and where each of its numbers comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from onnx_obd.errors import ModelError
from onnx_obd.graph.weights import Path
from onnx_obd.mirror.second import movement
from onnx_obd.units.kept import Kept
from onnx_obd.units.trace import Trace, TracedStep, Value

Reader = tuple[Path | None, str, int]
"""One input of one node: where the node stands, its label, the position."""

Sources = np.ndarray
"""For each element the number of the stored element it is a copy of (see ``Arithmetic.places``), 0 if of none."""


def reader_of(step: TracedStep, position: int) -> Reader:
    return step.step.path, step.step.node, position


@dataclass
class Edits:
    """What has to change beside the slices that go.

    ``attributes``: (node, attribute) -> old and new value, None where there is none. ``stored``: stored value -> its
    new numbers, without the slices that go. ``own``: (node, input) -> what this node alone is to read there.
    ``copies``: (node, input) -> the node that computes what it reads there, of which it needs a copy, and what the copy
    reads itself, by input.
    """

    attributes: dict[tuple[Path, str], tuple[Any, Any]] = field(default_factory=dict)
    stored: dict[Value, np.ndarray] = field(default_factory=dict)
    own: dict[tuple[Path, int], np.ndarray] = field(default_factory=dict)
    copies: dict[tuple[Path, int], tuple[Path, dict[int, np.ndarray]]] = field(default_factory=dict)


class Arithmetic:
    """The nodes whose results follow from constants and shapes, run with the shapes that are left.

    ``values``: what could be computed, and the stored tensors it comes from. ``made_by``: value -> the node that
    computed it. ``places``: the number of an element as one node reads it -> (value, reader, position). Elements of
    stored tensors have one, and numbers by themselves that were computed with and are joined with others.
    """

    def __init__(self, trace: Trace, kept: Kept, edits: Edits | None = None):
        self.trace, self.kept, self.edits = trace, kept, edits or Edits()
        self.values: dict[Value, torch.Tensor] = {}
        self.places: dict[int, tuple[Value, Reader, int]] = {}
        self._sources: dict[Value, Sources] = {}
        self._read_as: dict[Reader, Sources] = {}
        self.made_by: dict[Value, TracedStep] = {}
        for value in trace.stored:
            if value in trace.known:
                self.values[value] = self._stored(value)
        with torch.no_grad():
            for step in trace.steps:
                if step.folded and step.inputs:
                    self._run(step)

    def _stored(self, value: Value) -> torch.Tensor:
        if value in self.edits.stored:
            return torch.from_numpy(self.edits.stored[value])
        tensor = self.trace.known[value]
        for axis, kept in enumerate(self.kept.value(value)):
            tensor = tensor.index_select(axis, torch.from_numpy(np.flatnonzero(kept)))
        return tensor

    def read(self, step: TracedStep, position: int) -> tuple[torch.Tensor | None, Sources]:
        """What a node reads at an input, None if that is not known; and where its elements come from."""
        value = step.inputs[position]
        if (step.step.path, position) in self.edits.own:
            tensor = torch.from_numpy(self.edits.own[step.step.path, position])
            return tensor, np.zeros(tensor.numel(), np.int64)
        if (step.step.path, position) in self.edits.copies:
            tensor = self._of_copy(value, self.edits.copies[step.step.path, position][1])
            return tensor, np.zeros(tensor.numel(), np.int64)
        tensor = self.values.get(value)
        if tensor is None:
            return None, np.zeros(0, np.int64)
        if value not in self.trace.stored or tensor.is_floating_point():
            sources = self._sources.get(value, np.zeros(tensor.numel(), np.int64))
            if tensor.numel() != 1 or sources.any() or not _joins(step):
                return tensor, sources
        reader = reader_of(step, position)
        if reader not in self._read_as:
            start = len(self.places) + 1
            self.places.update({start + i: (value, reader, i) for i in range(tensor.numel())})
            self._read_as[reader] = np.arange(start, start + tensor.numel())
        return tensor, self._read_as[reader]

    def _of_copy(self, value: Value, others: Mapping[int, np.ndarray]) -> torch.Tensor:
        """What a copy of the node that computes ``value`` returns for it, with other inputs."""
        made = self.made_by[value]
        inputs = [self.read(made, position)[0] for position in range(len(made.inputs))]
        for position, numbers in others.items():
            inputs[position] = torch.from_numpy(numbers)
        return made.step(*inputs)[made.outputs.index(value)]

    def stored(self, place: int) -> bool:
        """Is it the number of an element of a stored tensor?"""
        return place in self.places and self.places[place][0] in self.trace.stored

    # ---- numbers that were computed with

    def solve(self, value: Value, index: int, wanted: int, lengths: Mapping[int, int]) -> tuple[int, int] | None:
        """The stored element, by its number, and the new length it must spell for ``value[index]`` to be ``wanted``.

        ``lengths``: old length -> new one, of the axes that the elements in question may spell.
        """
        steps = self._above(value)
        for step in steps:
            for position, source in enumerate(step.inputs):
                if source not in self.trace.stored:
                    continue
                tensor, numbers = self.read(step, position)
                known = [] if tensor is None else tensor.reshape(-1).tolist()
                for place, number in zip(numbers.tolist(), known, strict=True):
                    if place and number in lengths and self._try(steps, value, place, lengths[number])[index] == wanted:
                        return place, lengths[number]
        return None

    def _above(self, value: Value) -> list[TracedStep]:
        """The steps that a value is computed by, in the order in which they run."""
        found: dict[int, TracedStep] = {}
        pending = [value]
        while pending:
            step = self.made_by.get(pending.pop())
            if step is not None and id(step) not in found:
                found[id(step)] = step
                pending += () if step.step.operator.shape_only else step.inputs
        return [step for step in self.trace.steps if id(step) in found]

    def _try(self, steps: list[TracedStep], value: Value, place: int, number: int) -> list[int]:
        """The numbers of ``value`` if one stored element were another."""
        _, reader, index = self.places[place]

        def changed(step: TracedStep, inputs: list) -> None:
            if reader[:2] == (step.step.path, step.step.node):
                inputs[reader[2]] = inputs[reader[2]].clone()
                inputs[reader[2]].view(-1)[index] = number

        return self._rerun(steps, value, {}, changed)

    def _rerun(
        self,
        steps: list[TracedStep],
        value: Value,
        others: Mapping[Value, torch.Tensor],
        change: Callable[[TracedStep, list], None] = lambda step, inputs: None,
    ) -> list[int]:
        """The numbers of ``value`` by the same steps from other values, or with inputs changed."""
        values = self.values | others
        for step in steps:
            if step.step.operator.shape_only:
                continue
            inputs = [values.get(source) for source in step.inputs]
            change(step, inputs)
            try:
                values.update(zip(step.outputs, step.step(*inputs), strict=False))
            except ModelError:
                break
        return values[value].reshape(-1).tolist()

    def same_for_all_inputs(self, value: Value) -> bool:
        """Does what was computed follow from constants alone and lengths that the model fixes?"""
        steps = self._above(value)
        return all(
            self._rerun(steps, value, {output: other}) == self.values[value].reshape(-1).tolist()
            for step in steps
            if step.step.operator.shape_only
            for output in step.outputs
            for other in self._other_lengths(step, output)
        )

    def _other_lengths(self, step: TracedStep, output: Value) -> Iterator[torch.Tensor]:
        """What a Shape may return for other inputs: each length changed that the model does not declare."""
        lengths, declared = self.values[output], self.trace.declared.get(step.inputs[0], ())
        own = len(declared) == lengths.numel()  # and not a part of the shape or its product
        for index in range(lengths.numel()):
            if not own or declared[index] is None:
                other = lengths.clone()
                other.view(-1)[index] += 1
                yield other

    # ---- one step

    def _run(self, step: TracedStep) -> None:
        operator, sources = step.step.operator, []
        if operator.shape_only:
            inputs: list[Any] = [_empty(self.kept.lengths(v)) if v in self.trace.axes else None for v in step.inputs]
        else:
            inputs, sources = zip(*(self.read(step, position) for position in range(len(step.inputs))), strict=True)
            if any(value and tensor is None for value, tensor in zip(step.inputs, inputs, strict=True)):
                return
        try:
            result = step.step(*inputs)
        except ModelError:
            return  # what it reads does not fit any more; whether that matters, the readers of its outputs say
        for value, tensor in zip(step.outputs, result, strict=False):
            if isinstance(tensor, torch.Tensor):
                self.values[value], self.made_by[value] = tensor, step
        if operator.second is movement and not operator.shape_only:
            self._follow(step, inputs, sources)

    def _follow(self, step: TracedStep, inputs: list[torch.Tensor], sources: list[Sources]) -> None:
        """Where the elements of rearranged tensors come from: the same rearrangement of the numbers of theirs.

        The first input is rearranged, or all of them; behind a condition those that it chooses from.
        """
        joins = _joins(step)
        chooses = inputs[0].dtype == torch.bool and self.values[step.outputs[0]].dtype != torch.bool
        data = [
            torch.from_numpy(source).reshape(tensor.shape)
            if (joins or (position == 0) != chooses) and position not in step.step.host
            else tensor
            for position, (tensor, source) in enumerate(zip(inputs, sources, strict=True))
        ]
        for value, found in zip(step.outputs, step.step(*data), strict=False):
            self._sources[value] = found.reshape(-1).to(torch.int64).numpy()


def _joins(step: TracedStep) -> bool:
    return any(parameter.kind is parameter.VAR_POSITIONAL for parameter in step.step.operator.parameters)


def _empty(shape: list[int]) -> torch.Tensor:
    return torch.empty(()).expand(shape)
