"""One node's axis rule applied to the atoms of its inputs: the atoms of its outputs, and what meets on the way."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from onnx_obd.mirror.axes import Along, Expression, Fixed, Name, Node, Product, Rule, Sum, Unreadable, expand, names_of
from onnx_obd.units.atoms import Atoms, Axis, Origin, bare, concatenation, product

CALLED = {"head": "head", "num_heads": "head", "kv_num_heads": "head", "share": "head", "num_groups": "group"}
"""Names that say what an axis is made of, in operators without weights of their own too."""

Sized = list[tuple[Expression, int]]
"""The expression and the length of each axis of a value."""


@dataclass
class Correspondence:
    """What a node does with the axes of its values.

    ``names``: the axes by the names of its rule. ``summed``: for every sum of products an (input, axis) that it goes
    along; ``sums``: all of them that carry it. ``consumed``: the axes of stored tensors that are summed over. ``work``:
    numbers of multiplications, each with the names of the axes it is proportional to.
    """

    names: dict[str, Axis] = field(default_factory=dict)
    summed: list[tuple[int, int]] = field(default_factory=list)
    sums: list[list[tuple[int, int]]] = field(default_factory=list)
    consumed: set[tuple[int, int]] = field(default_factory=set)
    work: list[tuple[int, tuple[str, ...]]] = field(default_factory=list)


class Application:
    """A rule applied to one execution of a node. ``axes`` are those of its inputs, None for what is not followed.

    Raises:
        Unreadable: the rule does not fit the shapes at hand.
    """

    def __init__(self, atoms: Atoms, rule: Rule, node: Node, label: str, axes: Sequence[list[Axis] | None]):
        self.atoms, self.node, self.where, self.axes = atoms, node, f"node {label}", axes
        self.inputs = [_sized(rule.term(rule.inputs, i), value) for i, value in enumerate(node.inputs)]
        self.outputs = [_sized(rule.term(rule.outputs, i), value) for i, value in enumerate(node.outputs)]
        self.made = set().union(*map(_names, self.outputs))
        self.lengths = _Lengths(rule, node, [pair for sized in (*self.inputs, *self.outputs) for pair in sized or ()])
        self.result = Correspondence()

    def run(self) -> tuple[list[list[Axis] | None], Correspondence]:
        """The axes of the outputs."""
        for sized, axes in zip(self.inputs, self.axes, strict=True):
            for position, axis in enumerate(axes or ()):
                if sized is None:
                    self.atoms.freeze(axis, self.where)
                else:
                    self._read(*sized[position], axis)
        self._mark_sums()
        self._freeze_lonely()
        self._count_and_name()
        return [sized and [self._write(*pair) for pair in sized] for sized in self.outputs], self.result

    # ---- inputs

    def _read(self, expression: Expression, length: int, axis: Axis) -> None:
        """Bind the names in the expression to the axis, or to its parts."""
        if length == 1:
            return
        match expression:
            case Name(name):
                if self.lengths.known.get(name, length) != length:
                    raise Unreadable(f"'{name}' has {self.lengths.known[name]} indices and {length}")
                known = self.result.names.get(name)
                self.result.names[name] = axis if known is None else self.atoms.unite(known, axis, self.where)
            case Product():
                parts = self.lengths.of_parts(expression, length)
                factors = self.atoms.factors(axis, [n for _, n in parts], self.where)
                for (part, n), factor in zip(parts, factors, strict=True):
                    self._read(part, n, factor)
            case Sum():
                start = 0
                for part, n in self.lengths.of_parts(expression, length):
                    own = replace(axis, labels=axis.labels[:, start : start + n])
                    if n == 1:
                        self.atoms.freeze(own, f"{self.where} takes one index of it alone")
                    self._read(part, n, own)
                    start += n
            case _:
                self.atoms.freeze(axis, f"{self.where} needs the whole axis")

    # ---- sums

    def _carriers(self) -> dict[str, list[tuple[int, int]]]:
        """Name -> the (input, axis) it is in."""
        found: dict[str, list[tuple[int, int]]] = {}
        for position, sized in enumerate(self.inputs):
            for axis, pair in enumerate(sized or ()):
                for name in _names([pair]):
                    found.setdefault(name, []).append((position, axis))
        return found

    def _mark_sums(self) -> None:
        """A sum is cut short at a constant operand if it has one: there, what stands for 0 is known."""
        cuts: dict[tuple[int, int], None] = {}
        for name, carriers in self._carriers().items():
            inner = [(p, a) for p, a in carriers if Name(name, True) in names_of(self.inputs[p][a][0])]
            if inner or (len({p for p, _ in carriers}) > 1 and name not in self.made):
                self.result.sums.append(inner or carriers)
                for position, axis in inner or carriers:
                    self.result.consumed |= self.axes[position][axis].origin if self.axes[position] else set()
                constant = [carrier for carrier in carriers if self.node.constant[carrier[0]]]
                cuts |= dict.fromkeys(inner or (constant or carriers)[:1])
        self.result.summed = list(cuts)

    def _freeze_lonely(self) -> None:
        """A name that one input alone has is worked along, though it has a name."""
        for name, carriers in self._carriers().items():
            if name in self.result.names and name not in self.made and len({p for p, _ in carriers}) == 1:
                self.atoms.freeze(self.result.names[name], f"{self.where} needs the whole axis")

    def _count_and_name(self) -> None:
        """The multiplications of the node, and what the atoms that it makes from weights or pairs are called."""
        named, summed = self.result.names.keys(), self.result.summed
        operands = self.node.operator.weights or ((1,) if summed else ())
        operands = [p for p in operands if p < len(self.inputs) and self.inputs[p]]
        stored = [p for p in operands if self.node.constant[p]]
        for position in stored or operands:
            own = _names(self.inputs[position])
            outer = [(e, n) for e, n in self.outputs[0] or () if not own & _names([(e, n)])]
            total = self.node.inputs[position].numel() * math.prod(n for _, n in outer)
            if summed:
                self.result.work.append((total, tuple(sorted((own | _names(outer)) & named))))
            for name in own & self.made & named if stored else own & named:
                self.atoms.name(self.result.names[name], self._kind(name) if stored else self._paired(name))
        for name in CALLED.keys() & named:
            self.atoms.name(self.result.names[name], CALLED[name])

    def _paired(self, name: str) -> str:
        """Of a product of two activations, such as queries and keys: what both and the result have counts the heads."""
        both = sum(name in _names(sized) for sized in self.inputs) > 1
        return "head" if both and name in self.made else "head dimension"

    def _kind(self, name: str) -> str:
        """A factor is called by its own name; as the only one longer than 1, by that of the last."""
        for expression, _ in (pair for sized in self.outputs for pair in sized or ()):
            factors = expression.factors if isinstance(expression, Product) else ()
            if name in _names([(expression, 0)]) and factors and isinstance(factors[-1], Name):
                others = [factor.name for factor in factors if isinstance(factor, Name) and factor.name != name]
                if all(self.lengths.known.get(other) == 1 for other in others):
                    return factors[-1].name
        return name if len(name) > 1 else "neuron"

    # ---- outputs

    def _write(self, expression: Expression, length: int) -> Axis:
        if length == 1:
            return bare(1, "")
        match expression:
            case Name(name):
                if name not in self.result.names:
                    self.result.names[name] = self.atoms.born(length)
                axis = self.atoms.resolve(self.result.names[name])
                return axis if all(self.node.constant) else replace(axis, origin=frozenset())
            case Product():
                return product([self._write(*part) for part in self.lengths.of_parts(expression, length)])
            case Sum():
                return concatenation([self._write(*part) for part in self.lengths.of_parts(expression, length)])
        return bare(length, self.where)


def _sized(term: tuple | None, value: Any) -> Sized | None:
    if not term or not isinstance(value, torch.Tensor):
        return None
    if value.numel() == 1:
        return [(Along(), 1)] * value.dim()
    return list(zip(expand(term, value.dim()), value.shape, strict=True))


def _names(sized: Sized | None) -> set[str]:
    return {name.name for expression, _ in sized or () for name in names_of(expression)}


# ---- lengths


class _Lengths:
    """The length of every name: from attributes, from axes that are the name, from products and sums of known ones."""

    def __init__(self, rule: Rule, node: Node, pairs: Sized):
        self.known = dict(rule.lengths)
        for name in _names(pairs) & node.operator.keywords:
            if isinstance(value := node.get(name), int) and value:
                self.known[name] = value
        for expression, length in pairs:
            if isinstance(expression, Name) and expression.name not in node.operator.keywords:
                self.known[expression.name] = max(length, self.known.get(expression.name, 0))
        before = -1
        while before < len(self.known):
            before = len(self.known)
            for expression, length in pairs:
                self._solve(expression, length)

    def of(self, expression: Expression) -> int | None:
        match expression:
            case Name(name):
                return self.known.get(name)
            case Fixed(length):
                return length
            case Product(parts) | Sum(parts):
                lengths = [self.of(part) for part in parts]
                combine = math.prod if isinstance(expression, Product) else sum
                return None if None in lengths else combine(lengths)
        return None

    def _solve(self, expression: Expression, length: int) -> None:
        """The one unknown of a product or sum."""
        if isinstance(expression, Name):
            self.known.setdefault(expression.name, length)
        elif isinstance(expression, Sum) or (isinstance(expression, Product) and length > 1):
            parts = [part for part, n in self._split(expression) if n is None]
            if len(parts) == 1:
                self._solve(parts[0], self._rest(expression, length))

    def _split(self, expression: Product | Sum) -> list[tuple[Expression, int | None]]:
        parts = expression.factors if isinstance(expression, Product) else expression.parts
        return [(part, self.of(part)) for part in parts]

    def _rest(self, expression: Product | Sum, length: int) -> int:
        """What is left for a part of unknown length."""
        known = [n for _, n in self._split(expression) if n is not None]
        return length // max(1, math.prod(known)) if isinstance(expression, Product) else length - sum(known)

    def of_parts(self, expression: Product | Sum, length: int) -> list[tuple[Expression, int]]:
        rest = self._rest(expression, length)
        parts = [(part, rest if n is None else n) for part, n in self._split(expression)]
        combine = math.prod if isinstance(expression, Product) else sum
        if combine(n for _, n in parts) != length:
            raise Unreadable(f"an axis of {length} indices does not have the parts of its rule")
        return parts


# ---- operators that move elements


def moved(atoms: Atoms, node: Node, call: Callable, label: str, axes: Sequence[list[Axis] | None]) -> list:
    """The axes of the outputs when every element is one of the first input's: the operator runs on labels."""
    value, own = node.inputs[0], axes[0] or ()
    layers = [[[] for _ in y.shape] if isinstance(y, torch.Tensor) else None for y in node.outputs]
    for position, axis in enumerate(own):
        shape = [1] * value.dim()
        shape[position] = axis.length
        for labels in atoms.resolve(axis).labels:
            ids = torch.from_numpy(labels).double().reshape(shape).expand(value.shape)
            results = call(ids, *node.inputs[1:])
            for found, y in zip(layers, results if isinstance(results, tuple) else (results,), strict=False):
                for dimension, along in _along(atoms, y, f"node {label}").items() if found is not None else ():
                    found[dimension].append((along, axis.origin))
    why = next((axis.why for axis in own if axis.why), "")
    return [
        found and [_layered(parts, n, why) for parts, n in zip(found, y.shape, strict=True)]
        for found, y in zip(layers, node.outputs, strict=True)
    ]


def _along(atoms: Atoms, y: torch.Tensor, why: str) -> dict[int, np.ndarray]:
    """As ``Atoms.spread``, after dropping the dimensions along which nothing varies."""
    if not y.numel():
        return {}
    varied = [d for d in range(y.dim()) if y.shape[d] > 1 and bool((y != y.narrow(d, 0, 1)).any())]
    cut = y[tuple(slice(None) if d in varied else 0 for d in range(y.dim()))]
    return {varied[d]: labels for d, labels in atoms.spread(cut.long().numpy(), why).items()}


def _layered(parts: Sequence[tuple[np.ndarray, Origin]], length: int, why: str) -> Axis:
    if not parts:
        return bare(length, why)
    return Axis(np.stack([labels for labels, _ in parts]), why, frozenset().union(*(origin for _, origin in parts)))
