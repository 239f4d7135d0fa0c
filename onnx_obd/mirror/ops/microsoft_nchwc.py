"""com.microsoft.nchwc: convolutions and pools on channels in blocks, which onnxruntime saves at its highest level.

A blocked tensor says it is [N, C, H, W] and lies in memory as [N, C / B, H, W, B]; a kernel that says [M, C, H, W] lies
as [M / B, C / B, H, W, B of C, B of M], or as [M / B, C, H, W, B of M] where its C does not fill blocks (a first
convolution, which reads an image as it is, and a depthwise one). B depends on the processor, and is nowhere in the
file: such a model belongs to the kind of machine that wrote it.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import torch.nn.functional as F
from torch import Tensor

from onnx_obd.graph.session import open_session
from onnx_obd.mirror.composite import composite, part
from onnx_obd.mirror.ops import microsoft_fused, pooling, resize
from onnx_obd.mirror.registry import family
from onnx_obd.mirror.second import movement

DOMAIN = "com.microsoft.nchwc"

nchwc_op = family(domain=DOMAIN, second=composite)
movement_op = family(domain=DOMAIN, second=movement)

_average_pool, _global_average_pool = part(pooling.average_pool), part(pooling.global_average_pool)


@cache
def block_size() -> int:
    """The channels of a block on this machine, as onnxruntime has it."""
    node = onnx.helper.make_node("ReorderInput", ["x"], ["y"], domain=DOMAIN)
    x = np.stack((np.zeros(64), np.ones(64)), -1).astype(np.float32).reshape(1, 64, 1, 2)
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, x.shape) for name in "xy"]
    graph = onnx.helper.make_graph([node], "blocks", values[:1], values[1:])
    opsets = [onnx.helper.make_opsetid("", 13), onnx.helper.make_opsetid(DOMAIN, 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=7)
    return int(open_session(model).run(None, {"x": x})[0].argmax())  # where the second column begins


def _blocked(x: Tensor) -> Tensor:
    """[N, C, H, W] as a blocked tensor."""
    n, channels, *size = x.shape
    return x.reshape(n, -1, block_size(), *size).movedim(2, -1).reshape(n, channels, *size)


def _plain(x: Tensor) -> Tensor:
    """The inverse of ``_blocked``."""
    n, channels, *size = x.shape
    return x.reshape(n, -1, *size, block_size()).movedim(-1, 2).reshape(n, channels, *size)


def _plain_kernel(w: Tensor) -> Tensor:
    kernels, channels, *size = w.shape
    block = block_size()
    if channels % block:
        w = w.reshape(-1, channels, *size, block).movedim(-1, 1)
    else:
        w = w.reshape(-1, channels // block, *size, block, block).movedim((-1, -2), (1, 3))
    return w.reshape(kernels, channels, *size)


@movement_op("ReorderInput", 1)
def reorder_input(x, *, channels_last=0):
    x = x.movedim(-1, 1) if channels_last else x
    return _blocked(F.pad(x, (0, 0) * (x.dim() - 2) + (0, -x.shape[1] % block_size())))


@movement_op("ReorderOutput", 1)
def reorder_output(x, *, channels=0, channels_last=0):
    y = _plain(x)[:, :channels]
    return y.movedim(1, -1) if channels_last else y


@nchwc_op("Conv", 1, weights=(1,))
def conv(
    x, w, b=None, sum=None, *, activation="", activation_params=None, auto_pad="NOTSET", dilations=None, group=1,
    kernel_shape=None, pads=None, strides=None,
):  # fmt: skip
    """activation(Conv(x, w, b) + sum)."""
    whole = group == 1 and x.shape[1] < block_size()
    return _blocked(microsoft_fused.fused_conv(
        x if whole else _plain(x), _plain_kernel(w), b, None if sum is None else _plain(sum), activation=activation,
        activation_params=activation_params, auto_pad=auto_pad, dilations=dilations, group=group, pads=pads,
        strides=strides,
    ))  # fmt: skip


@movement_op("MaxPool", 1)
def max_pool(
    x, *, auto_pad="NOTSET", ceil_mode=0, dilations=None, kernel_shape, pads=None, storage_order=0, strides=None
):
    return _blocked(pooling.max_pool(
        _plain(x), auto_pad=auto_pad, ceil_mode=ceil_mode, dilations=dilations, kernel_shape=kernel_shape, pads=pads,
        strides=strides,
    ))  # fmt: skip


@nchwc_op("AveragePool", 1)
def average_pool(
    x, *, auto_pad="NOTSET", ceil_mode=0, count_include_pad=0, dilations=None, kernel_shape, pads=None, strides=None
):
    return _blocked(_average_pool(
        _plain(x), auto_pad=auto_pad, ceil_mode=ceil_mode, count_include_pad=count_include_pad, dilations=dilations,
        kernel_shape=kernel_shape, pads=pads, strides=strides,
    ))  # fmt: skip


@nchwc_op("GlobalAveragePool", 1)
def global_average_pool(x):
    return _blocked(_global_average_pool(_plain(x)))


@movement_op("GlobalMaxPool", 1)
def global_max_pool(x):
    return _blocked(pooling.global_max_pool(_plain(x)))


@nchwc_op("Upsample", 1)
def upsample(x, *, coordinate_transformation_mode="asymmetric", mode="nearest", scales=None):
    x = _plain(x)
    how = resize.resize(
        x, None, scales, mode=mode, coordinate_transformation_mode=coordinate_transformation_mode,
        nearest_mode="floor",
    )  # fmt: skip
    return _blocked(how(x))
