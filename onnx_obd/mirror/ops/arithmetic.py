"""Arithmetic of two and more tensors, broadcast against each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from onnx_obd.mirror.axes import ELEMENTWISE, aligned
from onnx_obd.mirror.registry import op
from onnx_obd.mirror.second import (
    Call,
    SecondRule,
    elementwise,
    elementwise_sample_squares,
    sum_sample_squares,
    unit,
    viewed,
    without_outputs,
)


def align(a, b, *, axis=None, broadcast=0) -> tuple[torch.Tensor, torch.Tensor]:
    """How operators broadcast up to opset 6: the axes of B are those of A from ``axis`` on, or else the last ones."""
    if axis is None or b.dim() == a.dim():
        return a, b
    return a, b.reshape(*b.shape, *[1] * (a.dim() - axis % a.dim() - b.dim()))


def binary(
    name: str, *since: int, old: tuple[int, ...] = (), second: SecondRule | None = None,
    squares: Callable = elementwise_sample_squares, in_place: tuple[Callable, ...] = (), **traits: Any,
) -> Callable[[Callable], Callable]:  # fmt: skip
    """Register f(A, B) for ``since``, and for the versions ``old``, which had the attributes axis and broadcast."""

    def register(function: Callable) -> Callable:
        def with_axis(a, b, *, axis=None, broadcast=0):
            return function(*align(a, b, axis=axis))

        if old:
            op(name, *old, second=second and viewed(align, second), axes=aligned, **traits)(with_axis)
        current = op(name, *since, second=second, sample_squares=squares, axes=ELEMENTWISE, in_place=in_place, **traits)
        return current(function)

    return register


def _over(function: Callable[..., Tensor]) -> tuple[Callable, Callable]:
    """f(A, B) written over A, and over B."""
    return lambda a, b: function(a, b, out=a), lambda a, b: function(a, b, out=b)


def _shaped(call: Call, *found: Callable[[], Tensor]) -> list[Tensor | None]:
    """The h of the operands that are wanted, summed over the axes they were broadcast along."""
    return [
        make().sum_to_size(value.shape) if wanted else None
        for make, value, wanted in zip(found, call.inputs, call.wanted, strict=True)
    ]


def _stands_twice(call: Call) -> bool:
    return call.inputs[0] is call.inputs[1]


def _sub_second(call: Call, h: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    return elementwise(call, h) if _stands_twice(call) else _shaped(call, lambda: h[0], lambda: h[0])


@without_outputs
def _mul_second(call: Call, h: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    if _stands_twice(call):
        return elementwise(call, h)
    a, b = call.inputs
    return _shaped(call, lambda: h[0] * b.square(), lambda: h[0] * a.square())


def _div_second(call: Call, h: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    """y = a / b: the slopes are 1 / b and -y / b."""
    if _stands_twice(call):
        return elementwise(call, h)
    b, y = call.inputs[1], call.outputs[0]
    return _shaped(call, lambda: h[0] / b.square(), lambda: h[0] * (y / b).square())


@binary("Add", 7, 13, 14, old=(1, 6), second=unit, squares=sum_sample_squares,
        in_place=_over(torch.add))  # fmt: skip
def add(a, b):
    return a + b


@binary("Sub", 7, 13, 14, old=(1, 6), second=_sub_second, squares=sum_sample_squares,
        in_place=_over(torch.sub))  # fmt: skip
def sub(a, b):
    return a - b


@binary("Mul", 7, 13, 14, old=(1, 6), second=_mul_second, in_place=_over(torch.mul))
def mul(a, b):
    return a * b


def _divided(a, b, **out):
    return torch.div(a, b, rounding_mode=None if a.is_floating_point() else "trunc", **out)


@binary("Div", 7, 13, 14, old=(1, 6), second=_div_second, in_place=_over(_divided))
def div(a, b):
    return _divided(a, b)


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


@op("Max", 1, 6, 8, 12, 13, second=unit, axes=ELEMENTWISE)
def maximum(*data):
    return reduce(torch.maximum, data)


@op("Min", 1, 6, 8, 12, 13, second=unit, axes=ELEMENTWISE)
def minimum(*data):
    return reduce(torch.minimum, data)


@op("Sum", 1, 6, 8, 13, second=unit, axes=ELEMENTWISE)
def total(*data):
    return reduce(torch.add, data)


@op("Mean", 1, 6, 8, 13, second=elementwise, axes=ELEMENTWISE)
def mean(*data):
    return reduce(torch.add, data) / len(data)
