"""Operators that ONNX withdrew and that old files still hold; onnx has no schema for them any more."""

from __future__ import annotations

import torch

from onnx_obd.mirror.axes import ELEMENTWISE
from onnx_obd.mirror.registry import DType, Like, op
from onnx_obd.mirror.second import scaled_movement


@op("ImageScaler", 1, second=scaled_movement(lambda call: call.attributes.get("scale", 1.0)), axes=ELEMENTWISE)
def image_scaler(input, *, bias, scale=1.0):
    """Scales an image and adds a bias to each channel."""
    return torch.add(input.new_tensor(bias).view(-1, 1, 1), input, alpha=scale)


@op("ConstantFill", 1, differentiable=False)
def constant_fill(
    input=None, *, dtype: DType = torch.float32, extra_shape=(), input_as_shape=0, shape=(), value=0.0, like: Like
):  # fmt: skip
    """A constant of the given shape, of the shape of the input, or of the shape that the input holds."""
    if input is not None:
        shape = input.tolist() if input_as_shape else input.shape
    return torch.full((*shape, *extra_shape), value, dtype=dtype, device=like.device)


@op("GivenTensorFill", 1, differentiable=False)
def given_tensor_fill(input=None, *, extra_shape=(), input_as_shape=0, shape=(), values, like: Like):
    """The values in a shape that is found as in ConstantFill."""
    if input is not None:
        shape = input.tolist() if input_as_shape else input.shape
    return like.new_tensor(values).reshape(*shape, *extra_shape)
