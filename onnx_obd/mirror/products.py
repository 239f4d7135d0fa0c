"""Nodes as products of matrices: what least squares needs to know of an operator that multiplies data by a weight.

An operator says so in its entry (``Operator.product``) by a rule: called with the position of the weight's operand, the
values of all operands (None where one is absent) and the attributes, it returns a ``Product``, or None where the node
has not this form. Groups are what does not mix: the groups of a convolution, the matrices of a batched product, the
directions of a recurrence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from onnx_obd.mirror.registry import Operator


@dataclass(frozen=True)
class Bias:
    """What is added to y[g, n, r]: factor · rows(operand)[g, r]; rows is None where it is not one number for each r."""

    position: int
    factor: float
    rows: Callable[[Tensor], Tensor | None]


@dataclass(frozen=True)
class Product:
    """y[g, n, r] = sum_k x[g, n, k] · w[g, r, k] + what does not depend on w.

    Attributes:
        features: indices [P] of positions n -> x [G, P, K]; only these positions are unfolded.
        matrix: a tensor shaped like the operand -> w [G, R, K].
        positions: N, over all samples of the batch.
        bias: the operand that is added to y; None if the operator has none.
        outputs: a tensor shaped like the node's output -> y [G, N, R]; None where the node does not put out y itself
            but something made of it.
    """

    features: Callable[[Tensor], Tensor]
    matrix: Callable[[Tensor], Tensor]
    positions: int
    bias: Bias | None = None
    outputs: Callable[[Tensor], Tensor] | None = None

    def inside(self) -> Product:
        """The same within an operator that goes on computing with y."""
        return replace(self, outputs=None)


ProductRule = Callable[[int, Sequence[Any], Mapping[str, Any]], Product | None]


def product_of(
    operator: Operator, position: int, inputs: Sequence[Any], attributes: Mapping[str, Any]
) -> Product | None:
    """The node as a ``Product`` in the operand at ``position``; None where no rule is known or the form is another."""
    if operator.product is None or position not in operator.weights:
        return None
    return operator.product(position, inputs, attributes)


def row_bias(position: int, bias: Tensor | None, groups: int = 1, factor: float = 1.0) -> Bias | None:
    """A bias [G · R] of an operator, if it is there."""
    return None if bias is None else Bias(position, factor, lambda b: b.reshape(groups, -1))


def matrix_product(position: int, a: Tensor, b: Tensor) -> Product | None:
    """The product of y = a b as MatMul broadcasts it, for the weight a (position 0) or b (position 1)."""
    if position == 0:  # yᵀ = bᵀ aᵀ
        if a.dim() < 2 or b.dim() < 2:
            return None
        found = matrix_product(1, b.mT, a.mT)
        if found is None:
            return None
        return replace(
            found,
            outputs=lambda y, inner=found.outputs: inner(y.mT),
            matrix=lambda w, inner=found.matrix: inner(w.mT),
        )
    if b.dim() == 1:
        x = a.reshape(1, -1, len(b))
        return product_of_rows(x, lambda w: w.reshape(1, 1, -1), lambda y: y.reshape(1, -1, 1))
    rows, columns = b.shape[-2:]
    if b.dim() == 2:
        x = a.reshape(1, -1, rows)
        return product_of_rows(x, lambda w: w.mT[None], lambda y: y.reshape(1, -1, columns))
    batch = b.shape[:-2]
    if a.dim() < b.dim() or a.shape[-b.dim() : -2] != batch:
        return None
    groups = batch.numel()

    def grouped(value: Tensor) -> Tensor:
        return value.reshape(-1, groups, *value.shape[-2:]).transpose(0, 1).flatten(1, 2)

    return product_of_rows(grouped(a), lambda w: w.reshape(groups, rows, columns).mT, grouped)


def product_of_rows(
    x: Tensor,
    matrix: Callable[[Tensor], Tensor],
    outputs: Callable[[Tensor], Tensor] | None = None,
    bias: Bias | None = None,
) -> Product:
    """The product of data [G, N, K] that stand in memory as they are multiplied."""
    return Product(lambda chosen: x[:, chosen], matrix, x.shape[1], bias, outputs)


def sliding_product(
    unfolded: Tensor, groups: int, matrix: Callable[[Tensor], Tensor], bias: Bias | None = None
) -> Product:
    """The product of a convolution whose windows are given: a view [N, C, *output, *kernel]."""
    rank = (unfolded.dim() - 2) // 2
    size = (unfolded.shape[0], *unfolded.shape[2 : 2 + rank])
    places = unfolded.movedim(1, 1 + rank)

    def features(chosen: Tensor) -> Tensor:
        x = places[_coordinates(chosen, size)]  # [P, C, *kernel]
        return x.reshape(len(chosen), groups, -1).transpose(0, 1)

    def outputs(y: Tensor) -> Tensor:
        rows = y.movedim(1, -1).reshape(-1, y.shape[1])
        return rows.unflatten(1, (groups, -1)).transpose(0, 1)

    return Product(features, matrix, torch.Size(size).numel(), bias, outputs)


def _coordinates(index: Tensor, size: Sequence[int]) -> tuple[Tensor, ...]:
    """Row-major. As ``torch.unravel_index``, which takes longer to check than to compute."""
    found = []
    for length in reversed(size):
        found.append(index % length)
        index = index // length
    return tuple(reversed(found))
