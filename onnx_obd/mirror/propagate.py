"""LeCun's back-propagation of second derivatives over a program (Le Cun, Denker, Solla 1989, eqs. 7 to 10)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from onnx_obd.errors import UsageError
from onnx_obd.mirror.program import Env, Program, Step
from onnx_obd.mirror.second import Call, bend, carries_h, probes

Graphs = dict[int, tuple]
"""By position of a step: the local graph of its run (``Call.differentiate``)."""


def record_graphs(program: Program, env: Env, wanted: Iterable[int]) -> Graphs:
    """Run every step once; keep every value in ``env``, and the local graphs that ``propagate`` goes back through."""
    active, graphs = set(wanted), {}
    for position, step in enumerate(program.steps):
        values = tuple(step.read_host([env[slot] for slot in step.inputs]))
        need = _need(step, values, active)
        if step.operator.differentiable and any(need):
            call = Call(step.node, step.call, {}, values, (), need)
            graphs[position] = call.differentiate()
            results = tuple(_detached(value) for value in graphs[position][1])
        else:
            results = step(*values)
        for slot, value in zip(step.outputs, results, strict=False):
            env[slot] = value
            if position in graphs and carries_h(value):
                active.add(slot)
    return graphs


def propagate(
    program: Program,
    env: Env,
    seeds: Mapping[int, Tensor],
    wanted: Iterable[int],
    *,
    gradients: Mapping[int, Tensor] | None = None,
    graphs: Graphs | None = None,
    generator: torch.Generator | None = None,
    estimated: set[str] | None = None,
) -> dict[int, Tensor]:
    """The diagonal second derivatives of the objective with respect to every value on the way to ``wanted``.

    Levenberg-Marquardt form: h_in[i] = sum_j (dy_j/dx_i)^2 h_out[j], summed over all uses of a value; with
    ``gradients`` the full form, + sum_j d2y_j/dx_i^2 g_out[j] (see ``second.bend``).

    Args:
        env: the recorded values of a run (``Program.record`` or ``record_graphs``).
        seeds: slot -> d2E/dy^2 of an output, of the output's shape.
        wanted: slots whose h is asked for (weights, inputs).
        gradients: slot -> dE/dy of an output.
        graphs: those of the same run, for the same ``wanted``, so that no node runs twice; used up on the way.
        generator: draws the probes where an operator has no rule of its own.
        estimated: receives the nodes whose rule was estimated.

    Returns:
        slot -> h, of the value's shape, for every value that lies between ``wanted`` and ``seeds``; of a sequence a
        list, with None where no second derivative arrives.

    Raises:
        UsageError: the full form is asked for and a node has no second derivative in torch.
    """
    active = set(wanted)
    for step in program.steps:
        if step.operator.differentiable and any(slot in active for slot in step.inputs):
            active.update(slot for slot in step.outputs if carries_h(env[slot]))
    h, g = dict(seeds), dict(gradients or {})
    for position in reversed(range(len(program.steps))):
        step = program.steps[position]
        graph = None if graphs is None else graphs.pop(position, None)
        h_out, g_out = [h.get(slot) for slot in step.outputs], [g.get(slot) for slot in step.outputs]
        values = tuple(step.read_host([env[slot] for slot in step.inputs]))
        need = _need(step, values, active)
        arrives = any(value is not None for value in (*h_out, *g_out))
        if not any(need) or not arrives or not step.operator.differentiable:
            continue
        results = tuple(env[slot] for slot in step.outputs)
        call = Call(step.node, step.call, dict(step.attributes), values, results, need, generator, estimated, graph)
        if any(value is not None for value in h_out):
            _add(h, step, _rule(step, estimated)(call, h_out))
        if any(value is not None for value in g_out):
            _add(h, step, _bend(call, g_out))
            _add(g, step, call.vjp(g_out))
    return h


def _need(step: Step, values: Sequence[Any], active: set[int]) -> tuple[bool, ...]:
    return tuple(slot in active and carries_h(value) for slot, value in zip(step.inputs, values, strict=True))


def _rule(step: Step, estimated: set[str] | None):
    if step.operator.second is None and estimated is not None:
        estimated.add(step.node)
    return step.operator.second or probes


def _bend(call: Call, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
    try:
        return bend(call, gradients)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"node {call.node} has no second derivative ({reason}); use another --curvature") from error


def _add(total: dict[int, Any], step: Step, found: Sequence[Any]) -> None:
    for slot, value in zip(step.inputs, found, strict=False):
        if value is not None:
            total[slot] = _sum(total[slot], value) if slot in total else value


def _detached(value: Any) -> Any:
    if isinstance(value, list):
        return [_detached(item) for item in value]
    return value.detach() if isinstance(value, Tensor) else value


def _sum(a: Any, b: Any) -> Any:
    """The sum of two h, which of a sequence are lists with None where nothing arrives."""
    if isinstance(a, list):
        return [_sum(one, other) for one, other in zip(a, b, strict=True)]
    return b if a is None else a if b is None else a + b
