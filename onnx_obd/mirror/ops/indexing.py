"""Elements picked and placed by index."""

from __future__ import annotations

from typing import Any

import torch

from onnx_obd.mirror.axes import MOVED, Node, ShrunkNode, along, names, position_kept, renumbered
from onnx_obd.mirror.registry import Ints, family
from onnx_obd.mirror.second import Call, movement, multilinear

movement_op = family(second=movement)


# ---- slices


def _spelled_cuts(node: ShrunkNode) -> dict[str, Any]:
    """Where the cuts lie among the indices that are left."""
    starts, ends, axes, steps = map(node.get, ("starts", "ends", "axes", "steps"))
    new: dict[str, list[int]] = {"starts": [], "ends": []}
    for position, cuts in enumerate(zip(starts, ends, strict=True)):
        kept = node.kept_inputs[0][position if axes is None else axes[position]]
        back = steps is not None and steps[position] < 0  # then a cut lies behind its index, not before
        for name, cut in zip(("starts", "ends"), cuts, strict=True):
            behind = back and cut != -1 and cut < len(kept)
            new[name].append(position_kept(kept, cut + 1) - 1 if behind else position_kept(kept, cut))
    return new


@movement_op("Slice", 10, 11, 13, axes=MOVED, spelled=_spelled_cuts)
def slice_(x, starts: Ints, ends: Ints, axes: Ints | None = None, steps: Ints | None = None):
    cut, backward = [slice(None)] * x.dim(), []
    for position, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis = position if axes is None else axes[position] % x.dim()
        step = 1 if steps is None else steps[position]
        cut[axis] = _cut(x.shape[axis], start, end, step)
        if step < 0:
            backward.append(axis)
    x = x[tuple(cut)]
    return x.flip(backward) if backward else x


@movement_op("Slice", 1, axes=MOVED, spelled=_spelled_cuts)
def slice_1(x, *, starts, ends, axes=None):
    return slice_(x, starts, ends, axes)


@movement_op("DynamicSlice", 1)
def dynamic_slice(x, starts: Ints, ends: Ints, axes: Ints | None = None):
    """The experiment that became Slice-10."""
    return slice_(x, starts, ends, axes)


def _cut(length: int, start: int, end: int, step: int) -> slice:
    """The elements that ONNX picks from an axis, in ascending order."""
    start += length if start < 0 else 0
    end += length if end < 0 else 0
    if step > 0:
        return slice(min(max(start, 0), length), min(max(end, 0), length), step)
    picked = range(min(max(start, 0), length - 1), max(end, -1), step)
    return slice(picked[-1], picked[0] + 1, -step) if picked else slice(0, 0)


# ---- gathering


def _from_start(index: torch.Tensor, length: int) -> torch.Tensor:
    """Indices counted from the end, which are negative, counted from the start."""
    return torch.where(index < 0, index + length, index).long()


def _gather_axes(node: Node) -> str:
    """Constant indices are followed one by one; those that depend on data may pick anything."""
    data, axis = names(node.rank), node.get("axis") % node.rank
    if node.rank == 2 and axis == 0:
        data[1] = "embedding"
    index = [f"index{i}" for i in range(node.inputs[1].dim())]
    outer = " ".join(index), " ".join([*data[:axis], *index, *data[axis + 1 :]])
    if node.constant[1]:
        return f"{MOVED}, {outer[0]} -> {outer[1]}" if index else MOVED
    return f"{' '.join([*data[:axis], '_', *data[axis + 1 :]])}, {outer[0]} -> {outer[1]}"


def _spelled_indices(node: ShrunkNode) -> dict[str, Any]:
    if not node.constant[1]:
        return {}
    indices = node.inputs[1].numpy()
    for axis, kept in enumerate(node.kept_inputs[1]):
        indices = indices.compress(kept, axis)
    return {"indices": renumbered(node.kept_inputs[0][node.get("axis") % node.rank], indices.reshape(-1).tolist())}


