"""Arithmetic of two and more tensors, broadcast against each other."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch

from onnx_obd.mirror.axes import ELEMENTWISE, aligned
from onnx_obd.mirror.registry import family, op
from onnx_obd.mirror.second import SecondRule, elementwise, viewed


def align(a, b, *, axis=None, broadcast=0) -> tuple[torch.Tensor, torch.Tensor]:
    """How operators broadcast up to opset 6: the axes of B are those of A from ``axis`` on, or else the last ones."""
    if axis is None or b.dim() == a.dim():
        return a, b
    return a, b.reshape(*b.shape, *[1] * (a.dim() - axis % a.dim() - b.dim()))


def binary(
    name: str, *since: int, old: tuple[int, ...] = (), second: SecondRule | None = None,
    in_place: Callable | None = None, **traits: Any,
) -> Callable[[Callable], Callable]:  # fmt: skip
    """Register f(A, B) for ``since``, and for the versions ``old``, which had the attributes axis and broadcast."""

    def register(function: Callable) -> Callable:
        def with_axis(a, b, *, axis=None, broadcast=0):
            return function(*align(a, b, axis=axis))

        if old:
            op(name, *old, second=second and viewed(align, second), axes=aligned, **traits)(with_axis)
        return op(name, *since, second=second, axes=ELEMENTWISE, in_place=in_place, **traits)(function)

    return register


@binary("Add", 7, 13, 14, old=(1, 6), second=elementwise, in_place=torch.Tensor.add_)
def add(a, b):
    return a + b


@binary("Sub", 7, 13, 14, old=(1, 6), second=elementwise, in_place=torch.Tensor.sub_)
def sub(a, b):
    return a - b


@binary("Mul", 7, 13, 14, old=(1, 6), second=elementwise, in_place=torch.Tensor.mul_)
def mul(a, b):
    return a * b


@binary("Div", 7, 13, 14, old=(1, 6), second=elementwise)
def div(a, b):
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


@binary("Pow", 7, 12, 13, 15, old=(1,), second=elementwise, constants=(1,))
def pow(x, y):
    if not x.is_floating_point():  # torch refuses negative powers of integers; ONNX keeps the type of the base
        return torch.pow(x.double(), y).to(x.dtype)
    if not y.is_floating_point():
        y = y.to(x.dtype)
    if not (torch.is_grad_enabled() and y.requires_grad):
        number = y.numel() == 1 and y.dim() <= x.dim() and y.device.type == "cpu"  # a square is faster than a power
        return torch.pow(x, y.item() if number else y).to(x.dtype)
    # Where the base is negative the power is not a function of a real exponent: no gradient, rather than NaN.
    y = y.to(x.dtype)
    positive = x > 0
    return torch.where(positive, torch.pow(torch.where(positive, x, 1), y), torch.pow(x, y.detach()))


@op("Mod", 10, 13, 28, second=elementwise, axes=ELEMENTWISE)
def mod(a, b, *, fmod=0):
    return torch.fmod(a, b) if fmod else torch.remainder(a, b)


variadic = family(second=elementwise, axes=ELEMENTWISE)


@variadic("Max", 1, 6, 8, 12, 13)
def maximum(*data):
    return reduce(torch.maximum, data)


@variadic("Min", 1, 6, 8, 12, 13)
def minimum(*data):
    return reduce(torch.minimum, data)


@variadic("Sum", 1, 6, 8, 13)
def total(*data):
    return reduce(torch.add, data)


@variadic("Mean", 1, 6, 8, 13)
def mean(*data):
    return reduce(torch.add, data) / len(data)
