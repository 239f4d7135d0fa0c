"""Running a plan on a few samples at a time.

The values of a large batch fit neither the cache nor the memory that the C library keeps for the next ones. Where every
sample is computed by itself, the steps of a plan may as well run on slices of the batch, one after the other; those
that no input reaches run once for all. That samples are kept apart is read off the operators' ``axes``: the first axis
of what comes in is, index by index, the first axis of what comes out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from onnx_obd.errors import ModelError
from onnx_obd.mirror.axes import MOVED, Fixed, Name, Node, Unreadable, expand, names_of, parse
from onnx_obd.mirror.values import materialise

if TYPE_CHECKING:
    from onnx_obd.mirror.program import Env, Program, Step

LARGE = 32 << 20
"""Bytes of a value from which the C library gives its memory back to the system."""

SLICE = 24 << 20
"""Bytes that the largest value of a slice may have (measured: smaller is no faster)."""


@dataclass(frozen=True)
class Slices:
    """``shared``: the steps that no input reaches. ``each``: the others, to be run on ``length`` samples at a time."""

    shared: Program
    each: Program
    length: int

    def run(self, env: Env) -> tuple:
        self.shared.finish(env)
        found = [self.each.finish(part) for part in self.parts(env)]
        return tuple(map(torch.cat, zip(*found, strict=True)))

    def parts(self, env: Env) -> Iterator[Env]:
        whole = [(slot, env[slot]) for slot in self.each.inputs]
        for start in range(0, len(whole[0][1]), self.length):
            part = env.copy()
            for slot, value in whole:
                part[slot] = value[start : start + self.length]
            yield part


class Watch:
    """Told of every step of a run of a plan, it finds out whether the plan may run in slices.

    ``largest``: bytes of the largest value that would be cut, ``largest_of_all`` of any that a step has made.
    """

    def __init__(self, program: Program, env: Env):
        self.program, self.fed, self.largest = program, set(program.inputs), 0
        self.largest_of_all = 0
        counts = {len(env[slot]) if _has_samples(env[slot]) else 0 for slot in program.inputs}
        self.count = counts.pop() if len(counts) == 1 else 0

    def step(self, step: Step, values: Sequence[Any], outputs: Sequence[Any]) -> None:
        sizes = (value.nbytes for value in outputs if isinstance(value, torch.Tensor))
        self.largest_of_all = max(self.largest_of_all, *sizes, 0)
        if self.count < 2 or self.fed.isdisjoint(step.inputs):
            return
        if self._keeps_apart(step, values, outputs):
            self.fed.update(step.outputs)
            self.largest = max(self.largest, *(value.nbytes for value in outputs))
        else:
            self.count = 0

    def slices(self, env: Env, outputs: tuple) -> Slices | None:
        """How to run in slices; None if samples meet, or if no value is so large that it would pay.

        ``env`` holds the inputs and constants of the run that was watched, ``outputs`` what it returned. The slices
        must give the same: a parameter may spell a shape for the whole batch.
        """
        program, fed = self.program, self.fed
        if self.count < 2 or self.largest <= LARGE or not fed.issuperset(program.outputs):
            return None
        most = max(1, self.count * SLICE // self.largest)
        length = next(n for n in range(most, 0, -1) if self.count % n == 0)
        each = [step for step in program.steps if not fed.isdisjoint(step.inputs)]
        alone = [step for step in program.steps if fed.isdisjoint(step.inputs)]
        made = {slot for step in alone for slot in step.outputs}
        needed = tuple(made.intersection(slot for step in each for slot in step.inputs))
        slices = Slices(program.part(alone, needed), program.part(each, program.outputs), length)
        try:
            return slices if all(map(_alike, slices.run(env), outputs)) else None
        except (ModelError, RuntimeError):
            return None

    def _keeps_apart(self, step: Step, values: Sequence[Any], outputs: Sequence[Any]) -> bool:
        operator, fed = step.operator, [slot in self.fed for slot in step.inputs]
        if operator.random or step.bodies or any(fed[position] for position in step.host):
            return False
        if not all(_has_samples(value) and len(value) == self.count for value in outputs):
            return False
        constant = [not one for one in fed]
        node = Node(operator, step.attributes, step.read_host(values), outputs, constant)
        rule = node.rule
        if rule == MOVED:
            return fed[0] and not any(fed[1:]) and self._moves_whole_samples(step, values)
        return rule is not None and not rule.startswith(MOVED) and _first_axis_stays(rule, node)

    def _moves_whole_samples(self, step: Step, values: Sequence[Any]) -> bool:
        """Run on the samples' numbers: does every sample stay where it is?"""
        numbers = torch.arange(self.count, dtype=torch.int16)
        labels = numbers.view(-1, *[1] * (values[0].dim() - 1)).expand(values[0].shape)
        found = step(labels, *values[1:])
        return all(bool((labels.reshape(len(labels), -1).T == numbers).all()) for labels in found)


def _first_axis_stays(text: str, node: Node) -> bool:
    """Do the first axes of all that varies, and of the outputs, have one name, that nothing constant has?"""
    rule = parse(text)
    try:
        ins = [
            _longer(expand(rule.term(rule.inputs, position), value.dim()), value) if _has_axes(value) else []
            for position, value in enumerate(node.inputs)
        ]
        outs = [expand(rule.term(rule.outputs, position), value.dim()) for position, value in enumerate(node.outputs)]
    except (Unreadable, TypeError):
        return False
    varying = [axes for axes, constant in zip(ins, node.constant, strict=True) if not constant]
    first = {axes[0] if axes else None for axes in (*varying, *outs)}
    if len(first) != 1 or not isinstance(name := first.pop(), Name) or name.summed:
        return False
    others = [axes[not constant :] for axes, constant in zip(ins, node.constant, strict=True)]
    return not any(name in names_of(axis) for axes in (*others, *(axes[1:] for axes in outs)) for axis in axes)


def _longer(axes: list, value: torch.Tensor) -> list:
    """Axes of length 1 are broadcast, whatever they are called."""
    return [axis if length > 1 else Fixed(1) for axis, length in zip(axes, value.shape, strict=True)]


def _alike(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """The same up to rounding, and what rounding does to a quantised network."""
    if found.shape != expected.shape:
        return False
    found, expected = (materialise(value).double() for value in (found, expected))
    return torch.allclose(found, expected, rtol=0.01, atol=0.01 * float(expected.abs().max()), equal_nan=True)


def _has_axes(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.numel() > 1


def _has_samples(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() > 0
