"""What each weight is used for: which node multiplies data by it, and which nodes hide it from the objective."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from onnx_obd.mirror.program import CallWithBodies, Program, Step
from onnx_obd.mirror.registry import Operator
from onnx_obd.mirror.second import movement


@dataclass(frozen=True)
class Use:
    """A weight arriving at an operand of a node, as it is, rearranged (reshaped, transposed, ...) or quantised."""

    node: str
    operator: Operator
    position: int

    @property
    def multiplies(self) -> bool:
        """Is it a kernel, matrix or table (and not a bias, a statistic or a constant)?"""
        return self.position in self.operator.weights


def uses_of(program: Program, slot: int) -> list[Use]:
    """Every use of the value in a slot, looking through rearranging steps and into bodies, in graph order."""
    return list(_uses(program, slot, set()))


def _uses(program: Program, slot: int, seen: set[int]) -> Iterator[Use]:
    if slot in seen:
        return
    seen.add(slot)
    for step in program.steps:
        for position, source in enumerate(step.inputs):
            if source == slot:
                yield from _use(program, step, position, seen)


def _use(program: Program, step: Step, position: int, seen: set[int]) -> Iterator[Use]:
    if isinstance(step.call, CallWithBodies) and position >= step.call.own_inputs:
        yield from _inside(step.call, position)
    elif rearranges(step, position):
        for output in step.outputs:
            yield from _uses(program, output, seen)
    else:
        yield Use(step.node, step.operator, position)


def rearranges(step: Step, position: int) -> bool:
    """Do the numbers of this operand come out as they are, in other places or another number format?"""
    if step.operator.recodes:
        return position == 0
    return step.operator.second is movement and position not in (*step.operator.weights, *step.host)


def _inside(call: CallWithBodies, position: int) -> Iterator[Use]:
    """A captured value, followed inside the body that captures it."""
    start = call.own_inputs
    for body, count in call.bodies.values():
        if start <= position < start + count:
            inner = body.inputs[len(body.inputs) - count + position - start]
            yield from _uses(body, inner, set())
        start += count


def reaching(program: Program, outputs: tuple[int, ...]) -> set[int]:
    """The slots from which a gradient can reach one of the outputs: through differentiable steps only."""
    found = set(outputs)
    for step in reversed(program.steps):
        if step.operator.differentiable and found.intersection(step.outputs):
            found.update(step.inputs)
    return found
