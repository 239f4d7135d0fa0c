"""Where the samples of a batch lie in the values of a program, and where weights meet them.

Found by running: the first two samples alone must give values that stand one behind the other along one axis of the
batch's value. No operator needs to be known for that, and a graph that mixes samples is found out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from onnx_obd.mirror.mirror import Mirror
from onnx_obd.mirror.program import Env, Program, Step, to_host

RTOL, ATOL = 1e-3, 1e-4
"""Alone and in a batch a value may differ by rounding; absolutely, relative to the largest element."""


class InseparableError(Exception):
    """The samples of a batch cannot be told apart where a weight meets them."""


@dataclass(frozen=True)
class Meeting:
    """A step where weights, or values made of weights alone, meet the data.

    ``origins``: those of its input slots, each with the weights it is made of. ``host``: the inputs read on the host,
    by position, as they are for a single sample. ``weights_once``: the weights, by name, that meet the data here and
    nowhere else; ``often``: is there one that does so elsewhere too? ``positions``: of the weights that are themselves
    one input and nothing else here, by name.
    """

    step: Step
    origins: Mapping[int, frozenset[int]]
    host: Mapping[int, Any]
    weights_once: tuple[str, ...] = ()
    often: bool = False
    positions: Mapping[str, int] = field(default_factory=dict)

    def reached_from(self, weight: int) -> bool:
        return any(weight in origins for origins in self.origins.values())


@dataclass(frozen=True)
class Layout:
    """Of a batch of ``count`` samples: its program, the meetings, and the sample axis of every value they touch.

    A value whose axis is None is the same for all samples. ``weights``: name to slot. ``uses``: the meetings of each
    weight, by name; ``used_often``: the names of those with several.
    """

    plan: Program
    count: int
    weights: Mapping[str, int]
    meetings: tuple[Meeting, ...] = ()
    axes: Mapping[int, int | None] = field(default_factory=dict)
    uses: Mapping[str, tuple[Meeting, ...]] = field(default_factory=dict)
    used_often: tuple[str, ...] = ()


_known: WeakKeyDictionary[Mirror, dict[tuple, Layout]] = WeakKeyDictionary()


def find_layout(
    mirror: Mirror, outputs: Sequence[int], inputs: Sequence[Any], count: int, names: Sequence[str]
) -> Layout:
    """The layout of a batch; for inputs of the same shapes it is found once.

    Raises:
        InseparableError: somewhere between the named weights and ``outputs`` samples cannot be told apart.
    """
    plan = mirror.plan(inputs, outputs)
    known = _known.setdefault(mirror, {})
    key = (id(plan), count, tuple(names))
    if key not in known or known[key].plan is not plan:
        known[key] = _find(mirror, plan, outputs, inputs, count, names)
    return known[key]


@torch.no_grad()
def _find(
    mirror: Mirror, plan: Program, outputs: Sequence[int], inputs: Sequence[Any], count: int, names: Sequence[str]
) -> Layout:
    weights = {name: mirror.weight_slots()[name] for name in names}
    if count == 1:
        return Layout(plan, count, weights)
    alone = [[_sample(value, index, count) for value in inputs] for index in (0, 1)]
    single = mirror.plan(alone[0], outputs)
    if [step.outputs for step in single.steps] != [step.outputs for step in plan.steps]:
        raise InseparableError("a batch takes another way through the graph than a sample")
    together = plan.record(mirror.start(inputs, plan))
    first, second = (single.record(mirror.start(sample, single)) for sample in alone)
    axes = {}
    for slot in dict.fromkeys(slot for step in plan.steps for slot in (*step.inputs, *step.outputs)):
        if slot < min(len(first), len(together)):
            axes[slot] = _axis(together[slot], first[slot], second[slot], count)
    meetings = tuple(_meetings(plan, single, first, set(weights.values()), axes))
    _check(mirror, meetings, together, axes)
    counts = {name: sum(m.reached_from(slot) for m in meetings) for name, slot in weights.items()}
    often = tuple(name for name, number in counts.items() if number > 1)
    meetings = tuple(_with_names(m, {n: s for n, s in weights.items() if m.reached_from(s)}, often) for m in meetings)
    uses = {name: tuple(m for m in meetings if m.reached_from(slot)) for name, slot in weights.items()}
    known = {slot: axis for slot, axis in axes.items() if axis != UNKNOWN}
    return Layout(plan, count, weights, meetings, known, uses, often)


def _sample(value: Any, index: int, count: int) -> Any:
    if not isinstance(value, Tensor) or not value.dim() or value.shape[0] % count:
        return value
    size = value.shape[0] // count
    return value[index * size : (index + 1) * size]


UNKNOWN = -1


def _axis(together: Any, first: Any, second: Any, count: int) -> int | None:
    """The axis along which samples stand; None if they share the value."""
    if not isinstance(together, Tensor) or not isinstance(first, Tensor):
        return None if together is first or (isinstance(together, tuple) and together == first) else UNKNOWN
    if together.dim() != first.dim() or first.shape != second.shape:
        return UNKNOWN
    if together.shape == first.shape:
        return None if _close(together, first) and _close(together, second) else UNKNOWN
    longer = [axis for axis in range(first.dim()) if together.shape[axis] != first.shape[axis]]
    if len(longer) != 1 or together.shape[longer[0]] != count * first.shape[longer[0]]:
        return UNKNOWN
    (axis,), size = longer, first.shape[longer[0]]
    begin = together.narrow(axis, 0, 2 * size)
    return axis if _close(begin, torch.cat([first, second], axis)) else UNKNOWN


def _close(a: Tensor, b: Tensor) -> bool:
    if not a.is_floating_point():
        return torch.equal(a, b)
    finite = b.abs().nan_to_num(0, 0, 0)
    atol = ATOL * float(finite.max()) if b.numel() else 0.0
    return torch.allclose(a, b, rtol=RTOL, atol=atol, equal_nan=True)


def _meetings(plan: Program, single: Program, first: Env, weights: set[int], axes: Mapping[int, int | None]):
    """The steps in which a value made of the wanted weights alone comes together with the data."""
    origins = {slot: frozenset([slot]) for slot in weights}
    shared = {slot for slot, value in enumerate(plan.template) if value is not None} | {0}
    for step, alone in zip(plan.steps, single.steps, strict=True):
        made_of = {slot: origins[slot] for slot in step.inputs if slot in origins}
        alike = all(slot in shared or slot in origins for slot in step.inputs)
        if alike and all(axes.get(slot) is None for slot in step.outputs):
            if made_of and step.operator.differentiable:
                origins |= dict.fromkeys(step.outputs, frozenset().union(*made_of.values()))
            else:
                shared.update(step.outputs)
        elif made_of and step.operator.differentiable:
            yield Meeting(step, made_of, _host(step, alone, single, first))


def _with_names(meeting: Meeting, weights: Mapping[str, int], often: Sequence[str]) -> Meeting:
    once = tuple(name for name in weights if name not in often)
    positions = {}
    for name, slot in weights.items():
        places = [i for i, source in enumerate(meeting.step.inputs) if slot in meeting.origins.get(source, ())]
        if [meeting.step.inputs[i] for i in places] == [slot]:
            positions[name] = places[0]
    return replace(meeting, weights_once=once, often=len(once) < len(weights), positions=positions)


def _host(step: Step, alone: Step, single: Program, first: Env) -> dict[int, Any]:
    found = {}
    for position, (slot, own) in enumerate(zip(step.inputs, alone.inputs, strict=True)):
        if position in alone.host:
            found[position] = to_host(first[own])
        elif own >= len(single.template) or isinstance(first[own], tuple) or slot != own:
            found[position] = first[own]
    return found


def _check(mirror: Mirror, meetings: Sequence[Meeting], env: Env, axes: Mapping[int, int | None]) -> None:
    for meeting in meetings:
        for position, slot in enumerate(meeting.step.inputs):
            data = slot not in meeting.origins and position not in meeting.host
            if data and (axes.get(slot) == UNKNOWN or isinstance(env[slot], list)):
                raise InseparableError(f"{meeting.step.node}: {mirror.name_of(slot)}")
            if position in meeting.step.host and axes.get(slot) not in (None, UNKNOWN):
                raise InseparableError(f"{meeting.step.node}: {mirror.name_of(slot)} is read on the host")
        for slot in meeting.step.outputs:
            if env[slot] is not None and axes.get(slot) in (None, UNKNOWN):
                raise InseparableError(f"{meeting.step.node}: {mirror.name_of(slot)}")
