"""Atoms: what the indices of axes belong to, and which of them go together.

Every index of every axis carries labels of atoms, and is removed when one of its atoms is. Usually there is one label;
an axis that is a product (heads times head size) has two *layers* of labels, for its indices can go by head or by
position in the head. Labels that meet are united (union-find); a label found to stand at the crossings of a grid is
*divided* into the label of its row and that of its column, wherever else it stands.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

Labels = np.ndarray
"""Integers, one row for each layer, one column for each index of the axis. 0: no atom in this layer."""

Origin = frozenset[tuple[int, int]]


@dataclass(frozen=True)
class Axis:
    """The labels of one axis; without any, nothing can be removed from it because of ``why``.

    ``origin``: the axes of stored tensors, (value, axis), that this one is made of alone.
    """

    labels: Labels
    why: str = ""
    origin: Origin = frozenset()

    @property
    def length(self) -> int:
        return self.labels.shape[1]

    @property
    def labelled(self) -> bool:
        return bool(self.labels.any())


def bare(length: int, why: str) -> Axis:
    """An axis from which nothing can be removed."""
    return Axis(np.zeros((0, length), np.int64), why)


class Atoms:
    """The union-find over labels, why some are frozen, how some are divided, and what they are called."""

    def __init__(self) -> None:
        self._parent = np.zeros(1, np.int64)
        self.reasons: dict[int, str] = {}  # root -> why it is frozen
        self.kinds: dict[int, set[str]] = {}  # root -> names of the axes on which it was met
        self._division: dict[int, tuple[int, ...]] = {}  # root -> the labels that it stands for
        self._divided = np.zeros(1, bool)  # label -> is it one of these roots?

    @property
    def count(self) -> int:
        """One more than the largest label."""
        return len(self._parent)

    # ---- labels

    def born(self, length: int, origin: Origin = frozenset()) -> Axis:
        """An axis whose indices are all independent so far; one index alone cannot go."""
        if length == 1:
            return bare(1, "")
        start = len(self._parent)
        self._parent = np.concatenate([self._parent, np.arange(start, start + length)])
        self._divided = np.concatenate([self._divided, np.zeros(length, bool)])
        return Axis(np.arange(start, start + length)[None], "", origin)

    def roots(self, labels: Labels) -> Labels:
        found = self._parent[labels]
        while not np.array_equal(above := self._parent[found], found):
            found = above
        self._parent[labels] = found
        return found

    def root(self, label: int) -> int:
        while (above := int(self._parent[label])) != label:
            label = above
        return label

    def resolve(self, axis: Axis) -> Axis:
        """The same axis by its present atoms: roots, divided labels in as many layers as they have parts."""
        labels = self.roots(axis.labels)
        if not self._divided[labels].any():
            return replace(axis, labels=_distinct(labels))
        rows = []
        for layer in labels:
            unique, inverse = np.unique(layer, return_inverse=True)
            parts = [self._parts(int(root)) for root in unique]
            table = np.zeros((max(map(len, parts)), len(unique)), np.int64)
            for column, found in enumerate(parts):
                table[: len(found), column] = found
            rows.append(table[:, inverse])
        return replace(axis, labels=_distinct(np.concatenate(rows)))

    def _parts(self, label: int) -> tuple[int, ...]:
        """What a label is divided into, down to the last."""
        root = self.root(label)
        if root not in self._division:
            return (root,)
        return tuple(dict.fromkeys(leaf for part in self._division[root] for leaf in self._parts(part)))

    # ---- what happens to them

    def freeze(self, axis: Axis | Labels, why: str) -> None:
        """Nothing that carries these labels can be removed, because of ``why`` (the first reason is kept)."""
        labels = axis.labels if isinstance(axis, Axis) else axis
        for label in np.unique(labels[labels != 0]):
            for leaf in self._parts(int(label)):
                self.reasons.setdefault(leaf, why)

    def name(self, axis: Axis, kind: str) -> None:
        for label in np.unique(axis.labels[axis.labels != 0]):
            for leaf in self._parts(int(label)):
                self.kinds.setdefault(leaf, set()).add(kind)

    def unite(self, a: Axis, b: Axis, why: str) -> Axis:
        """Two axes whose indices correspond one to one, as one. ``why`` says where, should that freeze labels."""
        for _ in range(3):  # what was divided meanwhile is resolved anew
            a, b = self.resolve(a), self.resolve(b)
            in_a, in_b = np.count_nonzero(a.labels, 0), np.count_nonzero(b.labels, 0)
            self.freeze(b.labels[:, in_a == 0], _because(why, a))
            self.freeze(a.labels[:, in_b == 0], _because(why, b))
            single = (in_a == 1) & (in_b == 1)
            self._merge(_only(a.labels[:, single]), _only(b.labels[:, single]))
            a, b = self.resolve(a), self.resolve(b)
            in_a, in_b = np.count_nonzero(a.labels, 0), np.count_nonzero(b.labels, 0)
            coarse, fine = (in_a == 1) & (in_b > 1), (in_a > 1) & (in_b == 1)
            self._divide(_only(a.labels[:, coarse]), b.labels[:, coarse], why)
            self._divide(_only(b.labels[:, fine]), a.labels[:, fine], why)
            several = (in_a > 1) & (in_b > 1)
            self._match(a.labels[:, several], b.labels[:, several], why)
        return replace(self.resolve(a), why=a.why or b.why, origin=a.origin | b.origin)

    def _merge(self, a: Labels, b: Labels) -> None:
        pairs = np.unique(np.stack([self.roots(a), self.roots(b)]), axis=1)
        pairs = pairs[:, pairs[0] != pairs[1]]
        others = pairs[1].tolist()
        known = self._divided[pairs[1]].any() or any(label in self.reasons or label in self.kinds for label in others)
        if not known and len(np.unique(pairs)) == pairs.size:  # one to one, and nothing to be handed over
            self._parent[pairs[1]] = pairs[0]
        else:
            for one, other in pairs.T:
                self._join(int(one), int(other))

    def _join(self, a: int, b: int) -> int:
        a, b = self.root(a), self.root(b)
        if a == b:
            return a
        if b in self._division:
            a, b = b, a
        self._parent[b] = a
        if b in self._division:  # both divided: what they are made of can no longer be told apart
            self.freeze(np.array(self._division.pop(b) + self._division[a]), "it is divided in two ways")
        if b in self.reasons:
            self.freeze(np.array([a]), self.reasons.pop(b))
        if b in self.kinds:
            for leaf in self._parts(a):
                self.kinds.setdefault(leaf, set()).update(self.kinds[b])
        return a

    def _divide(self, labels: Labels, layers: Labels, why: str) -> None:
        """Each label at index i becomes the labels ``layers[:, i]``, for every layer one over all its indices."""
        roots = self.roots(labels)
        for root in np.unique(roots):
            columns = layers[:, roots == root]
            parts = []
            for layer in columns:
                present = layer[layer != 0]
                if not len(present):
                    continue
                part = int(present[0])
                for other in np.unique(present):
                    part = self._join(part, int(other))
                if len(present) < len(layer):  # the label goes as a whole, and this part of it is not everywhere
                    self.freeze(np.array([part]), f"{why} parts the axis otherwise")
                parts.append(part)
            self._set_division(int(root), [self.root(part) for part in parts], why)

    def _set_division(self, root: int, parts: list[int], why: str) -> None:
        root, parts = self.root(root), list(dict.fromkeys(parts))
        if root in parts or root in self._division:  # it is one of its parts: then the others cannot go
            self.freeze(np.array([part for part in parts if part != root]), f"{why} parts the axis otherwise")
        elif len(parts) == 1:
            self._join(parts[0], root)
        elif parts:
            for part in parts if root in self.kinds else ():
                self.kinds.setdefault(part, set()).update(self.kinds[root])
            if root in self.reasons:
                self.freeze(np.array(parts), self.reasons.pop(root))
            self._division[root] = tuple(parts)
            self._divided[root] = True

    def _match(self, a: Labels, b: Labels, why: str) -> None:
        """Both have several layers: those unite that part the indices alike; what is left over freezes."""
        if not a.size:
            return
        rest = [layer for layer in b if layer.any()]
        for layer in (layer for layer in a if layer.any()):
            partner = next((other for other in rest if _alike(layer, other)), None)
            if partner is None:
                self.freeze(layer, f"{why} parts the axis otherwise")
            else:
                rest = [other for other in rest if other is not partner]
                self._merge(layer[layer != 0], partner[layer != 0])
        for layer in rest:
            self.freeze(layer, f"{why} parts the axis otherwise")

    # ---- products

    def spread(self, grid: Labels, why: str) -> dict[int, Labels]:
        """Labels at the places of a grid as labels along its dimensions: dimension -> one label for each index.

        Labels that vary along one dimension are that dimension's. Labels that vary along several are divided.
        """
        varied = [d for d in range(grid.ndim) if grid.shape[d] > 1 and (grid != grid.take([0], d)).any()]
        if not varied:
            if grid.any():
                self.freeze(grid.reshape(-1)[:1], f"{why} takes one index of it alone")
            return {}
        grid = grid[tuple(slice(None) if d in varied else 0 for d in range(grid.ndim))]
        if len(varied) == 1:
            return {varied[0]: grid}
        found, layers = {}, []
        for position, dimension in enumerate(varied):
            shape = [1] * grid.ndim
            shape[position] = grid.shape[position]
            own = self.born(grid.shape[position]).labels[0]
            layer = np.broadcast_to(own.reshape(shape), grid.shape)
            self.freeze(layer[grid == 0], f"{why} parts the axis otherwise")
            found[dimension] = own
            layers.append(layer[grid != 0])
        self._divide(grid[grid != 0], np.stack(layers), why)
        return found

    def factors(self, axis: Axis, lengths: Sequence[int], why: str) -> list[Axis]:
        """An axis that is a product, as its factors."""
        axis = self.resolve(axis)
        layers: list[list[Labels]] = [[] for _ in lengths]
        for layer in axis.labels:
            for dimension, labels in self.spread(layer.reshape(lengths), why).items():
                layers[dimension].append(labels)
        return [
            Axis(_stack(found, length), axis.why or ("" if found else why), axis.origin)
            for found, length in zip(layers, lengths, strict=True)
        ]


def product(factors: Sequence[Axis]) -> Axis:
    """The axis of all combinations, the last factor running fastest."""
    lengths = tuple(factor.length for factor in factors)
    layers = []
    for position, factor in enumerate(factors):
        shape = [1] * len(lengths)
        shape[position] = factor.length
        layers += [np.broadcast_to(layer.reshape(shape), lengths).reshape(-1) for layer in factor.labels]
    return _joined(factors, _stack(layers, int(np.prod(lengths))))


def concatenation(parts: Sequence[Axis]) -> Axis:
    depth = max(len(part.labels) for part in parts)
    padded = [np.pad(part.labels, ((0, depth - len(part.labels)), (0, 0))) for part in parts]
    return _joined(parts, np.concatenate(padded, 1))


def _joined(axes: Iterable[Axis], labels: Labels) -> Axis:
    axes = list(axes)
    why = dict.fromkeys(axis.why for axis in axes if axis.why and not axis.labels.any(0).all())
    return Axis(labels, " or ".join(why), frozenset().union(*(axis.origin for axis in axes)))


def _stack(layers: Sequence[Labels], length: int) -> Labels:
    return np.stack(layers) if layers else np.zeros((0, length), np.int64)


def _distinct(labels: Labels) -> Labels:
    """Each label at most once in a column, no empty layers."""
    if len(labels) == 1:
        return labels if labels.any() else labels[:0]
    order = labels.argsort(0, kind="stable")  # equal labels of a column one below the other, the first layer's on top
    ordered = np.take_along_axis(labels, order, 0)
    ordered[1:][ordered[1:] == ordered[:-1]] = 0
    labels = np.empty_like(labels)
    np.put_along_axis(labels, order, ordered, 0)
    return labels[labels.any(1)]


def _only(labels: Labels) -> Labels:
    """The one label of each column."""
    return labels.max(0, initial=0)


def _alike(a: Labels, b: Labels) -> bool:
    """Do two layers part the indices in the same way?"""
    return len(np.unique(np.stack([a, b]), axis=1).T) == len(np.unique(a)) == len(np.unique(b))


def _because(why: str, axis: Axis) -> str:
    return f"{why} ties it to what cannot go" + (f" ({axis.why})" if axis.why else "")
