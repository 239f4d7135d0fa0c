"""Matrix products and contractions."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F

from onnx_obd.mirror.axes import Node
from onnx_obd.mirror.ops import onednn
from onnx_obd.mirror.products import Bias, Product, matrix_product, product_of_rows
from onnx_obd.mirror.registry import op
from onnx_obd.mirror.second import Call, sum_of_squares, without_outputs


def linear(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
    """x W^T + b for W [out, in]."""
    return onednn.linear(x, w, b) if onednn.multiplies(x, len(w)) else F.linear(x, w, b)


NARROW, MANY_ELEMENTS = 10, 1 << 13
"""Columns of b up to which, and elements of a from which, a b is found faster from the transpose of b (measured)."""


def addmm(c: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """c + a b for matrices a and b; c broadcasts."""
    if not onednn.multiplies(a, b.shape[1]):
        narrow = 1 < b.shape[1] <= NARROW and a.numel() >= MANY_ELEMENTS and len(a) > 1
        return torch.addmm(c, a, b.mT.contiguous().mT if narrow else b)
    return onednn.linear(a, b.mT, c) if c.dim() == 1 else onednn.linear(a, b.mT).add_(c)


@without_outputs
def _matmul_second(call: Call, h):
    """y = a b: h_a = h_y (b^2)^T and h_b = (a^2)^T h_y, summed over the axes that were broadcast."""
    (a, b), h_y = call.inputs, h[0]
    rows, columns = (a, b)
    if b.dim() == 1:
        columns, h_y = b[:, None], h_y.unsqueeze(-1)
    if a.dim() == 1:
        rows, h_y = a[None, :], h_y.unsqueeze(-2)
    if columns.dim() == 2:  # one product over all rows instead of a sum of products
        rows, h_y = rows.flatten(0, -2), h_y.flatten(0, -2)
    want_a, want_b = call.wanted
    h_a = (h_y @ columns.square().mT).sum_to_size(rows.shape).reshape(a.shape) if want_a else None
    h_b = (rows.square().mT @ h_y).sum_to_size(columns.shape).reshape(b.shape) if want_b else None
    return h_a, h_b


IN_CACHE = 1 << 19
"""Elements of per-sample gradients to have in memory at once (measured: best about here)."""


def product_squares(x: torch.Tensor, gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    """Sum over directions and samples of (g[n]^T x[n])^2 for each group: [groups, M, K].

    For x [samples, groups, rows, K] and each g [samples, groups, rows, M]. With one row it is a product of squares;
    else the gradients are made and squared while still in cache.
    """
    _, groups, rows, width = gradients[0].shape
    if rows == 1:
        return sum_of_squares(gradients)[:, :, 0].permute(1, 2, 0) @ x[:, :, 0].square().movedim(1, 0)
    size = groups * width * x.shape[3]
    columns = min(len(gradients), max(1, IN_CACHE // size))
    apart = onednn.multiplies(x[0, 0], columns * width)
    block = max(1, IN_CACHE // (groups * x.shape[3]))
    if apart and block < width:
        parts = zip(*(g.split(block, 3) for g in gradients), strict=True)
        return torch.cat([product_squares(x, part) for part in parts], 1)
    total = None
    for first in range(0, len(gradients), columns):
        some = gradients[first : first + columns]
        squares = (_squares_apart if apart else _squares_together)(x, some)
        squares = squares if len(some) == 1 else squares.unflatten(1, (-1, width)).sum(1)
        total = squares if total is None else total.add_(squares)
    return total


def _side_by_side(gradients: list[torch.Tensor]) -> torch.Tensor:
    """All columns as further outputs, copied as they lie in memory: [samples, groups, rows, columns * M]."""
    if len(gradients) == 1:
        return gradients[0]
    return torch.cat(gradients, 3) if gradients[0].stride(3) == 1 else torch.cat([g.mT for g in gradients], 2).mT


def _squares_apart(x: torch.Tensor, gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    """[groups, columns * M, K], by one call of oneDNN for each sample and group."""
    chunk, sums = max(1, IN_CACHE // (len(gradients) * gradients[0][0].numel())), []
    for start in range(0, len(x), chunk):
        back = _side_by_side([g[start : start + chunk] for g in gradients]).mT
        for of_sample in zip(back, x[start : start + chunk], strict=True):
            made = [_by_onednn(*of_group) for of_group in zip(*of_sample, strict=True)]
            if sums:
                for sum_, product in zip(sums, made, strict=True):
                    sum_.addcmul_(product, product)
            else:
                sums = [product.square_() for product in made]
    return torch.stack(sums)


def _squares_together(x: torch.Tensor, gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    """[groups, columns * M, K], by one call for as many samples as fit the cache."""
    of_one = len(gradients) * gradients[0].shape[3] * x[0, :, 0].numel()
    chunk, total = max(1, IN_CACHE // of_one), None
    for start in range(0, len(x), chunk):
        b, a = _side_by_side([g[start : start + chunk] for g in gradients]), x[start : start + chunk]
        made = (a.mT @ b).mT if b.shape[3] >= a.shape[3] else b.mT @ a
        squares = made.square_().sum(0)
        total = squares if total is None else total.add_(squares)
    return total


def _by_onednn(b: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """b a for b [M, rows] and a [rows, K].

    Fastest where the rows of what comes first lie side by side, else with the larger one second (measured).
    """
    if a.mT.is_contiguous() or len(b) >= a.shape[1]:
        return onednn.linear(a.mT, b).mT
    return onednn.linear(b.contiguous(), a.mT)


def _matmul_sample_squares(call: Call, gradients, count: int, axis: int):
    """Of a matrix; samples stand on the first axis, or each is one row or column."""
    (g,), position, (a, b) = gradients, call.wanted.index(True), call.inputs
    w, data = (b, a) if position else (a, b)
    if w.dim() != 2 or data.dim() < 2:
        return None
    if g[0].numel() == count * w.shape[1 if position else 0]:
        return _matmul_second(call, [sum_of_squares(g)])
    if axis != 0 or data.dim() != g[0].dim():
        return None
    if position:
        rows = data.reshape(count, 1, -1, w.shape[0])
        return None, product_squares(rows, [each.reshape(count, 1, -1, w.shape[1]) for each in g])[0].mT
    rows = data.mT.reshape(count, 1, -1, w.shape[1])
    return product_squares(rows, [each.mT.reshape(count, 1, -1, w.shape[0]) for each in g])[0], None


def matmul_axes(node: Node) -> str:
    rows, columns = node.inputs[0].dim() > 1, node.inputs[1].dim() > 1
    a, b = "... i k" if rows else "k", "... k neuron" if columns else "k"
    return f"{a}, {b} -> ...{' i' * rows}{' neuron' * columns}"


def _matmul_and_add(step, add, operands, others):
    """Where a vector is added to every row."""
    (a, b), (c,) = operands, others
    rows = a.dim() > 1 and b.dim() == 2 and a.is_floating_point()
    return _affine if rows and c.shape == b.shape[1:] and not add.attributes else None


def _affine(x, w, c):
    """x W + c for rows x and W [in, out]."""
    return addmm(c, x, w) if x.dim() == 2 else linear(x, w.mT, c)


@op(
    "MatMul", 1, 9, 13, second=_matmul_second, sample_squares=_matmul_sample_squares, weights=(0, 1), axes=matmul_axes,
    product=lambda position, inputs, attributes: matrix_product(position, *inputs), then={"Add": _matmul_and_add},
)  # fmt: skip
def matmul(a, b):
    if not a.is_floating_point():  # torch multiplies signed integers on a CPU only; float64 is exact up to 2^53
        wide = torch.float64 if a.is_cuda else torch.int64
        return (a.to(wide) @ b.to(wide)).to(a.dtype)
    if b.dim() == 2 and a.dim() > 1 and onednn.multiplies(a, b.shape[1]):
        return onednn.linear(a, b.mT)
    if b.dim() > 2 and b.stride(-2) == 1 < b.shape[-1]:
        b = b.mT.contiguous().mT  # as it lies, where torch would lay out its transpose
    return a @ b


@without_outputs
def _gemm_second(call: Call, h):
    """y = alpha a b + beta c: the products of squares, and the scalars squared."""
    attributes, (h_y,) = call.attributes, h
    a, b, *c = call.inputs
    trans_a, trans_b = attributes.get("transA", 0), attributes.get("transB", 0)
    scaled = h_y * attributes.get("alpha", 1.0) ** 2
    found = [None, None, None][: len(call.inputs)]
    if call.wanted[0]:
        b_squared = b.square() if trans_b else b.square().mT
        found[0] = (scaled @ b_squared).mT if trans_a else scaled @ b_squared
    if call.wanted[1]:
        a_squared = a.square() if trans_a else a.square().mT
        found[1] = (a_squared @ scaled).mT if trans_b else a_squared @ scaled
    if c and call.wanted[2]:
        found[2] = h_y.sum_to_size(c[0].shape) * attributes.get("beta", 1.0) ** 2
    return found


def _gemm_sample_squares(call: Call, gradients, count: int, axis: int):
    """As for MatMul with one row per sample; of c too where no element of a sample meets what another one does."""
    (g,), (want_a, want_b, want_c) = gradients, (*call.wanted, False)[:3]
    if g[0].shape[axis] != count or (want_a, want_b) not in ((False, False), (axis == 1, axis == 0)):
        return None
    if want_c:
        c = call.inputs[2]
        want_c = ((1,) * (2 - c.dim()) + tuple(c.shape))[1 - axis] == g[0].shape[1 - axis]
    wanted = (want_a, want_b, want_c)[: len(call.inputs)]
    return _gemm_second(replace(call, wanted=wanted), [sum_of_squares(g)])


def gemm_axes(node: Node) -> str:
    a, b = "k i" if node.get("transA") else "i k", "neuron k" if node.get("transB") else "k neuron"
    return f"{a}, {b}, i neuron -> i neuron"


def gemm_product(position, inputs, attributes) -> Product:
    a, b, c = (*inputs, None)[:3]
    trans_a, trans_b = attributes.get("transA", 0), attributes.get("transB", 0)
    alpha, transposed = attributes.get("alpha", 1.0), (trans_a, trans_b)[position]
    a, b = a.mT if trans_a else a, b.mT if trans_b else b
    found = matrix_product(position, a, b)
    rows = (len(a), b.shape[1])[position]

    def bias_rows(c):
        """Of c as it broadcasts to [M, N], what does not change along the positions."""
        whole = c.reshape((1,) * (2 - c.dim()) + tuple(c.shape))
        return whole.reshape(1, -1) if whole.shape[position] == rows and whole.numel() == rows else None

    return replace(
        found,
        features=lambda chosen: alpha * found.features(chosen),
        matrix=lambda w: found.matrix(w.mT if transposed else w),
        bias=None if c is None else Bias(2, attributes.get("beta", 1.0), bias_rows),
    )


@op(
    "Gemm", 1, 6, 7, 9, 11, 13, second=_gemm_second, sample_squares=_gemm_sample_squares, weights=(0, 1),
    axes=gemm_axes, product=gemm_product,
)  # fmt: skip
def gemm(a, b, c=None, *, alpha=1.0, beta=1.0, broadcast=0, transA=0, transB=0):
    a = a.mT if transA else a
    if not a.is_floating_point():
        y = matmul(a, b.mT if transB else b) * int(alpha)
        return y if c is None else y + c * int(beta)
    if alpha == beta == 1.0 and c is not None and c.shape == (b.shape[:1] if transB else b.shape[1:]):
        return linear(a, b, c) if transB else addmm(c, a, b)
    b = b.mT if transB else b
    if c is None:
        y = matmul(a, b)
        return y if alpha == 1.0 else alpha * y
    return torch.addmm(c, a, b, beta=beta, alpha=alpha)


def _einsum_terms(equation: str) -> tuple[list[list[str]], list[str]]:
    """The labels of each operand and of the output; "..." counts as one label."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    operands = [re.findall(r"\.\.\.|[A-Za-z]", term) for term in left.split(",")]
    if arrow:
        return operands, re.findall(r"\.\.\.|[A-Za-z]", right)
    labels = [label for term in operands for label in term]
    once = sorted(label for label in set(labels) if label != "..." and labels.count(label) == 1)
    return operands, ["..."] * ("..." in labels) + once


