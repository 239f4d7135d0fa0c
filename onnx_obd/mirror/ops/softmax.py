"""Softmax and its relatives."""

from __future__ import annotations

import math

import torch

from onnx_obd.mirror.axes import along
from onnx_obd.mirror.registry import op
from onnx_obd.mirror.second import Call

SHORT_ROW, MANY_ROWS = 16, 1024
"""Lengths of rows, and elements in all, for which torch's kernel for rows loses (measured: up to ten times slower)."""


def _rows(x, axis):
    """Up to opset 12 the axes from ``axis`` on are one: x as rows, to be normalised along the last axis."""
    return x.reshape(*x.shape[: axis % x.dim()], -1)


def _logits(x, *, axis=-1):
    """The distributions as rows: [rows, classes]."""
    return x.movedim(axis, -1).reshape(-1, x.shape[axis])


def _logits_1(x, *, axis=1):
    return _rows(x, axis)


def _stuck(x, axis):
    """The distributions that no small change of their logits changes, as ``[..., 1, ...]``.

    Where the largest logit is so large that the next number below it gets nothing (e^-spacing < epsilon), a softmax is
    a step function of its logits; a row masked by the most negative float, or by minus infinity, is such a one. Its
    derivative is zero, and the usual formula is rounding error times whatever made the logits so large.
    """
    epsilon = torch.finfo(x.dtype).eps
    return x.detach().amax(axis, keepdim=True).abs() >= -math.log(epsilon) / epsilon


def _softmax_second(call: Call, h):
    """dy_j/dx_i = y_j (delta_ij - y_i)."""
    return _softmax_h(call.inputs[0], call.outputs[0], h[0], call.attributes.get("axis", -1))


def _softmax_h(x, y, h, axis):
    square = y.square()
    found = square * (h * (1 - 2 * y) + (square * h).sum(axis, keepdim=True))
    return (found.masked_fill(_stuck(x, axis), 0),)


@op("Softmax", 13, second=_softmax_second, distribution=_logits, axes=along("axis"))
def softmax(input, *, axis=-1):
    if torch.is_grad_enabled() and input.requires_grad:
        input = torch.where(_stuck(input, axis), input.detach(), input)
    if input.dtype == torch.float16:  # ONNX defines it step by step, and half precision shows every rounding
        exponential = (input - input.detach().amax(axis, keepdim=True)).exp()
        return exponential / exponential.sum(axis, keepdim=True)
    if input.is_cpu and input.shape[axis] < SHORT_ROW and input.numel() > MANY_ROWS and input.stride(axis) == 1:
        return torch.softmax(input.movedim(axis, 0), 0).movedim(0, axis)  # over all rows at once, not one by one
    return torch.softmax(input, axis)


def _softmax_1_second(call: Call, h):
    axis = call.attributes.get("axis", 1)
    (found,) = _softmax_h(*(_rows(value, axis) for value in (call.inputs[0], call.outputs[0], h[0])), -1)
    return (found.reshape(h[0].shape),)


@op("Softmax", 1, 11, second=_softmax_1_second, distribution=_logits_1, axes=along("axis", rest=True))
def softmax_1(input, *, axis=1):
    if axis % input.dim() == input.dim() - 1:
        return softmax(input)
    return softmax(_rows(input, axis)).reshape(input.shape)


def _log_softmax_h(y, h, axis):
    """dy_j/dx_i = delta_ij - p_i with p = exp(y)."""
    p = y.exp()
    return (h * (1 - 2 * p) + p.square() * h.sum(axis, keepdim=True),)


def _log_softmax_second(call: Call, h):
    return _log_softmax_h(call.outputs[0], h[0], call.attributes.get("axis", -1))


@op("LogSoftmax", 13, second=_log_softmax_second, distribution=_logits, axes=along("axis"))
def log_softmax(input, *, axis=-1):
    return torch.log_softmax(input, axis)


def _log_softmax_1_second(call: Call, h):
    axis = call.attributes.get("axis", 1)
    (found,) = _log_softmax_h(_rows(call.outputs[0], axis), _rows(h[0], axis), -1)
    return (found.reshape(h[0].shape),)


@op("LogSoftmax", 1, 11, second=_log_softmax_1_second, distribution=_logits_1, axes=along("axis", rest=True))
def log_softmax_1(input, *, axis=1):
    return torch.log_softmax(_rows(input, axis), -1).reshape(input.shape)


@op("Hardmax", 13, differentiable=False, axes=along("axis"))
def hardmax(input, *, axis=-1):
    return torch.zeros_like(input).scatter(axis, input.argmax(axis, keepdim=True), 1)


@op("Hardmax", 1, 11, differentiable=False, axes=along("axis", rest=True))
def hardmax_1(input, *, axis=1):
    return hardmax(_rows(input, axis)).reshape(input.shape)