@movement_op("Gather", 1, 11, 13, weights=(0,), axes=_gather_axes, spelled=_spelled_indices)
def gather(x, indices, *, axis=0):
    if indices.dim() == 0 and indices.device.type == "cpu":  # elsewhere reading the number would stall the device
        return x.select(axis, int(indices))
    axis %= x.dim()
    index = _from_start(indices, x.shape[axis])
    return x.index_select(axis, index.reshape(-1)).reshape(x.shape[:axis] + index.shape + x.shape[axis + 1 :])


@movement_op(
    "GatherElements", 11, 13,
    axes=lambda node: f"{along('axis')(node)}, {along('axis')(node)} -> {along('axis')(node)}",
)  # fmt: skip
def gather_elements(x, indices, *, axis=0):
    return x.gather(axis, _from_start(indices, x.shape[axis]))


def gather_nd_axes(node: Node) -> str:
    data, depth, batch = names(node.rank), node.inputs[1].shape[-1], node.get("batch_dims") or 0
    own, rest = data[:batch], data[batch + depth :]
    terms = [*own, *["_"] * depth, *rest], [*own, "_*"], [*own, *["_"] * (node.inputs[1].dim() - 1 - batch), *rest]
    return "{}, {} -> {}".format(*map(" ".join, terms))


@movement_op("GatherND", 11, 12, 13, axes=gather_nd_axes)
def gather_nd(x, indices, *, batch_dims=0):
    """The last axis of ``indices`` holds coordinates in the axes of x after the batch axes."""
    batch = [
        torch.arange(length, device=x.device).reshape(-1, *[1] * (indices.dim() - 2 - axis))
        for axis, length in enumerate(x.shape[:batch_dims])
    ]
    return x[(*batch, *indices.long().unbind(-1))]


# ---- scattering

_REDUCE = {"mul": "prod", "max": "amax", "min": "amin"}


def _scatter_second(call: Call, h):
    """A product passes the square of the other factors back, all else moves elements."""
    return (multilinear if call.attributes.get("reduction") == "mul" else movement)(call, h)


scatter_op = family(second=_scatter_second)


@scatter_op("ScatterElements", 11, 13, 16, 18, axes=along("axis"))
def scatter_elements(x, indices, updates, *, axis=0, reduction="none"):
    index = _from_start(indices, x.shape[axis])
    if reduction == "none":
        return x.scatter(axis, index, updates)
    if reduction == "add":
        return x.scatter_add(axis, index, updates)
    return x.scatter_reduce(axis, index, updates, _REDUCE[reduction])


@movement_op("Scatter", 9, axes=along("axis"))
def scatter(x, indices, updates, *, axis=0):
    return scatter_elements(x, indices, updates, axis=axis)


def _scatter_nd_axes(node: Node) -> str:
    depth = node.inputs[1].shape[-1]
    rest = " ".join(names(node.rank - depth))
    return f"{'_ ' * depth}{rest}, _*, _* {rest} -> {'_ ' * depth}{rest}"


@scatter_op("ScatterND", 11, 13, 16, 18, axes=_scatter_nd_axes)
def scatter_nd(x, indices, updates, *, reduction="none"):
    """The last axis of ``indices`` holds coordinates in the first axes of x, where slices of ``updates`` go."""
    depth = indices.shape[-1]
    if reduction in ("none", "add"):
        return x.index_put(indices.long().unbind(-1), updates, accumulate=reduction == "add")
    row = torch.zeros_like(indices[..., 0], dtype=torch.int64)
    for axis in range(depth):
        row = row * x.shape[axis] + _from_start(indices[..., axis], x.shape[axis])
    rows = x.flatten(0, depth - 1).flatten(1) if x.dim() > depth else x.reshape(-1, 1)
    row = row.reshape(-1, 1).expand(-1, rows.shape[1])
    return rows.scatter_reduce(0, row, updates.reshape(row.shape), _REDUCE[reduction]).reshape(x.shape)


