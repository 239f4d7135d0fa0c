"""Tensors made from attributes, shapes or a few numbers."""

from __future__ import annotations

import math

import numpy as np
import torch

from onnx_obd.mirror.axes import Node, names, spelled_shape
from onnx_obd.mirror.registry import DType, Ints, Like, op
from onnx_obd.mirror.second import movement


@op("Constant", 1, 9, 11, 12, 13, 19, 21, 23, 24, 25, differentiable=False)
def constant(
    *,
    value=None,
    sparse_value=None,
    value_float=None,
    value_floats=None,
    value_int=None,
    value_ints=None,
    value_string=None,
    value_strings=None,
    like: Like,
):
    if value is not None or sparse_value is not None:
        return sparse_value if value is None else value
    if value_float is not None or value_floats is not None:
        return like.new_tensor(value_floats if value_float is None else value_float)
    if value_int is not None or value_ints is not None:
        return like.new_tensor(value_ints if value_int is None else value_int, dtype=torch.int64)
    return np.array(value_strings if value_string is None else value_string, dtype=object)


@op(
    "ConstantOfShape", 9, 20, 21, 23, 24, 25, differentiable=False,
    axes=lambda node: f"_ -> {' '.join(names(node.outputs[0].dim()))}", spelled=spelled_shape("shape"),
)  # fmt: skip
def constant_of_shape(shape: Ints, *, value=None, like: Like):
    return like.new_zeros(shape) if value is None else value.reshape(()).expand(shape).clone()


@op("EyeLike", 9, 22, shape_only=True, differentiable=False)
def eye_like(x, *, dtype: DType = None, k=0):
    result = torch.zeros_like(x, dtype=dtype)
    result.diagonal(k).fill_(1)
    return result


@op("Range", 11, 27, data_dependent_shape=True)
def range_(start, limit, delta, *, stash_type: DType = torch.float32):
    dtype = start.dtype
    if dtype in (torch.float16, torch.bfloat16):
        start, limit, delta = start.to(stash_type), limit.to(stash_type), delta.to(stash_type)
    start, delta = start.reshape(()), delta.reshape(())
    count = max(0, math.ceil((limit - start).item() / delta.item()))
    return (start + torch.arange(count, device=start.device) * delta).to(dtype)


def _one_hot_axes(node: Node) -> str:
    own, axis = names(node.rank), node.get("axis") % (node.rank + 1)
    return f"{' '.join(own)}, , _ -> {' '.join([*own[:axis], '_', *own[axis:]])}"


@op("OneHot", 9, 11, 28, second=movement, axes=_one_hot_axes)
def one_hot(indices, depth: Ints, values, *, axis=-1):
    """``values``: off and on. Negative indices count from ``depth``; what lies outside is off everywhere."""
    axis %= indices.dim() + 1
    depth, index = int(depth[0]), indices.long().unsqueeze(axis)
    off, on = values
    inside = (-depth <= index) & (index < depth)
    shape = (*indices.shape[:axis], depth, *indices.shape[axis:])
    return off.expand(shape).scatter(axis, (index % depth), torch.where(inside, on, off))
