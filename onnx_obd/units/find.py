"""The removable units of a model: channels, neurons, heads, hidden units, groups, whatever the topology."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnx_obd.graph.weights import Path, find_stored
from onnx_obd.mirror.mirror import Mirror
from onnx_obd.units.kept import Kept, stuck
from onnx_obd.units.trace import Trace, TracedStep, Value, trace

KINDS = ("head", "head dimension", "hidden_size", "embedding", "group", "channel", "neuron")
"""In this order the kind of a unit is chosen among the names of the axes on which it was met."""


@dataclass(frozen=True)
class TensorSlice:
    """The indices of one axis of a stored tensor that belong to a unit; ``summed``: a node sums over that axis."""

    tensor: str
    path: Path
    axis: int
    indices: tuple[int, ...]
    summed: bool


@dataclass(frozen=True)
class Unit:
    """What is removed as a whole: all slices, or none.

    ``family``: units that are alike, of which one at least must stay. ``nodes``: those that compute it from weights.
    ``elements``: weights in its slices. ``macs``: multiplications that go with it, per run on the sample. ``paired``:
    it is also summed over between two activations, such as queries and keys, where no slice says so.
    """

    id: int
    kind: str
    family: int
    nodes: tuple[str, ...]
    slices: tuple[TensorSlice, ...]
    elements: int
    macs: int
    paired: bool = False


@dataclass(frozen=True)
class Frozen:
    """Indices of weights that cannot be removed: how many, made by which nodes, and why."""

    kind: str
    nodes: tuple[str, ...]
    count: int
    reason: str


@dataclass(frozen=True)
class UnitMap:
    """All units of a model, and what else would be one but for ``frozen``.

    ``macs`` and ``elements`` are those of the whole model. ``trace`` is what surgery needs to know of the graph.
    """

    units: tuple[Unit, ...]
    frozen: tuple[Frozen, ...]
    macs: int
    elements: int
    trace: Trace = field(repr=False, compare=False)

    def families(self) -> dict[int, list[Unit]]:
        found: dict[int, list[Unit]] = defaultdict(list)
        for unit in self.units:
            found[unit.family].append(unit)
        return dict(found)

    def kept(self, removed: Iterable[Unit]) -> Kept:
        """What stays of every axis when these units go."""
        return Kept(self.trace, {unit.id for unit in removed})

    def elements_of(self, removed: Collection[Unit]) -> int:
        """Weights that go with these units, those they share counted once."""
        return self._fewer(removed, self.trace.stored)

    def values_of(self, removed: Collection[Unit]) -> int:
        """Values that nodes need not write without these units, per run on the sample."""
        written = (v for step in self.trace.steps if not step.folded for v in step.outputs if v in self.trace.axes)
        return self._fewer(removed, written)

    def _fewer(self, removed: Collection[Unit], values: Iterable[Value]) -> int:
        """Elements that these values have fewer without the units."""
        kept = self.kept(removed)
        sizes = (([axis.length for axis in self.trace.axes[v]], kept.lengths(v)) for v in values)
        return sum(math.prod(old) - math.prod(new) for old, new in sizes)

    def macs_of(self, removed: Collection[Unit]) -> int:
        """Multiplications that go with these units, per run on the sample, those they share counted once."""
        kept, gone = self.kept(removed), 0.0
        for step in self.trace.steps:
            for total, names in step.correspondence.work:
                shares = (kept.axis(step.correspondence.names[name]).mean() for name in names)
                gone += total * (1 - math.prod(shares))
        return round(gone)


def find_units(mirror: Mirror, inputs: Sequence[Any]) -> UnitMap:
    """All units that the graph lets go, found on one sample (``inputs`` as for calling the mirror).

    Nothing is tried out here: see ``surgery.shrink_confirm``.
    """
    found = trace(mirror, inputs)
    atoms, contents = found.atoms, _contents(found)
    _freeze_the_last(found, contents)
    places = _places(contents)
    called = {atom: next((k for k in KINDS if k in kinds), min(kinds)) for atom, kinds in sorted(atoms.kinds.items())}
    alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for atom in called:
        if atom in places and atom not in atoms.reasons:
            alike[tuple(places[atom])].append(atom)
    families = [side for where, members in alike.items() for side in _side_by_side(members, contents[where[0]])]
    reasons = stuck(found, families)
    for number, reason in reasons.items():
        atoms.reasons |= dict.fromkeys(families[number], reason)
    names, makers, macs, paired = stored_names(mirror, found), _makers(found), _macs(found), _paired(found)
    units = []
    for number, members in enumerate(families):
        for atom in members if number not in reasons else ():
            nodes = tuple(makers.get(atom, ()))
            slices, elements = _slices(found, names, atom, (contents[i] for i in places[atom]))
            units.append(Unit(atom, called[atom], number, nodes, slices, elements, macs.get(atom, 0), atom in paired))
    total = sum(work for step in found.steps for work, _ in step.correspondence.work)
    elements = sum(math.prod(axis.length for axis in found.axes.get(value, ())) for value in found.stored)
    return UnitMap(tuple(units), _frozen(found, called, makers), total, elements, found)


def _frozen(found: Trace, called: dict[int, str], makers: dict[int, list[str]]) -> tuple[Frozen, ...]:
    counts: dict[tuple, int] = defaultdict(int)
    for atom, kind in called.items():
        if atom in found.atoms.reasons:
            counts[kind, tuple(makers.get(atom, ())), found.atoms.reasons[atom]] += 1
    return tuple(Frozen(kind, nodes, count, reason) for (kind, nodes, reason), count in counts.items())


@dataclass
class Content:
    """Axes that carry the same labels: where they are, and the indices of each atom."""

    length: int
    axes: list[tuple[Value, int]] = field(default_factory=list)
    indices: dict[int, np.ndarray] = field(default_factory=dict)


def _contents(found: Trace) -> list[Content]:
    contents: dict[bytes, Content] = {}
    for value, axes in found.axes.items():
        for position, axis in enumerate(axes):
            if axis.labelled:
                content = contents.setdefault(axis.labels.tobytes(), Content(axis.length))
                content.axes.append((value, position))
                content.indices = content.indices or _indices(axis.labels)
    return list(contents.values())


def _indices(labels: np.ndarray) -> dict[int, np.ndarray]:
    """Atom -> the indices of the axis that carry it."""
    atoms, indices = labels.reshape(-1), np.tile(np.arange(labels.shape[1]), len(labels))
    order = np.argsort(atoms, kind="stable")
    unique, starts = np.unique(atoms[order], return_index=True)
    parts = np.split(indices[order], starts[1:])
    return {int(atom): np.sort(part) for atom, part in zip(unique, parts, strict=False) if atom}


def _freeze_the_last(found: Trace, contents: Iterable[Content]) -> None:
    """An atom that covers a whole axis cannot go; it is not even a unit where others part the axis."""
    for content in contents:
        for atom, indices in content.indices.items():
            if len(indices) == content.length:
                found.atoms.reasons.setdefault(atom, "nothing would be left without it")
                if len(content.indices) > 1:
                    found.atoms.kinds.pop(atom, None)


def _side_by_side(members: Iterable[int], content: Content) -> list[list[int]]:
    """Families of atoms of which none has an index in common: those of a product are as many as it has factors."""
    families: list[tuple[np.ndarray, list[int]]] = []
    for atom in members:
        indices = content.indices[atom]
        own = next((each for each in families if not each[0][indices].any()), None)
        if own is None:
            own = np.zeros(content.length, bool), []
            families.append(own)
        own[0][indices] = True
        own[1].append(atom)
    return [family for _, family in families]


def _places(contents: Sequence[Content]) -> dict[int, list[int]]:
    """Atom -> the contents that it is in."""
    places: dict[int, list[int]] = defaultdict(list)
    for number, content in enumerate(contents):
        for atom in content.indices:
            places[atom].append(number)
    return places


def stored_names(mirror: Mirror, found: Trace) -> dict[Value, str]:
    """Stored value -> the name of its tensor: of the weight, or of the value."""
    weights = {weight.path: name for name, weight in find_stored(mirror.proto).items()}
    values = {number: name for name, number in reversed(found.names.items())}
    return {number: weights.get(path) or values.get(number) or str(path) for number, path in found.stored.items()}


def _slices(
    found: Trace, names: dict[Value, str], atom: int, contents: Iterable[Content]
) -> tuple[tuple[TensorSlice, ...], int]:
    """An atom's slices of stored tensors, and how many weights are in them; what two axes share counts once."""
    slices, left = [], {}
    for content in contents:
        for value, axis in content.axes:
            if value in found.stored:
                indices = tuple(content.indices[atom].tolist())
                summed = (value, axis) in found.consumed
                slices.append(TensorSlice(names[value], found.stored[value], axis, indices, summed))
                lengths = left.setdefault(value, [a.length for a in found.axes[value]])
                lengths[axis] -= len(indices)
    sizes = (math.prod(a.length for a in found.axes[value]) - math.prod(rest) for value, rest in left.items())
    return tuple(slices), sum(sizes)


