"""Elementary functions of one tensor: signs, roundings, powers, exponentials, trigonometry."""

from __future__ import annotations

import torch

from onnx_obd.mirror.axes import ELEMENTWISE
from onnx_obd.mirror.registry import family, op
from onnx_obd.mirror.second import elementwise, reduction

elementwise_op = family(second=elementwise, axes=ELEMENTWISE)
step_op = family(differentiable=False, axes=ELEMENTWISE)  # constant between its jumps


@elementwise_op("Neg", 1, 6, 13)
def neg(x):
    return -x


@elementwise_op("Abs", 1, 6, 13)
def absolute(x):
    return torch.abs(x)


@elementwise_op("Reciprocal", 1, 6, 13)
def reciprocal(x):
    return torch.reciprocal(x)


@elementwise_op("Sqrt", 1, 6, 13)
def sqrt(x):
    return torch.sqrt(x)


@elementwise_op("Exp", 1, 6, 13)
def exp(x):
    return torch.exp(x)


@elementwise_op("Log", 1, 6, 13)
def log(x):
    return torch.log(x)


@elementwise_op("Sin", 7, 22)
def sin(x):
    return torch.sin(x)


@elementwise_op("Cos", 7, 22)
def cos(x):
    return torch.cos(x)


@elementwise_op("Tan", 7, 22)
def tan(x):
    return torch.tan(x)


@elementwise_op("Asin", 7, 22)
def asin(x):
    return torch.asin(x)


@elementwise_op("Acos", 7, 22)
def acos(x):
    return torch.acos(x)


@elementwise_op("Atan", 7, 22)
def atan(x):
    return torch.atan(x)


@elementwise_op("Sinh", 9, 22)
def sinh(x):
    return torch.sinh(x)


@elementwise_op("Cosh", 9, 22)
def cosh(x):
    return torch.cosh(x)


@elementwise_op("Asinh", 9, 22)
def asinh(x):
    return torch.asinh(x)


@elementwise_op("Acosh", 9, 22)
def acosh(x):
    return torch.acosh(x)


@elementwise_op("Atanh", 9, 22)
def atanh(x):
    return torch.atanh(x)


@step_op("Sign", 9, 13)
def sign(x):
    return torch.sign(x)


@step_op("Floor", 1, 6, 13)
def floor(x):
    return torch.floor(x)


@step_op("Ceil", 1, 6, 13)
def ceil(x):
    return torch.ceil(x)


@step_op("Round", 11, 22)
def round_half_to_even(x):
    return torch.round(x)


@step_op("IsNaN", 9, 13, 20)
def is_nan(x):
    return torch.isnan(x)


@step_op("IsInf", 10, 20)
def is_inf(x, *, detect_negative=1, detect_positive=1):
    if detect_negative and detect_positive:
        return torch.isinf(x)
    if detect_positive:
        return torch.isposinf(x)
    return torch.isneginf(x) if detect_negative else torch.zeros_like(x, dtype=torch.bool)


@op("Det", 11, 22, second=reduction)
def det(x):
    return torch.linalg.det(x)
