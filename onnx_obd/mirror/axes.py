"""How the axes of an operator's inputs and outputs correspond: the language of the trait ``axes``.

One term for each input, an arrow, one term for each output, in the manner of einops::

    Conv      n (group c) _*, (group channel) c _*, (group channel) -> n (group channel) _*
    MatMul    ... i k, ... k j -> ... i j

    name      an axis; the same name means the same index everywhere
    (a b)     a product: the pairs of a and b, b running faster
    [a + b]   a sum: the indices of a, then those of b
    3         an axis of that length, none of whose indices can go
    _         an axis the operator works along (a window, a statistic, a norm), so none can go; ``_*``: any number
    ...       all other axes, broadcast from the right as NumPy does
    name'     summed over inside the node, although the name is an output's as well (a recurrence)
    name=3    a name and its length, where the shapes leave it open

A name that two inputs share and no output has is summed over. A name that is also an attribute is as long as the
attribute says, and the attribute follows when it shrinks. A name that only an output has is made by the node, in a size
spelled by a parameter. Axes of length 1 are broadcast; an input with fewer axes than its term has the last of them. A
rule without an arrow is the term of all inputs and outputs alike. Instead of a string, a rule may be a function from
the node to one, and it may be ``MOVED``: every element of the output is one of the first input's, wherever
the operator puts it, which is found out by running it.

When axes shrink, so must the parameters that spell their sizes: the trait ``spelled`` is a function from the shrunk
node to the parameters' new values.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from onnx_obd.mirror.registry import Operator
from onnx_obd.mirror.second import elementwise

MOVED = "moved"
ELEMENTWISE = "..."


@dataclass(frozen=True)
class Node:
    """One execution of a node, as rules see it. ``constant``: which inputs do not depend on the graph's inputs."""

    operator: Operator
    attributes: Mapping[str, Any]
    inputs: Sequence[Any]
    outputs: Sequence[Any]
    constant: Sequence[bool]

    def get(self, name: str) -> Any:
        """A parameter by the name it has in the operator's function: an input, an attribute, or its default."""
        for position, parameter in enumerate(self.operator.parameters):
            if parameter.name == name:
                if parameter.kind is parameter.KEYWORD_ONLY:
                    return self.attributes.get(name, parameter.default)
                return self.inputs[position] if position < len(self.inputs) else None
        return None

    @property
    def rule(self) -> str | None:
        """The operator's rule for its axes, None if it has none."""
        rule = self.operator.axes or (ELEMENTWISE if self.operator.second is elementwise else None)
        return rule(self) if callable(rule) else rule

    @property
    def rank(self) -> int:
        return self.inputs[0].dim()


@dataclass(frozen=True)
class ShrunkNode(Node):
    """The same when indices of axes go: ``kept_inputs[i][axis]`` is True for those that stay, likewise for outputs."""

    kept_inputs: Sequence[Sequence[np.ndarray]] = field(default_factory=list)
    kept_outputs: Sequence[Sequence[np.ndarray]] = field(default_factory=list)

    def output_shape(self, index: int = 0) -> list[int]:
        return [int(kept.sum()) for kept in self.kept_outputs[index]]


# ---- the language


class Unreadable(Exception):
    """A rule does not fit the shapes at hand."""


@dataclass(frozen=True)
class Name:
    name: str
    summed: bool = False


@dataclass(frozen=True)
class Fixed:
    length: int


@dataclass(frozen=True)
class Along:
    """``_``"""


@dataclass(frozen=True)
class Product:
    factors: tuple


@dataclass(frozen=True)
class Sum:
    parts: tuple


Expression = Name | Fixed | Along | Product | Sum
_REST, _ANY = "...", "_*"
_TOKEN = re.compile(r"\.\.\.|_\*|\d+|[A-Za-z_]\w*'?(?:=\d+)?|[()\[\]+]")


@dataclass(frozen=True)
class Rule:
    """A parsed rule. ``inputs`` and ``outputs`` are terms, ``lengths`` those given by ``name=3``."""

    inputs: tuple[tuple, ...]
    outputs: tuple[tuple, ...]
    lengths: Mapping[str, int]
    uniform: bool

    def term(self, terms: Sequence[tuple], position: int) -> tuple | None:
        return terms[0] if self.uniform else terms[position] if position < len(terms) else None


@lru_cache(maxsize=1024)
def parse(text: str) -> Rule:
    lengths: dict[str, int] = {}
    left, arrow, right = text.partition("->")
    inputs = tuple(_term(part, lengths) for part in left.split(","))
    outputs = tuple(_term(part, lengths) for part in right.split(",")) if arrow else inputs
    return Rule(inputs, outputs, lengths, not arrow)


def _term(text: str, lengths: dict[str, int]) -> tuple:
    tokens = _TOKEN.findall(text)
    if "".join(tokens) != "".join(text.split()):
        raise ValueError(f"axes: cannot read '{text}'")
    return tuple(_sequence(tokens, "", lengths))


