"""Reductions over axes, and running sums and products along one."""

from __future__ import annotations

from collections.abc import Callable

import torch

from onnx_obd.mirror.axes import along, reduced
from onnx_obd.mirror.registry import Ints, op
from onnx_obd.mirror.second import movement, multilinear, reduction


def reducing(name: str, axes_attribute: tuple[int, ...], axes_input: tuple[int, ...], second=reduction) -> Callable:
    """Register ``kernel(x, dims, keepdim)`` for the versions where the axes are an attribute, an input."""

    def register(kernel: Callable) -> Callable:
        def with_attribute(data, *, axes=None, keepdims=1):
            return reduce(data, axes, keepdims)

        def with_input(data, axes: Ints = None, *, keepdims=1, noop_with_empty_axes=0):
            return reduce(data, axes, keepdims, noop_with_empty_axes)

        def reduce(data, axes, keepdims, noop_with_empty_axes=0):
            dims = axes or (() if noop_with_empty_axes else tuple(range(data.dim())))
            if not dims:  # torch takes () for all axes; over a new axis of one element it is the rest of the operator
                return kernel(data.unsqueeze(-1), (-1,), False)
            return kernel(data, dims, bool(keepdims))

        op(name, *axes_attribute, second=second, axes=reduced)(with_attribute)
        op(name, *axes_input, second=second, axes=reduced)(with_input)
        return kernel

    return register


def _through_float(kernel: Callable, x: torch.Tensor) -> torch.Tensor:
    """Integers through float64 and back; floats as they are."""
    return kernel(x) if x.is_floating_point() else kernel(x.double()).to(x.dtype)


@reducing("ReduceSum", (1, 11), (13,), second=movement)
def reduce_sum(x, dims, keepdim):
    return x.sum(dims, keepdim=keepdim, dtype=x.dtype)


@reducing("ReduceMean", (1, 11, 13), (18,))
def reduce_mean(x, dims, keepdim):
    return _through_float(lambda v: v.mean(dims, keepdim=keepdim), x)


@reducing("ReduceMax", (1, 11, 12, 13), (18, 20))
def reduce_max(x, dims, keepdim):
    return _extreme(torch.amax, x, dims, keepdim, largest=False)


@reducing("ReduceMin", (1, 11, 12, 13), (18, 20))
def reduce_min(x, dims, keepdim):
    return _extreme(torch.amin, x, dims, keepdim, largest=True)


def _extreme(find, x, dims, keepdim, largest):
    """Of no elements: the ``largest`` or smallest value of the type."""
    if all(x.shape[dim] for dim in dims):
        return find(x, dims, keepdim=keepdim)
    shape = x.sum(dims, keepdim=keepdim).shape
    if x.is_floating_point():
        return x.new_full(shape, torch.inf if largest else -torch.inf)
    if x.dtype == torch.bool:
        return x.new_full(shape, largest)
    return x.new_full(shape, torch.iinfo(x.dtype).max if largest else torch.iinfo(x.dtype).min)


@reducing("ReduceProd", (1, 11, 13), (18,))
def reduce_prod(x, dims, keepdim):
    for dim in sorted((dim % x.dim() for dim in dims), reverse=True):
        x = x.prod(dim, keepdim=keepdim, dtype=x.dtype)
    return x


@reducing("ReduceL1", (1, 11, 13), (18,))
def reduce_l1(x, dims, keepdim):
    return x.abs().sum(dims, keepdim=keepdim, dtype=x.dtype)


@reducing("ReduceL2", (1, 11, 13), (18,))
def reduce_l2(x, dims, keepdim):
    return _through_float(lambda v: torch.linalg.vector_norm(v, dim=dims, keepdim=keepdim), x)


@reducing("ReduceSumSquare", (1, 11, 13), (18,))
def reduce_sum_square(x, dims, keepdim):
    return x.square().sum(dims, keepdim=keepdim, dtype=x.dtype)


@reducing("ReduceLogSum", (1, 11, 13), (18, 28))
def reduce_log_sum(x, dims, keepdim):
    return _through_float(lambda v: v.sum(dims, keepdim=keepdim).log(), x)


@reducing("ReduceLogSumExp", (1, 11, 13), (18, 28))
def reduce_log_sum_exp(x, dims, keepdim):
    return _through_float(lambda v: v.logsumexp(dims, keepdim=keepdim), x)


@op("CumSum", 11, 14, second=movement, axes=along("axis"))
def cumsum(x, axis: Ints, *, exclusive=0, reverse=0):
    return _running(torch.cumsum, x, axis[0], exclusive, reverse, 0)


@op("CumProd", 26, second=multilinear, axes=along("axis"))
def cumprod(x, axis: Ints, *, exclusive=0, reverse=0):
    return _running(torch.cumprod, x, axis[0], exclusive, reverse, 1)


def _running(kernel, x, axis, exclusive, reverse, neutral):
    x = x.flip(axis) if reverse else x
    y = kernel(x, axis, dtype=x.dtype)
    if exclusive:  # each element without itself: shifted by one, the neutral element in front
        y = torch.cat([torch.full_like(y.narrow(axis, 0, 1), neutral), y.narrow(axis, 0, y.shape[axis] - 1)], axis)
    return y.flip(axis) if reverse else y