def _paired(found: Trace) -> set[int]:
    """The atoms that are summed over between two operands of which none is constant."""
    return {
        int(atom)
        for step in found.steps
        for position, axis in step.correspondence.summed
        if not step.node.constant[position]
        for atom in np.unique(found.axes[step.inputs[position]][axis].labels)
    }


def _makers(found: Trace) -> dict[int, list[str]]:
    """Atom -> the nodes that make it: products with weights."""
    makers: dict[int, list[str]] = defaultdict(list)
    for step in found.steps:
        if not step.correspondence.summed or not any(step.node.constant):
            continue
        for atom in _made(found, step):
            makers[atom].append(step.step.node)
    return makers


def _made(found: Trace, step: TracedStep) -> set[int]:
    stored = [v for v, fixed in zip(step.inputs, step.node.constant, strict=True) if fixed and v in found.axes]
    inside = {int(a) for v in stored for axis in found.axes[v] for a in np.unique(axis.labels)}
    outside = {int(a) for v in step.outputs for axis in found.axes.get(v, ()) for a in np.unique(axis.labels)}
    return (inside & outside) - {0}


def _macs(found: Trace) -> dict[int, int]:
    """Atom -> multiplications that go with it: in each product, the share of every axis it is on."""
    macs: dict[int, float] = defaultdict(float)
    for step in found.steps:
        for total, names in step.correspondence.work:
            left: dict[int, float] = defaultdict(lambda: 1.0)
            for name in names:
                axis = step.correspondence.names[name]
                for atom, indices in _indices(axis.labels).items():
                    left[atom] *= 1 - len(indices) / axis.length
            for atom, share in left.items():
                macs[atom] += total * (1 - share)
    return {atom: round(value) for atom, value in macs.items()}