@without_outputs
def _einsum_second(call: Call, h):
    """y is linear in each operand a: y = einsum(a, c), where c contracts the others over what neither a nor y keeps.

    The entries of c are then the entries of the Jacobian, and h_a is the same derivative at c^2.
    """
    terms, output = _einsum_terms(call.attributes["equation"])
    found = []
    for position, wanted in enumerate(call.wanted):
        if not wanted:
            found.append(None)
            continue
        own, rest = terms[position], terms[:position] + terms[position + 1 :]
        values = [value for index, value in enumerate(call.inputs) if index != position]
        kept = sorted({label for term in rest for label in term} & {*own, *output})
        join = ",".join
        factor = [torch.einsum(join(map("".join, rest)) + "->" + "".join(kept), *values).square()] if rest else []
        linear = join(map("".join, [own, kept] if rest else [own])) + "->" + "".join(output)
        with torch.enable_grad():
            a = call.inputs[position].detach().requires_grad_()
            y = torch.einsum(linear, a, *factor)
        found.extend(torch.autograd.grad(y, a, h[0]))
    return found


def _einsum_axes(node: Node) -> str:
    terms, output = _einsum_terms(node.get("equation"))
    return f"{', '.join(map(' '.join, terms))} -> {' '.join(output)}"


def _einsum_product(position, inputs, attributes) -> Product | None:
    """Labels of both operands are groups if the output keeps them, else summed over; the data's own are positions."""
    terms, output = _einsum_terms(attributes["equation"])
    if len(inputs) != 2 or "..." in output or any(len(set(term)) < len(term) for term in (*terms, output)):
        return None
    own, other = terms[position], terms[1 - position]
    summed = [label for label in own if label in other and label not in output]
    groups = [label for label in own if label in other and label in output]
    rows, places = ([label for label in term if label not in (*groups, *summed)] for term in (own, other))
    if not summed or not {*rows, *places} <= {*output}:
        return None

    def arranged(value, term, middle, last):
        ordered = value.permute(*(term.index(label) for label in (*groups, *middle, *last)))
        sizes = [value.shape[term.index(label)] for label in (*groups, *middle, *last)]
        ends = len(groups), len(groups) + len(middle)
        parts = (sizes[: ends[0]], sizes[ends[0] : ends[1]], sizes[ends[1] :])
        return ordered.reshape(*(math.prod(part) for part in parts))

    return product_of_rows(
        arranged(inputs[1 - position], other, places, summed),
        lambda w: arranged(w, own, rows, summed),
        lambda y: arranged(y, output, places, rows),
    )


@op("Einsum", 12, 28, second=_einsum_second, weights=(0, 1, 2, 3), axes=_einsum_axes, product=_einsum_product)
def einsum(*inputs, equation):
    return torch.einsum(equation, *inputs)
