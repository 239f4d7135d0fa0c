"""What the inputs, neurons and channels of a model are worth on given samples: Optimal Cell Damage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from onnx_obd.calibration.folder import NO_LABELS, load_samples
from onnx_obd.calibration.image_options import ImageOptions
from onnx_obd.calibration.measure import Calibration, feeds, mirror_for_batches
from onnx_obd.calibration.memory import fitting_batch_size, value_bytes
from onnx_obd.calibration.objective import choose_objective
from onnx_obd.curvature.activations import activation_saliency
from onnx_obd.errors import ModelError
from onnx_obd.graph.load import load_model
from onnx_obd.mirror.axes import MOVED, Along, Fixed, Node, expand, names_of, parse
from onnx_obd.mirror.mirror import Mirror
from onnx_obd.mirror.program import Step
from onnx_obd.mirror.uses import uses_of
from onnx_obd.mirror.values import is_float
from onnx_obd.records import Cells, CellSaliency

SAMPLES = 256
"""At most so many are looked at."""

BATCH = 32

MANY = 4096
"""Up to so many elements of an input are judged one by one, more of them by index of the axis behind the samples."""


def inspect_cells(model: str | Path, data: str | Path, image_options: ImageOptions | None = None) -> Cells:
    """The saliency of every input variable, and of every neuron or channel as the nodes with weights read it.

    s = ½ Σ h a² per sample, the predicted rise of the loss if it is set to zero; the loss is the divergence of the
    outputs from what they are. See ``activation_saliency``.

    Args:
        data: samples; at most 256 are used, evenly spread.

    Raises:
        DataError: the samples do not fit the model.
        ModelError: the model cannot be read or run, or has no value of that kind.
    """
    source = load_model(model)
    mirror = Mirror(source.proto)
    samples = load_samples(
        data, source.proto, options=image_options, labels=NO_LABELS, limit=SAMPLES, model_path=source.path
    )
    mirror, batch_size = mirror_for_batches(mirror, samples, fitting_batch_size(value_bytes(mirror, samples), BATCH))
    some = [inputs for inputs, _, _ in feeds(mirror, samples.subset(range(min(len(samples), BATCH))), batch_size)]
    objective = choose_objective(mirror, some)
    calibration = Calibration(mirror, objective, samples, batch_size)
    places = {slot: place for slot, place in _places(mirror, some[0]) if _matters(calibration, slot)}
    if not places:
        raise ModelError("no float input and no node with weights lies before the outputs that the loss looks at")
    found = {}
    for axis in dict.fromkeys(axis for _, _, axis in places.values()):
        names = [mirror.name_of(slot) for slot, place in places.items() if place[2] == axis]
        found |= activation_saliency(calibration, names, axis)
    values = tuple(
        CellSaliency(name, kind, node, axis, tuple(found[name].shape), tuple(found[name].reshape(-1).tolist()))
        for name, (kind, node, axis) in ((mirror.name_of(slot), place) for slot, place in places.items())
    )
    return Cells(str(model), len(samples), objective.describe(), values)


def _matters(calibration: Calibration, slot: int) -> bool:
    """Does the objective depend on the value?"""
    mirror = calibration.mirror
    reached = {slot}
    for step in mirror.program.steps:
        if step.operator.differentiable and not reached.isdisjoint(step.inputs):
            reached.update(step.outputs)
    return not reached.isdisjoint(calibration.objective.slots)


Place = tuple[str, str, int | None]
"""Kind, the node that reads it, and the axis that is judged; None for every element by itself."""


def _places(mirror: Mirror, inputs: Any) -> Iterator[tuple[int, Place]]:
    steps = {step.node: step for step in mirror.program.steps}
    reading = {}
    for slot in mirror.weight_slots().values():
        for use in uses_of(mirror.program, slot):
            if use.multiplies and use.node in steps:
                reading.setdefault(id(steps[use.node]), (steps[use.node], use.position))
    seen = set(mirror.program.inputs)
    for name, value in zip(mirror.input_names, inputs, strict=True):
        if is_float(value) and value.dim() > 1:
            yield mirror.slot(name), ("input variables", "", None if value[0].numel() <= MANY else 1)
    for step in mirror.program.steps:
        if id(step) not in reading:
            continue
        values = dict(zip(step.inputs, mirror.evaluate(inputs, outputs=step.inputs), strict=True))
        for slot, axis in _summed(step, reading[id(step)][1], values):
            if slot not in seen and slot in mirror.value_names.values():
                seen.add(slot)
                yield slot, ("channels" if values[slot].dim() > axis + 1 else "neurons", step.node, axis)


@torch.no_grad()
def _summed(step: Step, weight: int, values: dict[int, Any]) -> Iterator[tuple[int, int]]:
    """The data operands of a node, each with the axis that the node sums over with the weight in that position."""
    if step.operator.axes is None:
        return
    given = [values[slot] for slot in step.inputs]
    result = step(*given)
    text = Node(step.operator, step.attributes, given, result, [False] * len(given)).rule
    rule = parse(text) if text and not text.startswith(MOVED) else None
    term = None if rule is None else rule.term(rule.inputs, weight)
    if rule is None or rule.uniform or term is None:
        return

    def names(term: tuple, rank: int) -> list[set]:
        parts = expand(term, rank)
        return [set() if isinstance(part, (Fixed, Along)) else set(names_of(part)) for part in parts]

    own = set().union(*names(term, given[weight].dim()))
    made = set().union(*names(rule.outputs[0], result[0].dim()))
    for position, slot in enumerate(step.inputs[: len(rule.inputs)]):
        if position != weight and is_float(given[position]) and given[position].dim() > 1:
            parts = names(rule.inputs[position], given[position].dim())
            axes = [axis for axis, found in enumerate(parts) if found & own - made]
            if len(axes) == 1 and axes[0] > 0:
                yield slot, axes[0]
