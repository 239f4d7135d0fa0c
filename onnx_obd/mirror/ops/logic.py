"""Comparisons, logic and bits; choosing by a condition, and the index of an extreme."""

from __future__ import annotations

import torch

from onnx_obd.mirror.axes import ELEMENTWISE, reduced
from onnx_obd.mirror.ops.arithmetic import binary
from onnx_obd.mirror.registry import family, op
from onnx_obd.mirror.second import movement

discrete = family(differentiable=False, axes=ELEMENTWISE)


@binary("Equal", 7, 11, 13, 19, old=(1,), differentiable=False)
def equal(a, b):
    return a == b


@binary("Greater", 7, 9, 13, old=(1,), differentiable=False)
def greater(a, b):
    return a > b


@binary("Less", 7, 9, 13, old=(1,), differentiable=False)
def less(a, b):
    return a < b


@discrete("GreaterOrEqual", 12, 16)
def greater_or_equal(a, b):
    return a >= b


@discrete("LessOrEqual", 12, 16)
def less_or_equal(a, b):
    return a <= b


@binary("And", 7, old=(1,), differentiable=False)
def logical_and(a, b):
    return a & b


@binary("Or", 7, old=(1,), differentiable=False)
def logical_or(a, b):
    return a | b


@binary("Xor", 7, old=(1,), differentiable=False)
def logical_xor(a, b):
    return a ^ b


@discrete("Not", 1)
def logical_not(x):
    return ~x


@discrete("BitwiseAnd", 18)
def bitwise_and(a, b):
    return a & b


@discrete("BitwiseOr", 18)
def bitwise_or(a, b):
    return a | b


@discrete("BitwiseXor", 18)
def bitwise_xor(a, b):
    return a ^ b


@discrete("BitwiseNot", 18)
def bitwise_not(x):
    return ~x


@discrete("BitShift", 11, 28)
def bit_shift(x, y, *, direction):
    return x << y if direction == "LEFT" else x >> y


@op("Where", 9, 16, second=movement, axes=ELEMENTWISE)
def where(condition, x, y):
    return torch.where(condition, x, y)


@discrete("ArgMax", 1, 11, 12, 13, axes=reduced)
def argmax(data, *, axis=0, keepdims=1, select_last_index=0):
    return _arg(torch.argmax, data, axis, keepdims, select_last_index)


@discrete("ArgMin", 1, 11, 12, 13, axes=reduced)
def argmin(data, *, axis=0, keepdims=1, select_last_index=0):
    return _arg(torch.argmin, data, axis, keepdims, select_last_index)


def _arg(find, data, axis, keepdims, select_last_index):
    """Of equal extremes torch finds the first; the last is the first from behind."""
    if not select_last_index:
        return find(data, dim=axis, keepdim=bool(keepdims))
    return data.shape[axis] - 1 - find(data.flip(axis), dim=axis, keepdim=bool(keepdims))
