"""Steps of a program, those inside bodies too, run by another call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from onnx_obd.graph.weights import Path
from onnx_obd.mirror.program import CallWithBodies, Program, Step

Place = tuple[Path | None, str]
"""Where a step stands: the path of its node, its label."""

Wrapper = Callable[[Step], Callable[..., Any]]
"""From a step to what is called in its place, with the values of its inputs; of a node with bodies, in the place of its
operator's function."""


def wrapped(program: Program, wrappers: Mapping[Place, Wrapper]) -> Program:
    """The same program, in which the steps at these places are called otherwise."""
    steps = tuple(_wrapped(step, wrappers) for step in program.steps)
    return Program(program.inputs, program.outputs, steps, program.template, program.no_steps)


def _wrapped(step: Step, wrappers: Mapping[Place, Wrapper]) -> Step:
    wrapper = wrappers.get((step.path, step.node))
    if step.bodies:
        call: CallWithBodies = step.call
        bodies = {name: (wrapped(program, wrappers), count) for name, (program, count) in call.bodies.items()}
        function = call.function if wrapper is None else wrapper(step)
        return replace(step, call=CallWithBodies(function, call.own_inputs, bodies))
    return step if wrapper is None else replace(step, call=wrapper(step))
