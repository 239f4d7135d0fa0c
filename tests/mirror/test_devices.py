"""Every operator runs where its inputs are: it makes no tensor elsewhere, and reads none on the host.

The check needs no accelerator: the inputs of each case are put on the meta device, which has no data. What mixes it
with the host or asks it for a value fails, as it would fail or wait on an accelerator.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from onnx_obd.errors import ModelError
from onnx_obd.mirror.mirror import Mirror
from onnx_obd.mirror.program import CallWithBodies, Program, Step
from onnx_obd.mirror.registry import lookup
from onnx_obd.mirror.values import Quantised, is_float, plain, to_torch
from tests.mirror import ops as cases_of_families
from tests.mirror.harness import Case

DEVICE = torch.device("meta")
"""Stands for any device that is not the host."""

EXCUSED = {
    "ConstantFill": "its input may spell the shape of its output",
    "Loop": "its body says after every turn whether to go on",
    "MaxRoiPool": "the cells of a region follow from its corners",
    "RoiAlign": "without a sampling ratio, a large region has more samples than a small one",
    "ZipMap": "maps are Python's, of numbers",
}
"""Operators that have to read a tensor on the host, and why; so does every other whose outputs have a shape that
depends on data."""


class OneDevice(TorchDispatchMode):
    """Refuses torch calls on tensors of several devices, as accelerators do; but for copies and single numbers."""

    COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
        devices = {value.device for value in given if value.dim()}
        assert len(devices) < 2 or function in self.COPIES, f"{function} on {devices}"
        return function(*args, **(kwargs or {}))


def _cases() -> Iterator[Case]:
    for module in pkgutil.iter_modules(cases_of_families.__path__):
        yield from getattr(importlib.import_module(f"{cases_of_families.__name__}.{module.name}"), "CASES", ())


def _placed(value: Any, gradient: bool = False) -> Any:
    """The value without its data, on the device."""
    if isinstance(value, list):
        return [_placed(item, gradient) for item in value]
    if not isinstance(value, torch.Tensor):
        return value
    bare = plain(value)
    found = torch.empty_strided(bare.shape, bare.stride(), dtype=bare.dtype, device=DEVICE)
    found.requires_grad_(gradient and is_float(value))
    return Quantised.mark(found, value.element_dtype) if isinstance(value, Quantised) else found


def _moved(step: Step) -> Step:
    """The step with what is bound in it on the device."""
    call = step.call
    function = call.function if isinstance(call, CallWithBodies) else call
    if isinstance(function, partial):
        function = partial(function.func, **{name: _placed(value) for name, value in function.keywords.items()})
    if isinstance(call, CallWithBodies):
        bodies = {name: (_moved_program(program), count) for name, (program, count) in call.bodies.items()}
        function = CallWithBodies(function, call.own_inputs, bodies)
    return replace(step, call=function)


def _moved_program(program: Program) -> Program:
    template, no_steps = ([*map(_placed, values)] for values in (program.template, program.no_steps))
    return replace(program, steps=tuple(map(_moved, program.steps)), template=template, no_steps=tuple(no_steps))


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, torch.Tensor):
        yield value


def _run(step: Step, given: Sequence[Any], gradient: bool) -> None:
    """Run a step, and back, on inputs of those shapes on the device; its outputs must be there too."""
    with OneDevice():
        outputs = [*_tensors(_moved(step).call(*(_placed(value, gradient) for value in given)))]
        assert {value.device for value in outputs} <= {DEVICE}, step.node
        wanted = [value for value in outputs if value.requires_grad]
        if wanted:
            torch.autograd.backward(wanted, [torch.ones_like(value) for value in wanted])


def _steps(case: Case) -> Iterator[tuple[Step, Sequence[Any]]]:
    """The nodes the case is made of, and their inputs."""
    mirror = Mirror(case.model())
    inputs = [to_torch(value) for value in case.feeds().values()]
    with torch.no_grad():
        plan = mirror.plan(inputs)
        env = plan.record(plan.start(inputs))
    for step in plan.steps:
        yield step, step.read_host([env[slot] for slot in step.inputs])


def _distinct(cases: Iterable[Case]) -> list[Case]:
    """One of the cases that differ in the opset alone."""
    found = {}
    for case in cases:
        operator = lookup(case.domain, case.op_type, case.opset)
        if operator is None or not operator.random:  # a generator needs a device that computes
            found.setdefault((operator and operator.function, str(case.attributes), *map(_kind, case.inputs)), case)
    return list(found.values())


def _kind(value: Any) -> Any:
    return [*map(_kind, value)].__repr__() if isinstance(value, list) else (np.shape(value), getattr(value, "dtype", 0))


CASES = _distinct(_cases())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_operator_runs_where_its_inputs_are(case):
    for step, given in _steps(case):
        if step.operator.name not in EXCUSED and not step.operator.data_dependent_shape:
            for gradient in {False, case.gradient}:
                _run(step, given, gradient)


@pytest.mark.parametrize("name", EXCUSED)
def test_the_excused_have_to_read(name):
    steps = [pair for case in CASES if case.op_type == name for pair in _steps(case) if pair[0].operator.name == name]
    with pytest.raises((RuntimeError, ModelError)):
        for step, given in steps:
            _run(step, given, gradient=False)


def test_a_tensor_left_on_the_host_is_noticed():
    case = next(case for case in CASES if case.op_type == "Relu")
    ((step, given),) = _steps(case)
    for wrong in (lambda x: x + torch.zeros(x.shape), lambda x: x * x.sum().item(), lambda x: torch.zeros(x.shape)):
        with pytest.raises((AssertionError, RuntimeError)):
            _run(replace(step, call=wrong), given, gradient=False)
