"""What does nothing on the data: units that add nothing to any sum, input features that nothing depends on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch

from onnx_obd.mirror.mirror import Mirror
from onnx_obd.mirror.program import Step
from onnx_obd.mirror.values import is_float, plain
from onnx_obd.units.find import UnitMap
from onnx_obd.units.watch import Place, wrapped

Operand = tuple[int, int]
"""An input of a node, and its axis."""


def idle_units(mirror: Mirror, units: UnitMap, batches: Iterable[Sequence[Any]]) -> set[int]:
    """The units (by ``Unit.id``) that could go without any change on these batches.

    A unit is idle if, in every sum over its indices, one of the factors is 0 on all of the data: the values that arrive
    there (a neuron that is never active) or the weights that they meet. What is stored as integers counts as active.
    """
    wanted = {unit.id for unit in units.units}
    watched = _watched(units, wanted)
    seen: dict[tuple[Place, Operand], np.ndarray] = {}
    program = wrapped(mirror.program, {place: _watcher(place, at, seen) for place, at in watched.items()})
    program = program.with_release()
    with torch.no_grad():
        for inputs in batches:
            program.finish(mirror.start(inputs, program))
    active, met = set(), set()
    for step in units.trace.steps:
        place = step.step.path, step.step.node
        for operands in step.correspondence.sums:
            known = [operand for operand in operands if (place, operand) in seen]
            alive = [_alive(units, step.inputs[p], a, seen[place, (p, a)]) for p, a in known]
            for atom in set().union(*alive) & wanted:
                met.add(atom)
                if all(own.get(atom, True) for own in alive):
                    active.add(atom)
    return met - active


def _watched(units: UnitMap, wanted: set[int]) -> dict[Place, set[Operand]]:
    """The operands whose indices are those of units."""
    found: dict[Place, set[Operand]] = defaultdict(set)
    for step in units.trace.steps:
        for position, axis in (operand for operands in step.correspondence.sums for operand in operands):
            if not wanted.isdisjoint(np.unique(_labels(units, step.inputs[position], axis)).tolist()):
                found[step.step.path, step.step.node].add((position, axis))
    return found


def _labels(units: UnitMap, value: int, axis: int) -> np.ndarray:
    axes = units.trace.axes.get(value)
    return axes[axis].labels if axes else np.zeros((0, 0), np.int64)


def _watcher(
    place: Place, operands: set[Operand], seen: dict[tuple[Place, Operand], np.ndarray]
) -> Callable[[Step], Callable[..., Any]]:
    """Notes which indices of the operands are not all zero."""

    def note(values: Sequence[Any]) -> None:
        for position, axis in operands:
            value = plain(values[position])
            others = [dimension for dimension in range(value.dim()) if dimension != axis]
            live = value != 0 if is_float(value) else torch.ones_like(value, dtype=torch.bool)
            live = (live.any(others) if others else live).cpu().numpy()
            key = place, (position, axis)
            seen[key] = live | seen[key] if key in seen else live

    def wrapper(step: Step) -> Callable[..., Any]:
        def call(*values: Any) -> Any:
            note(values)
            return step.call(*values)

        return call

    return wrapper


def _alive(units: UnitMap, value: int, axis: int, live: np.ndarray) -> dict[int, bool]:
    """Atom -> is any of its indices not all zero?"""
    found: dict[int, bool] = {}
    for layer in _labels(units, value, axis):
        atoms, number = np.unique(layer, return_inverse=True)
        any_live = np.bincount(number, live) > 0
        for atom, alive in zip(atoms.tolist(), any_live.tolist(), strict=True):
            found[atom] = found.get(atom, False) or alive
    return found


def unused_inputs(mirror: Mirror, batches: Iterable[Sequence[Any]], *, seed: int = 0) -> dict[str, np.ndarray]:
    """Input -> True for the features that nothing depends on, where there are some (Optimal Cell Damage, Cibas et al.
    1994).

    A feature is used if on any sample its value times the slope of a random combination of the outputs is not 0: one
    that only meets weights of 0, or is itself always 0, has no saliency. The first axis counts samples. Inputs of
    integers, and those whose shape differs from batch to batch, are left out.
    """
    generator = torch.Generator().manual_seed(seed)
    used: dict[str, list[torch.Tensor]] = defaultdict(list)
    for inputs in batches:
        inputs = [value.requires_grad_() if is_float(value) else value for value in map(_copied, inputs)]
        with torch.enable_grad():
            values = [plain(v) for v in mirror.evaluate(inputs) if isinstance(v, torch.Tensor) and is_float(v)]
            signs = [torch.randn(v.shape, generator=generator, dtype=torch.float64).to(v) for v in values]
            total = sum((v * s).sum() for v, s in zip(values, signs, strict=True) if v.requires_grad)
        float_inputs = {n: v for n, v in zip(mirror.input_names, inputs, strict=True) if is_float(v)}
        if not isinstance(total, torch.Tensor) or not float_inputs:
            return {}
        slopes = torch.autograd.grad(total, list(float_inputs.values()), allow_unused=True)
        for (name, value), slope in zip(float_inputs.items(), slopes, strict=True):
            product = torch.zeros_like(value) if slope is None else slope * value.detach()
            used[name].append((product != 0).any(0) if value.dim() else product != 0)
    found = {}
    for name, each in used.items():
        if len({mask.shape for mask in each}) == 1 and not (any_used := torch.stack(each).any(0)).all():
            found[name] = (~any_used).cpu().numpy()
    return found


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, torch.Tensor) else value