def _tensor_scatter_axes(node: Node) -> str:
    own = along("axis")(node)
    return f"{own}, {own}, a0 -> {own}"


@movement_op("TensorScatter", 24, axes=_tensor_scatter_axes)
def tensor_scatter(past_cache, update, write_indices=None, *, axis=-2, mode="linear"):
    axis %= past_cache.dim()
    steps = torch.arange(update.shape[axis], device=update.device)
    index = steps[None] if write_indices is None else write_indices[:, None] + steps
    if mode == "circular":
        index = index % past_cache.shape[axis]
    shape = [1] * past_cache.dim()
    shape[0], shape[axis] = index.shape
    return past_cache.scatter(axis, index.long().reshape(shape).expand(update.shape), update)


# ---- chosen by value


def _compress_axes(node: Node) -> str:
    return "_*" if node.get("axis") is None else f"{along('axis')(node)}, _ -> {along('axis')(node)}"


@movement_op("Compress", 9, 11, 28, data_dependent_shape=True, axes=_compress_axes)
def compress(x, condition, *, axis=None):
    index = condition.nonzero().squeeze(1)
    return x.reshape(-1)[index] if axis is None else x.index_select(axis, index)


@movement_op("NonZero", 9, 13, differentiable=False, data_dependent_shape=True, axes="_*")
def nonzero(x):
    return x.reshape(x.shape or (1,)).nonzero().mT


@movement_op("Unique", 11, 28, data_dependent_shape=True)
def unique(x, *, axis=None, sorted=1):
    """The distinct slices along an axis (elements if there is none), where each occurs first, which of them each
    slice is, and how often each occurs."""
    if axis is None:
        x, axis = x.reshape(-1), 0
    _, inverse, counts = x.unique(dim=axis, return_inverse=True, return_counts=True)
    position = torch.arange(len(inverse), device=x.device)
    first = torch.full_like(counts, len(inverse)).scatter_reduce(0, inverse, position, "amin")
    if not sorted:
        order = first.argsort()
        inverse, first, counts = order.argsort()[inverse], first[order], counts[order]
    return x.index_select(axis, first), first, inverse, counts


@movement_op("TopK", 11, 24, axes=along("axis"))
def top_k(x, k: Ints, *, axis=-1, largest=1, sorted=1):
    x, k = x.movedim(axis, -1), int(k[0])
    if x.shape[-1] > _SORTED_WHOLE and 0 < k < x.shape[-1]:
        index = _best(x, k, bool(largest))
        values = x.gather(-1, index)
        order = values.sort(dim=-1, descending=bool(largest), stable=True).indices
        values, index = values.gather(-1, order), index.gather(-1, order)
    else:
        values, index = x.sort(dim=-1, descending=bool(largest), stable=True)
        values, index = values[..., :k], index[..., :k]
    return values.movedim(-1, axis), index.movedim(-1, axis)


_SORTED_WHOLE = 1024
"""Axes up to this length are sorted whole, which is then faster than looking for the k best first."""


def _best(x: torch.Tensor, k: int, largest: bool) -> torch.Tensor:
    """Ascending indices of the k best along the last axis; of equal ones the first, as torch.topk need not choose."""
    last = x.topk(k, -1, largest).values[..., -1:]
    better = x > last if largest else x < last
    tied = x == last
    room = k - better.sum(-1, keepdim=True)
    chosen = better | (tied & (tied.cumsum(-1) <= room))
    size = x.shape[-1]
    return torch.where(chosen, torch.arange(size, device=x.device), size).topk(k, -1, largest=False).values


@movement_op("TopK", 10, axes=along("axis"))
def top_k_10(x, k: Ints, *, axis=-1):
    return top_k(x, k, axis=axis)


@movement_op("TopK", 1, axes=along("axis"))
def top_k_1(x, *, k, axis=-1):
    return top_k(x, (k,), axis=axis)
