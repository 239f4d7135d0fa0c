"""Samples carried through a graph node by node: fitting in graph order need not run the graph anew for each node.

Memory: for every batch the values that later nodes still read, as long as all of them together stay within a share of
the memory that is free; batches beyond it run from the inputs each time. The values are the same either way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onnx_obd.calibration.measure import Batch, Calibration
from onnx_obd.calibration.memory import free_memory
from onnx_obd.mirror.program import Env, Program, run_step

SHARE = 0.15
"""Of the memory that is free now, for the values of one walk; a refit has three."""

UNKNOWN_MEMORY = 1 << 30
"""Bytes for them where the system does not say what is free."""


@dataclass
class _Place:
    """Where a batch stands: the first ``position`` steps of its program have run, and ``env`` is what they left."""

    batch: Batch
    program: Program
    env: Env | None = None
    position: int = 0


class Walk:
    """The batches of a calibration on their way through the graph, with the mirror's present weights or given ones.

    Args:
        weights: instead of the mirror's own, by name.
    """

    def __init__(self, calibration: Calibration, weights: Mapping[str, Tensor] | None = None):
        self.calibration, self.mirror = calibration, calibration.mirror
        self.weights = weights or {}
        slots = calibration.objective.slots
        self._places = [_Place(batch, self.mirror.plan(batch.inputs, slots)) for batch in calibration.batches]
        self._budget = SHARE * (free_memory() or UNKNOWN_MEMORY / SHARE)

    def weight(self, name: str) -> Tensor:
        """A weight as this walk has it."""
        return (self.weights[name] if name in self.weights else self.mirror.weights[name]).detach()

    @torch.no_grad()
    def values(self, slots: Sequence[int], before: int) -> Iterator[list]:
        """For each batch what stands in ``slots`` just before the step that writes the slot ``before``."""
        held = 0
        for place in self._places:
            self._advance(place, _position(place.program, before))
            yield [place.env[slot] for slot in slots]
            held += _live_bytes(place)
            if held > self._budget:
                place.env = None

    @torch.no_grad()
    def loss(self, before: int | None = None) -> float:
        """The mean loss per sample, from just before the step that writes the slot ``before``, where the walk stays.

        It is not finite where an output is not.
        """
        objective, total, held = self.calibration.objective, 0.0, 0
        for place in self._places:
            self._advance(place, 0 if before is None else _position(place.program, before))
            env = _run(place.program, place.env.copy(), place.position, len(place.program.steps))
            values = [env[slot] for slot in objective.slots]
            total += float(objective.loss(values, place.batch.targets, place.batch.count)) * place.batch.count
            held += _live_bytes(place)
            if held > self._budget:
                place.env = None
        return total / self.calibration.num_samples

    @torch.no_grad()
    def changed(self, names: Iterable[str]) -> None:
        """Weights have changed: what was made of them is made anew, from the inputs on where data for it are gone."""
        slots = {self.mirror.weight_slots()[name] for name in names}
        for place in self._places:
            if place.env is not None and not _remake(place, slots):
                place.env = None

    def _advance(self, place: _Place, position: int) -> None:
        if place.env is None or place.position > position:
            place.env, place.position = self.mirror.start(place.batch.inputs, place.program), 0
            for name, value in self.weights.items():
                place.env[self.mirror.weight_slots()[name]] = value
        _run(place.program, place.env, place.position, position)
        place.position = position


def _position(program: Program, slot: int) -> int:
    return next(i for i, step in enumerate(program.steps) if slot in step.outputs)


def _run(program: Program, env: Env, start: int, stop: int) -> Env:
    for step in program.steps[start:stop]:
        for slot, value in zip(step.outputs, run_step(step, env), strict=False):
            env[slot] = value
        for slot in step.release:
            env[slot] = None
    return env


def _remake(place: _Place, changed: set[int]) -> bool:
    """Run again the steps behind us that ``changed`` slots enter; False if what else they need is gone."""
    stale, env = set(changed), place.env
    for step in place.program.steps[: place.position]:
        if stale.isdisjoint(step.inputs):
            continue
        if any(slot and env[slot] is None for slot in step.inputs):
            return False
        for slot, value in zip(step.outputs, run_step(step, env), strict=False):
            env[slot] = value
        stale.update(step.outputs)
    return True


def _live_bytes(place: _Place) -> int:
    """Of the values that the steps have made, each storage once."""
    own = {id(value) for value in place.program.template}
    tensors = [value for value in place.env if isinstance(value, Tensor) and id(value) not in own]
    storages = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in tensors}
    return sum(storages.values())
