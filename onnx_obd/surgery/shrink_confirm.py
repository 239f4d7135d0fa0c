"""Trying out what was found: units that do not go cleanly are not offered.

Some of every family are removed and the smaller model runs on the sample; the original runs with what those units
contribute left out of every sum. If the two disagree, or the smaller one does not run, the families are halved until
those at fault are known. Single precision is many times faster, but only evidence where the units matter far more than
rounding does; otherwise double precision decides.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import zip_longest
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import torch

from onnx_obd.errors import OnnxObdError
from onnx_obd.mirror.mirror import Mirror
from onnx_obd.mirror.program import Step
from onnx_obd.mirror.values import is_float, plain
from onnx_obd.surgery.shrink import shrink
from onnx_obd.units.find import Frozen, Unit, UnitMap, find_units
from onnx_obd.units.kept import Kept
from onnx_obd.units.kept import without as without_units
from onnx_obd.units.trace import Value
from onnx_obd.units.watch import Place, Wrapper, wrapped

TOLERANCE = 1e-6
"""In double precision, relative to the largest element."""

SINGLE_TOLERANCE = 1e-3

CLEAR = 1e-4
"""In single precision, relative to what the removal changes: less is rounding."""


def confirmed_units(mirror: Mirror, inputs: Sequence[Any], *, seed: int = 0) -> UnitMap:
    """The units of ``find_units`` that were seen to go, on the sample ``inputs``; the others are among ``frozen``."""
    units = find_units(mirror, inputs)
    trial = _Trial(mirror, inputs, units, np.random.default_rng(seed))
    faults = trial.faults(list(units.families()))
    good = tuple(unit for unit in units.units if unit.family not in faults)
    counts: dict[tuple, int] = defaultdict(int)
    for unit in units.units:
        if unit.family in faults:
            counts[unit.kind, unit.nodes, faults[unit.family]] += 1
    bad = tuple(Frozen(kind, nodes, count, reason) for (kind, nodes, reason), count in counts.items())
    return replace(units, units=good, frozen=units.frozen + bad)


@dataclass
class _Trial:
    mirror: Mirror
    inputs: Sequence[Any]
    units: UnitMap
    generator: np.random.Generator

    def __post_init__(self) -> None:
        self.families = self.units.families()
        self.some = self._some()
        self.exact = not self.mirror.boundaries  # onnxruntime runs those in the precision they were written for

    @cached_property
    def full(self) -> Outputs:
        """The outputs of the original."""
        with torch.no_grad():
            return outputs(self.mirror, self.inputs, self.units)

    @cached_property
    def reference(self) -> Mirror:
        return self._precise(self.mirror.proto)

    def _precise(self, proto: onnx.ModelProto) -> Mirror:
        mirror = Mirror(proto)
        return mirror.double() if self.exact else mirror

    def faults(self, families: Sequence[int]) -> dict[int, str]:
        """The families that do not go, and why."""
        lonely = {family: "it is the only one of its family" for family, m in self.families.items() if len(m) == 1}
        return lonely | self._halve([family for family in families if family in self.some])

    def _halve(self, families: Sequence[int]) -> dict[int, str]:
        if not families:
            return {}
        reason = self._try([unit for family in families for unit in self.some[family]])
        if reason is None:
            return {}
        if len(families) == 1:
            return {families[0]: reason}
        middle = len(families) // 2
        return self._halve(families[:middle]) | self._halve(families[middle:])

    def _some(self) -> dict[int, list[Unit]]:
        """Of every family some, and of families of one size as different numbers as can be."""
        alike: dict[int, int] = defaultdict(int)
        found = {}
        for family, members in self.families.items():
            if (size := len(members)) > 1:
                count = 1 + alike[size] % (size - 1)
                alike[size] += 1
                found[family] = [members[i] for i in self.generator.choice(size, count, replace=False)]
        return found

    def _try(self, removed: Collection[Unit]) -> str | None:
        """Why these do not go; None if they do."""
        kept = self.units.kept(removed)
        try:
            proto = shrink(self.mirror.proto, self.units, removed)
            with torch.no_grad():
                found, expected = self._both(self.mirror, Mirror(proto), kept)
                if all(map(_clear, *(each.values for each in (found, expected, left_of(self.full, kept))))):
                    return None
                found, expected = self._both(self.reference, self._precise(proto), kept)
        except OnnxObdError as error:
            return str(error)
        names = [f"output '{name}'" for name in self.mirror.output_names]
        for name, ours, theirs in zip_longest(names, found.values, expected.values, fillvalue="a branch not taken"):
            if not _close(ours, theirs, TOLERANCE if self.exact else SINGLE_TOLERANCE):
                return f"to remove it changes {name} in another way than to leave it out of every sum"
        return None

    def _both(self, mirror: Mirror, smaller: Mirror, kept: Kept) -> tuple[Outputs, Outputs]:
        ours = outputs(smaller, self.inputs, self.units)
        return ours, left_of(without(mirror, self.inputs, self.units, kept), kept)


def _clear(ours: Any, theirs: Any, full: Any) -> bool:
    """Do the first two agree, and differ from the third a great deal more than from one another?"""
    if not all(isinstance(value, torch.Tensor) and is_float(value) for value in (ours, theirs, full)):
        return _close(ours, theirs, 0.0)
    if not ours.shape == theirs.shape == full.shape:
        return False
    ours, theirs, full = (plain(value).nan_to_num() for value in (ours, theirs, full))
    return bool((ours - theirs).abs().max() <= CLEAR * (full - theirs).abs().max()) if ours.numel() else True


def _close(a: Any, b: Any, tolerance: float) -> bool:
    if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
        return True
    if a.shape != b.shape:
        return False
    if not is_float(a) or not a.numel():
        return bool((a == b).all())
    a, b = plain(a).nan_to_num(), plain(b).nan_to_num()
    return float((a - b).abs().max()) <= tolerance * max(1e-30, float(b.abs().max()))


Cuts = dict[Place, list[tuple[int, int, torch.Tensor]]]
"""Node -> (input, axis, mask of what is left out of the sum)."""


@dataclass(frozen=True)
class Outputs:
    """What a model returns, and what its branches do that it does not take, each by its number in the trace."""

    returned: tuple
    untaken: tuple[tuple[Value, Any], ...]

    @property
    def values(self) -> tuple:
        return *self.returned, *(value for _, value in self.untaken)


def left_of(found: Outputs, kept: Kept) -> Outputs:
    """What branches return may have lost units."""
    untaken = tuple((number, without_units(value, kept.value(number))) for number, value in found.untaken)
    return replace(found, untaken=untaken)


def without(mirror: Mirror, inputs: Sequence[Any], units: UnitMap, kept: Kept) -> Outputs:
    """The outputs of the model at full size when what goes is left out of every sum over it."""
    cuts: Cuts = defaultdict(list)
    for traced in units.trace.steps:
        for position, axis in traced.correspondence.summed:
            mask = kept.value(traced.inputs[position])[axis]
            if not mask.all():
                cuts[traced.step.path, traced.step.node].append((position, axis, torch.from_numpy(~mask)))
    return outputs(mirror, inputs, units, {place: partial(_cutting, own) for place, own in cuts.items()})


def outputs(
    mirror: Mirror, inputs: Sequence[Any], units: UnitMap, wrappers: Mapping[Place, Wrapper] = MappingProxyType({})
) -> Outputs:
    """The outputs of the model, and what the branches return that it does not take."""
    untaken: list[tuple[Value, Any]] = []
    also = {place: partial(_with_untaken, units, untaken) for place in units.trace.passed_by}
    program = wrapped(mirror.program, {**wrappers, **also}).with_release()
    return Outputs(program.finish(mirror.start(inputs, program)), tuple(untaken))


def _with_untaken(units: UnitMap, untaken: list[tuple[Value, Any]], step: Step) -> Callable[..., Any]:
    """Runs the bodies that the node leaves out after those that it runs."""

    def call(*values: Any, **bodies: Any) -> Any:
        taken: set[str] = set()

        def noting(name: str) -> Callable[..., Any]:
            def body(*inputs: Any) -> Any:
                taken.add(name)
                return bodies[name](*inputs)

            return body

        result = step.call.function(*values, **{name: noting(name) for name in bodies})
        for name in sorted(bodies.keys() - taken):
            untaken.extend(zip(units.trace.body_outputs[(step.path, name)], bodies[name](), strict=True))
        return result

    return call


def _cutting(cuts: Sequence[tuple[int, int, torch.Tensor]], step: Step) -> Callable[..., Any]:
    return partial(call_without, step, cuts)


def call_without(step: Step, cuts: Sequence[tuple[int, int, torch.Tensor]], *values: Any) -> Any:
    values = list(values)
    for position, axis, mask in cuts:
        value = plain(values[position])
        gone = mask.view(-1, *[1] * (value.dim() - 1 - axis))
        values[position] = torch.where(gone, _zero(step, position, values).to(value.dtype), value)
    return step.call(*values)


def _zero(step: Step, position: int, values: Sequence[Any]) -> torch.Tensor:
    """What stands for 0 at an operand: its zero point, if it holds integers."""
    entry = next((entry for entry in step.operator.stored if entry.operand == position), None)
    if entry is None:
        return torch.zeros(())
    reads = [values[i] if i < len(values) else None for i in entry.reads]
    return entry.grid(values[position], *reads, **step.attributes)[1]
