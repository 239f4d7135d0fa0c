"""com.microsoft: operators that ONNX took over later, or nearly, and some on matrices."""

from __future__ import annotations

import torch

from onnx_obd.mirror.axes import MOVED
from onnx_obd.mirror.composite import composite, part
from onnx_obd.mirror.ops import constant, indexing, pad, shape, vision
from onnx_obd.mirror.registry import Floats, Ints, family
from onnx_obd.mirror.second import Call, movement

microsoft_op = family(domain="com.microsoft", second=composite)
movement_op = family(domain="com.microsoft", second=movement)

_grid_sample = part(vision.grid_sample)


@movement_op("ExpandDims", 1, axes=MOVED)
def expand_dims(x, axis: Ints):
    return x.unsqueeze(axis[0])


@movement_op("GatherND", 1, axes=indexing.gather_nd_axes)
def gather_nd(data, indices):
    return indexing.gather_nd(data, indices)


@movement_op("Pad", 1, axes=pad.pad_axes, spelled=pad.spelled_pads)
def pad_(data, pads: Ints, value: Floats | None = None, *, mode="constant"):
    return pad.pad(data, pads, value, mode=mode)


@movement_op("Range", 1, differentiable=False, data_dependent_shape=True)
def range_(start, limit, delta=None):
    return constant.range_(start, limit, torch.ones_like(start) if delta is None else delta)


@movement_op("Trilu", 1, axes="... _ _")
def trilu(x, k: Ints | None = None, *, upper=1):
    return shape.trilu(x, k, upper=upper)


@movement_op("Unique", 1, data_dependent_shape=True)
def unique(x):
    """The distinct elements in the order they occur, which of them each element is, and how often each occurs."""
    values, _, inverse, counts = indexing.unique(x, sorted=0)
    return values, inverse, counts


@movement_op("UnfoldTensor", 1)
def unfold_tensor(input, *, dim=-1, size, step=1):
    return input.unfold(dim, size, step)


@microsoft_op("GridSample", 1, axes=vision.GRID_SAMPLE_AXES)
def grid_sample(x, grid, *, align_corners=0, mode="bilinear", padding_mode="zeros"):
    return _grid_sample(x, grid, align_corners=align_corners, mode=mode, padding_mode=padding_mode)


def _inverse_second(call: Call, h):
    """y = x^-1: dy_ij / dx_kl = -y_ik y_lj."""
    square = call.outputs[0].square()
    return (square.mT @ h[0] @ square.mT,)


@microsoft_op("Inverse", 1, second=_inverse_second, axes="... _ _")
def inverse(x):
    return torch.linalg.inv(x)


@microsoft_op("CDist", 1, axes="i _, j _ -> i j")
def cdist(a, b, *, metric="sqeuclidean"):
    """Distances between the rows of a and those of b."""
    squares = (a.unsqueeze(-2) - b.unsqueeze(-3)).square().sum(-1)
    return squares.sqrt() if metric == "euclidean" else squares
