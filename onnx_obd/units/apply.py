"""One node's axis rule applied to the atoms of its inputs: the atoms of its outputs, and what meets on the way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from onnx_obd.mirror.axes import Along, Expression, Fixed, Name, Node, Product, Rule, Sum, Unreadable, expand, names_of
from onnx_obd.units.atoms import Atoms, Axis, Origin, bare, concatenation, product

Shape = tuple[int, ...]


@dataclass
class Correspondence:
    """What a node does with the axes of its values.

    ``names``: the axes by the names of its rule. ``summed``: (input, axis) that is summed over, one for each sum.
    ``consumed``: the axes of stored tensors that are summed over. ``work``: multiplications, as the product of a
    total and the names of the axes that are factors of it.
    """

    names: dict[str, Axis] = field(default_factory=dict)
    summed: list[tuple[int, int]] = field(default_factory=list)
    consumed: set[tuple[int, int]] = field(default_factory=set)
    work: list[tuple[int, tuple[str, ...]]] = field(default_factory=list)


class Application:
    """Applies a rule to one execution of a node.

    ``shapes`` and ``axes`` are None where an input is absent or is not a tensor.
    """

    def __init__(self, atoms: Atoms, rule: Rule, node: Node, label: str, axes: Sequence[list[Axis] | None]):
        self.atoms, self.rule, self.node, self.label, self.axes = atoms, rule, node, f"node {label}", axes
        self.result = Correspondence()
        self.inputs = [self._expressions(rule.inputs, i, value) for i, value in enumerate(node.inputs)]
        self.outputs = [self._expressions(rule.outputs, i, value) for i, value in enumerate(node.outputs)]
        self.lengths = self._lengths()

    def _expressions(self, terms: Sequence[tuple], position: int, value: Any) -> list[tuple[Expression, int]] | None:
        term = self.rule.term(terms, position)
        if term is None or not isinstance(value, torch.Tensor):
            return None
        if value.numel() == 1:
            return [(Along(), 1)] * value.dim()
        return list(zip(expand(term, value.dim()), value.shape, strict=True))

    # ---- lengths

    def _lengths(self) -> dict[str, int]:
        """The length of every name, from attributes and shapes."""
        found = dict(self.rule.lengths)
        pairs = [pair for value in (*self.inputs, *self.outputs) for pair in value or ()]
        for name in _names(pairs) & self.node.operator.keywords:
            if isinstance(value := self.node.get(name), int) and value:
                found[name] = value
        for expression, length in pairs:
            if isinstance(expression, Name) and expression.name not in self.node.operator.keywords:
                found[expression.name] = max(length, found.get(expression.name, 0))
        for _ in range(len(pairs)):
            before = len(found)
            for expression, length in pairs:
                self._solve(expression, length, found)
            if len(found) == before:
                return found
        return found

    def _solve(self, expression: Expression, length: int, found: dict[str, int]) -> None:
        """The one unknown of a product or sum."""
        if not isinstance(expression, (Product, Sum)):
            return
        parts = expression.factors if isinstance(expression, Product) else expression.parts
        known = [_length(part, found) for part in parts]
        unknown = [part for part, value in zip(parts, known, strict=True) if value is None]
        if len(unknown) != 1 or (length == 1 and isinstance(expression, Product)):
            return
        given = [value for value in known if value is not None]
        rest = length - sum(given) if isinstance(expression, Sum) else length // max(math.prod(given), 1)
        if isinstance(unknown[0], Name):
            found[unknown[0].name] = rest
        else:
            self._solve(unknown[0], rest, found)

    def _parts(self, expression: Product | Sum, length: int) -> list[tuple[Expression, int]]:
        parts = expression.factors if isinstance(expression, Product) else expression.parts
        known = [_length(part, self.lengths) for part in parts]
        given = [value for value in known if value is not None]
        total, rest = (math.prod, length // max(math.prod(given), 1)) if isinstance(expression, Product) else (
            sum, length - sum(given))  # fmt: skip
        lengths = [rest if value is None else value for value in known]
        if known.count(None) > 1 or total(lengths) != length:
            raise Unreadable(f"an axis of {length} is not {expression}")
        return list(zip(parts, lengths, strict=True))

    # ---- inputs

    def run(self) -> tuple[list[list[Axis] | None], Correspondence]:
        for position, (expressions, axes) in enumerate(zip(self.inputs, self.axes, strict=True)):
            if axes is None:
                continue
            if expressions is None:
                self._freeze_all(axes)
                continue
            for (expression, length), axis in zip(expressions, axes, strict=True):
                self._read(expression, length, axis)
            self._mark_summed(position, expressions, axes)
        self._freeze_lonely()
        self._count_and_name()
        outputs = []
        for expressions in self.outputs:
            found = None if expressions is None else [self._write(e, n) for e, n in expressions]
            outputs.append(found)
        return outputs, self.result

    def _freeze_all(self, axes: Sequence[Axis]) -> None:
        for axis in axes:
            self.atoms.freeze(axis, self.label)

    def _read(self, expression: Expression, length: int, axis: Axis) -> None:
        if length == 1:
            return
        match expression:
            case Name(name):
                if self.lengths.get(name, length) != length:
                    raise Unreadable(f"axes named {name} have {self.lengths[name]} and {length} indices")
                known = self.result.names.get(name)
                meet = axis if known is None else self.atoms.unite(known, axis, self.label)
                self.result.names[name] = meet
            case Product():
                parts = self._parts(expression, length)
                factors = self.atoms.factors(axis, [n for _, n in parts], self.label)
                for (part, n), factor in zip(parts, factors, strict=True):
                    self._read(part, n, factor)
            case Sum():
                start = 0
                for part, n in self._parts(expression, length):
                    self._read(part, n, Axis(axis.labels[:, start : start + n], axis.why, axis.origin))
                    start += n
            case _:
                self.atoms.freeze(axis, f"{self.label} works along it")

    # ---- sums

    def _is_summed(self, name: str) -> bool:
        carriers = sum(name in _names(expressions) for expressions in self.inputs)
        return carriers > 1 and not any(name in _names(expressions) for expressions in self.outputs)

    def _mark_summed(self, position: int, expressions: list[tuple[Expression, int]], axes: Sequence[Axis]) -> None:
        for index, (expression, _) in enumerate(expressions):
            inner = any(name.summed for name in names_of(expression))
            shared = any(self._is_summed(name.name) for name in names_of(expression))
            if not inner and not shared:
                continue
            self.result.consumed |= axes[index].origin
            first = not any(self._shares(expression, before) for before in self.inputs[:position])
            if inner or first:
                self.result.summed.append((position, index))

    def _shares(self, expression: Expression, expressions: list[tuple[Expression, int]] | None) -> bool:
        mine = {name.name for name in names_of(expression) if self._is_summed(name.name)}
        return bool(mine & _names(expressions))

    def _freeze_lonely(self) -> None:
        """A name that one input has and no output: summed over with nothing to compensate for what goes."""
        for name, axis in self.result.names.items():
            if not self._is_summed(name) and not any(name in _names(expressions) for expressions in self.outputs):
                self.atoms.freeze(axis, f"{self.label} works along it")

    def _count_and_name(self) -> None:
        """The multiplications of a node that sums products, and what the atoms it makes or pairs are called."""
        if not self.result.summed:
            return
        operands = [p for p in self.node.operator.weights or (1,) if p < len(self.inputs) and self.inputs[p]]
        stored = [p for p in operands if self.node.constant[p]]
        made = _names([pair for expressions in self.outputs for pair in expressions or ()])
        for position in stored or operands:
            own = _names(self.inputs[position])
            outer = [(e, n) for e, n in self.outputs[0] or () if not own & _names([(e, n)])]
            total = self.node.inputs[position].numel() * math.prod(n for _, n in outer)
            self.result.work.append((total, tuple(sorted((own | _names(outer)) & self.result.names.keys()))))
            for name in own & self.result.names.keys() if not stored else own & made & self.result.names.keys():
                kind = "head" if name.startswith("...") else "head dimension"
                self.atoms.name(self.result.names[name], self._kind(name) if stored else kind)

    def _kind(self, name: str) -> str:
        """What an axis made from weights is called: of a product with one factor longer than 1, by the last one."""
        for expression, _ in (pair for value in self.outputs for pair in value or ()):
            if isinstance(expression, Product) and name in _names([(expression, 0)]):
                others = [n.name for n in names_of(expression) if n.name != name]
                if others and all(self.lengths.get(other) == 1 for other in others) and not _has_along(expression):
                    return names_of(expression)[-1].name
        return name

    # ---- outputs

    def _write(self, expression: Expression, length: int) -> Axis:
        if length == 1:
            return bare(1, "")
        match expression:
            case Name(name):
                if name not in self.result.names:
                    self.result.names[name] = self.atoms.born(length)
                return self.atoms.resolve(self.result.names[name])
            case Product():
                return product([self._write(part, n) for part, n in self._parts(expression, length)])
            case Sum():
                return concatenation([self._write(part, n) for part, n in self._parts(expression, length)])
        return bare(length, self.label)


def _length(expression: Expression, lengths: dict[str, int]) -> int | None:
    match expression:
        case Name(name):
            return lengths.get(name)
        case Fixed(length):
            return length
        case Along():
            return None
        case Product(parts) | Sum(parts):
            known = [_length(part, lengths) for part in parts]
            if None in known:
                return None
            return math.prod(known) if isinstance(expression, Product) else sum(known)
    return None


def _has_along(product: Product) -> bool:
    return any(isinstance(factor, Along) for factor in product.factors)


def _names(expressions: list[tuple[Expression, int]] | None) -> set[str]:
    return {name.name for expression, _ in expressions or () for name in names_of(expression)}


def moved(
    atoms: Atoms, node: Node, call: Any, label: str, axes: Sequence[list[Axis] | None]
) -> list[list[Axis] | None]:
    """Where the atoms of the first input end up: the operator runs on labels instead of values."""
    layers = [None if not isinstance(y, torch.Tensor) else [[] for _ in y.shape] for y in node.outputs]
    value, own = node.inputs[0], axes[0]
    for position, axis in enumerate(own or ()):
        shape = [1] * value.dim()
        shape[position] = axis.length
        for labels in atoms.resolve(axis).labels:
            ids = torch.from_numpy(labels).double().reshape(shape).expand(value.shape)
            result = call(ids, *node.inputs[1:])
            for found, y in zip(layers, result if isinstance(result, tuple) else (result,), strict=False):
                if found is not None:
                    for dimension, along in _along(atoms, y, f"node {label}").items():
                        found[dimension].append((along, axis.origin))
    why = next((axis.why for axis in own or () if axis.why), "")
    return [
        None if found is None else [_layered(parts, n, why) for parts, n in zip(found, y.shape, strict=True)]
        for found, y in zip(layers, node.outputs, strict=True)
    ]


def _along(atoms: Atoms, y: torch.Tensor, why: str) -> dict[int, np.ndarray]:
    """As ``Atoms.spread``, after dropping the dimensions along which nothing varies."""
    if not y.numel():
        return {}
    varied = [d for d in range(y.dim()) if y.shape[d] > 1 and bool((y != y.narrow(d, 0, 1)).any())]
    cut = y[tuple(slice(None) if d in varied else 0 for d in range(y.dim()))]
    found = atoms.spread(cut.long().numpy(), why)
    return {varied[d]: labels for d, labels in found.items()}


def _layered(parts: list[tuple[np.ndarray, Origin]], length: int, why: str) -> Axis:
    if not parts:
        return bare(length, why)
    return Axis(np.stack([labels for labels, _ in parts]), why, frozenset().union(*(origin for _, origin in parts)))
