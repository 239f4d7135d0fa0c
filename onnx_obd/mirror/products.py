"""Nodes as products of matrices: what least squares needs to know of an operator that multiplies data by a weight.

A rule is called with the position of the weight's operand, the values of all operands, the attributes and the output;
it returns a ``Product``, or None where the node has not this form. Groups are what does not mix: the groups of a
convolution, the matrices of a batched product.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from onnx_obd.mirror.ops.convolution import _conv_geometry as conv_geometry
from onnx_obd.mirror.ops.convolution import _transposed_geometry as transposed_geometry
from onnx_obd.mirror.ops.sliding import torch_pads, windows
from onnx_obd.mirror.registry import Operator


@dataclass(frozen=True)
class Product:
    """y[g, n, r] = sum_k x[g, n, k] · w[g, r, k] + what does not depend on w.

    Attributes:
        features: indices [P] of positions n -> x [G, P, K]; only these positions are unfolded.
        outputs: a tensor shaped like the node's output -> y [G, N, R].
        matrix: a tensor shaped like the operand -> w [G, R, K].
        positions: N, over all samples of the batch.
        bias: position of the operand that is added to y, and its factor; None if the operator has none.
    """

    features: Callable[[Tensor], Tensor]
    outputs: Callable[[Tensor], Tensor]
    matrix: Callable[[Tensor], Tensor]
    positions: int
    bias: tuple[int, float] | None = None


ProductRule = Callable[[int, Sequence[Any], Mapping[str, Any], Tensor], Product | None]


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
        return _of_rows(x, lambda y: y.reshape(1, -1, 1), lambda w: w.reshape(1, 1, -1))
    rows, columns = b.shape[-2:]
    if b.dim() == 2:
        x = a.reshape(1, -1, rows)
        return _of_rows(x, lambda y: y.reshape(1, -1, columns), lambda w: w.mT[None])
    batch = b.shape[:-2]
    if a.dim() < b.dim() or a.shape[-b.dim() : -2] != batch:
        return None
    groups = batch.numel()

    def grouped(value: Tensor) -> Tensor:
        return value.reshape(-1, groups, *value.shape[-2:]).transpose(0, 1).flatten(1, 2)

    return _of_rows(grouped(a), grouped, lambda w: w.reshape(groups, rows, columns).mT)


def _of_rows(x: Tensor, outputs: Callable[[Tensor], Tensor], matrix: Callable[[Tensor], Tensor]) -> Product:
    return Product(lambda chosen: x[:, chosen], outputs, matrix, x.shape[1])


def sliding_product(
    unfolded: Tensor, groups: int, matrix: Callable[[Tensor], Tensor], bias: tuple[int, float] | None
) -> Product:
    """The product of a convolution whose windows are given: a view [N, C, *output, *kernel]."""
    rank = (unfolded.dim() - 2) // 2
    size = (unfolded.shape[0], *unfolded.shape[2 : 2 + rank])
    places = unfolded.movedim(1, 1 + rank)

    def features(chosen: Tensor) -> Tensor:
        x = places[torch.unravel_index(chosen, size)]  # [P, C, *kernel]
        return x.reshape(len(chosen), groups, -1).transpose(0, 1)

    def outputs(y: Tensor) -> Tensor:
        rows = y.movedim(1, -1).reshape(-1, y.shape[1])
        return rows.unflatten(1, (groups, -1)).transpose(0, 1)

    return Product(features, outputs, matrix, torch.Size(size).numel(), bias)


def _matmul(position, inputs, attributes, output):
    return matrix_product(position, *inputs)


def _gemm(position, inputs, attributes, output):
    a, b, *c = inputs
    trans_a, trans_b = attributes.get("transA", 0), attributes.get("transB", 0)
    alpha, transposed = attributes.get("alpha", 1.0), (trans_a, trans_b)[position]
    found = matrix_product(position, a.mT if trans_a else a, b.mT if trans_b else b)
    return replace(
        found,
        features=lambda chosen: alpha * found.features(chosen),
        matrix=lambda w: found.matrix(w.mT if transposed else w),
        bias=(2, attributes.get("beta", 1.0)) if c else None,
    )


def _conv(position, inputs, attributes, output):
    x, w, *b = inputs
    group = attributes.get("group", 1)
    begin, end, strides, dilations = conv_geometry(x, w, attributes)
    unfolded = windows(F.pad(x, torch_pads(begin, end)), w.shape[2:], strides, dilations)
    return sliding_product(unfolded, group, lambda w: w.reshape(group, len(w) // group, -1), (2, 1.0) if b else None)


def _conv_transpose(position, inputs, attributes, output):
    """A convolution of x, spread out by the strides and padded, with the mirrored kernel."""
    x, w, *b = inputs
    strides, padding, dilations, extra, crop = transposed_geometry(x, w, attributes)
    group, rank = attributes.get("group", 1), len(strides)
    spread = x.new_zeros(*x.shape[:2], *[s * (n - 1) + 1 for n, s in zip(x.shape[2:], strides, strict=True)])
    spread[(..., *[slice(None, None, s) for s in strides])] = x
    reach = [d * (k - 1) - p for k, d, p in zip(w.shape[2:], dilations, padding, strict=True)]
    padded = F.pad(spread, torch_pads(reach, [r + e for r, e in zip(reach, extra, strict=True)]))
    padded = padded if crop is None else F.pad(padded, crop)
    unfolded = windows(padded, w.shape[2:], (1,) * rank, dilations)
    kernel = tuple(range(2, 2 + rank))

    def matrix(w: Tensor) -> Tensor:
        return w.flip(kernel).unflatten(0, (group, -1)).transpose(1, 2).flatten(2)

    return sliding_product(unfolded, group, matrix, (2, 1.0) if b else None)


PRODUCTS: dict[tuple[str, str], ProductRule] = {
    ("", "MatMul"): _matmul,
    ("", "Gemm"): _gemm,
    ("", "Conv"): _conv,
    ("", "ConvTranspose"): _conv_transpose,
}


def product_of(
    operator: Operator, position: int, inputs: Sequence[Any], attributes: Mapping[str, Any], output: Tensor
) -> Product | None:
    """The node as a ``Product`` in the operand at ``position``; None where no rule is known or the form is another."""
    rule = PRODUCTS.get((operator.domain, operator.name))
    return rule(position, [value for value in inputs if value is not None], attributes, output) if rule else None