def _sequence(tokens: list[str], end: str, lengths: dict[str, int]) -> list:
    """The items up to the token ``end``; those of a sum stand between "+" signs."""
    found: list = []
    while tokens:
        token = tokens.pop(0)
        if token == end:
            return found
        if found and end == "]":
            token = tokens.pop(0) if token == "+" and tokens else ""
        found.append(_item(token, tokens, lengths))
    if end:
        raise ValueError(f"axes: '{end}' is missing")
    return found


def _item(token: str, tokens: list[str], lengths: dict[str, int]) -> Expression | str:
    match token:
        case "(":
            return Product(tuple(_sequence(tokens, ")", lengths)))
        case "[":
            return Sum(tuple(_sequence(tokens, "]", lengths)))
        case "_":
            return Along()
        case "..." | "_*":
            return token
        case ")" | "]" | "+" | "":
            raise ValueError(f"axes: '{token}' does not belong here")
    if token.isdigit():
        return Fixed(int(token))
    name, _, length = token.partition("=")
    if length:
        lengths[name] = int(length)
    return Name(name.rstrip("'"), name.endswith("'"))


def expand(term: tuple, rank: int) -> list[Expression]:
    """The expression of each axis of a value of that rank; ``...`` becomes names counted from the right."""
    single = sum(item not in (_REST, _ANY) for item in term)
    several = max(0, rank - single)
    found: list[Expression] = []
    for item in term:
        if item == _REST:
            found += [Name(f"...{several - i}") for i in range(several)]
        elif item == _ANY:
            found += [Along()] * several
        else:
            found.append(item)
    if len(found) < rank:
        raise Unreadable(f"a term of {len(found)} axes for {rank}")
    return found[len(found) - rank :]


def names_of(expression: Expression) -> list[Name]:
    match expression:
        case Name():
            return [expression]
        case Product(parts) | Sum(parts):
            return [name for part in parts for name in names_of(part)]
    return []


# ---- rules that several operators share


def names(count: int, start: int = 0) -> list[str]:
    return [f"a{i}" for i in range(start, start + count)]


def along(*parameters: str, default: Callable[[Node], Iterable[int]] | None = None, rest: bool = False) -> Callable:
    """An operator of one tensor that works along the axes a parameter names; with ``rest``, along all after too."""

    def rule(node: Node) -> str:
        value = next((v for name in parameters if (v := node.get(name)) is not None), None)
        axes = (value,) if isinstance(value, int) else value
        if axes is None:
            axes = default(node) if default else range(node.rank)
        worked = {axis % node.rank for axis in axes}
        worked = set(range(min(worked), node.rank)) if rest else worked
        return " ".join("_" if axis in worked else name for axis, name in enumerate(names(node.rank)))

    return rule


def reduced(node: Node) -> str:
    """Axes reduced away or to length 1."""
    axes = node.get("axes")
    if axes is None or (not axes and not node.get("noop_with_empty_axes")):
        axes = range(node.rank)
    worked = {axis % node.rank for axis in axes}
    inside = ["_" if axis in worked else name for axis, name in enumerate(names(node.rank))]
    keep = node.get("keepdims") != 0
    return f"{' '.join(inside)} -> {' '.join(item for item in inside if keep or item != '_')}"


def aligned(node: Node) -> str:
    """Up to opset 6: the axes of B are those of A from ``axis`` on, or else the last ones."""
    axis = node.get("axis")
    if axis is None or node.inputs[1].dim() == node.rank:
        return ELEMENTWISE
    own = names(node.rank)
    other = own[axis % node.rank :][: node.inputs[1].dim()]
    return f"{' '.join(own)}, {' '.join(other)} -> {' '.join(own)}"


# ---- parameters that spell sizes


def spelled_shape(parameter: str) -> Callable[[ShrunkNode], dict[str, Any]]:
    """A parameter that spells the shape of the output, or of its last axes, with 0, 1 or -1 for what it leaves open."""

    def spelled(node: ShrunkNode) -> dict[str, Any]:
        entries, shape = node.get(parameter), tuple(node.outputs[0].shape)
        if not entries:
            return {}
        axes = node.get("axes")
        axes = range(len(shape) - len(entries), len(shape)) if axes is None else axes
        new = node.output_shape()
        return {parameter: [new[axis] if n == shape[axis] else n for n, axis in zip(entries, axes, strict=True)]}

    return spelled


def position_kept(kept: np.ndarray, position: int) -> int:
    """Where a cut at ``position`` of an axis lies when only ``kept`` is left; beyond either end it stays."""
    length = len(kept)
    if position >= length or position < -length:
        return position
    if position >= 0 or not kept[position:].any():  # -0 would be the beginning
        return int(kept[:position].sum())
    return -int(kept[position:].sum())


def renumbered(kept: np.ndarray, indices: Sequence[int]) -> list[int]:
    """Indices into an axis of which only ``kept`` is left; those that went become 0."""
    new = np.cumsum(kept) - 1
    return [int(new[i]) - (int(kept.sum()) if i < 0 else 0) if kept[i] else 0 for i in indices]
