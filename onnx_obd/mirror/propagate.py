"""LeCun's back-propagation of second derivatives over a program (Le Cun, Denker, Solla 1989, eqs. 7 to 10)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from onnx_obd.mirror.program import Env, Program
from onnx_obd.mirror.second import Call, carries_h, probes


def propagate(
    program: Program,
    env: Env,
    seeds: Mapping[int, Tensor],
    wanted: Iterable[int],
    *,
    generator: torch.Generator | None = None,
    estimated: set[str] | None = None,
) -> dict[int, Tensor]:
    """The diagonal second derivatives of the objective with respect to every value on the way to ``wanted``.

    Levenberg-Marquardt form: h_in[i] = sum_j (dy_j/dx_i)^2 h_out[j], summed over all uses of a value.

    Args:
        env: the recorded values of a run (``Program.record``).
        seeds: slot -> d2E/dy^2 of an output, of the output's shape.
        wanted: slots whose h is asked for (weights, inputs).
        generator: draws the probes where an operator has no rule of its own.
        estimated: receives the nodes whose rule was estimated.

    Returns:
        slot -> h, of the value's shape, for every value that lies between ``wanted`` and ``seeds``; of a sequence a
        list, with None where no second derivative arrives.
    """
    active = set(wanted)
    for step in program.steps:
        if step.operator.differentiable and any(slot in active for slot in step.inputs):
            active.update(slot for slot in step.outputs if carries_h(env[slot]))
    h: dict[int, Tensor] = dict(seeds)
    for step in reversed(program.steps):
        h_out = [h.get(slot) for slot in step.outputs]
        values = step.read_host([env[slot] for slot in step.inputs])
        need = tuple(slot in active and carries_h(value) for slot, value in zip(step.inputs, values, strict=True))
        if not any(need) or all(value is None for value in h_out) or not step.operator.differentiable:
            continue
        results = tuple(env[slot] for slot in step.outputs)
        call = Call(step.node, step.call, dict(step.attributes), tuple(values), results, need, generator, estimated)
        rule = step.operator.second
        if rule is None:
            rule = probes
            if estimated is not None:
                estimated.add(step.node)
        for slot, value in zip(step.inputs, rule(call, h_out), strict=False):
            if value is not None:
                h[slot] = _sum(h[slot], value) if slot in h else value
    return h


def _sum(a: Any, b: Any) -> Any:
    """The sum of two h, which of a sequence are lists with None where nothing arrives."""
    if isinstance(a, list):
        return [_sum(one, other) for one, other in zip(a, b, strict=True)]
    return b if a is None else a if b is None else a + b
