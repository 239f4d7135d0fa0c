"""Which values of a graph an objective can look at, and what made them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from onnx_obd.errors import ModelError
from onnx_obd.mirror.mirror import Mirror
from onnx_obd.mirror.program import Step
from onnx_obd.mirror.second import movement
from onnx_obd.mirror.values import is_float


def float_outputs(mirror: Mirror, inputs: Sequence[Any]) -> tuple[list[int], list[str]]:
    """The last float tensors that depend differentiably on a weight, one search per graph output.

    An output that is such a tensor stands for itself; from another (a class index, a map, boxes that passed
    NonMaxSuppression) the search goes back through the nodes that made it.

    Returns:
        Their slots in the mirror's program, and notes on the outputs that were replaced.

    Raises:
        ModelError: there is none.
    """
    program, weights = mirror.program, set(mirror.weight_slots().values())
    with torch.no_grad():
        env = program.record(mirror.start(inputs))
    depends = set(weights)
    made_by: dict[int, Step] = {}
    for step in program.steps:
        made_by.update(dict.fromkeys(step.outputs, step))
        if step.operator.differentiable and depends.intersection(step.inputs):
            depends.update(slot for slot in step.outputs if is_float(env[slot]))
    found: list[int] = []
    notes = []
    for name, slot in zip(mirror.output_names, program.outputs, strict=True):
        ends = _last_floats(slot, depends - weights, made_by, set())
        if ends != [slot]:
            reached = ", ".join(f"'{mirror.name_of(end)}'" for end in ends) or "no weight"
            notes.append(f"output '{name}' is not differentiable: the objective uses {reached}")
        found += [end for end in ends if end not in found]
    if not found:
        raise ModelError("no float output depends on a weight, so there is nothing to prune by; see 'onnx-obd inspect'")
    return found, notes


def _last_floats(slot: int, depends: set[int], made_by: dict[int, Step], seen: set[int]) -> list[int]:
    if slot in depends:
        return [slot]
    if slot in seen or slot not in made_by:
        return []
    seen.add(slot)
    found = [end for source in made_by[slot].inputs for end in _last_floats(source, depends, made_by, seen)]
    return list(dict.fromkeys(found))


def terminal(mirror: Mirror, slot: int) -> Step | None:
    """The step that computed a value, looking through steps that only rearrange it."""
    made_by = {output: step for step in mirror.program.steps for output in step.outputs}
    step = made_by.get(slot)
    while step is not None and step.operator.second is movement and len(step.outputs) == 1:
        step = made_by.get(step.inputs[0])
    return step
