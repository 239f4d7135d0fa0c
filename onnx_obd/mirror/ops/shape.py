"""Tensors rearranged: reshaped, transposed, repeated, joined and taken apart."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from onnx_obd.mirror.axes import MOVED, Node, ShrunkNode, along, names, spelled_shape
from onnx_obd.mirror.registry import Floats, Ints, OutputCount, family
from onnx_obd.mirror.second import movement

movement_op = family(second=movement)
shape_op = family(shape_only=True, differentiable=False)


@shape_op("Shape", 1, 13, 15, 19, 21, 23, 24, 25)
def shape(x, *, start=0, end=None):
    return torch.tensor(x.shape[start:end], dtype=torch.int64, device=getattr(x, "device", None))


@shape_op("Size", 1, 13, 19, 21, 23, 24, 25)
def size(x):
    return torch.tensor(math.prod(x.shape), dtype=torch.int64, device=getattr(x, "device", None))


# ---- the same elements in another shape


@movement_op("Reshape", 5, 13, 14, 19, 21, 23, 24, 25, axes=MOVED, spelled=spelled_shape("shape"))
def reshape(x, shape: Ints, *, allowzero=0):
    if 0 in shape and not allowzero:
        shape = tuple(x.shape[axis] if dim == 0 else dim for axis, dim in enumerate(shape))
    return x.reshape(shape)


@movement_op("Reshape", 1, axes=MOVED, spelled=spelled_shape("shape"))
def reshape_1(x, *, shape=()):
    return reshape(x, shape)


@movement_op("Flatten", 1, 9, 11, 13, 21, 23, 24, 25, axes=MOVED)
def flatten(x, *, axis=1):
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@movement_op("Squeeze", 13, 21, 23, 24, 25, axes=MOVED)
def squeeze(x, axes: Ints | None = None):
    return x.squeeze(axes) if axes else x.squeeze()


@movement_op("Squeeze", 1, 11, axes=MOVED)
def squeeze_1(x, *, axes=None):
    return squeeze(x, axes)


@movement_op("Unsqueeze", 13, 21, 23, 24, 25, axes=MOVED)
def unsqueeze(x, axes: Ints):
    rank = x.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):  # axes of the result, so lower ones have to be there first
        x = x.unsqueeze(axis)
    return x


@movement_op("Unsqueeze", 1, 11, axes=MOVED)
def unsqueeze_1(x, *, axes):
    return unsqueeze(x, axes)


# ---- moved and repeated


@movement_op("Transpose", 1, 13, 21, 23, 24, 25, axes=MOVED)
def transpose(x, *, perm=None):
    return x.permute(perm if perm is not None else tuple(reversed(range(x.dim()))))


def _expand_axes(node: Node) -> str:
    """The axes that it repeats are made by it."""
    out = names(node.outputs[0].dim())
    own = out[len(out) - node.rank :]
    repeated = [length == 1 for length in node.inputs[0].shape]
    return f"{' '.join('_' if one else name for name, one in zip(own, repeated, strict=True))} -> {' '.join(out)}"


@movement_op("Expand", 8, 13, axes=_expand_axes, spelled=spelled_shape("shape"))
def expand(x, shape: Ints):
    """Numpy broadcasting of x and an imagined tensor of that shape."""
    rank = max(x.dim(), len(shape))
    own = (1,) * (rank - x.dim()) + tuple(x.shape)
    asked = (1,) * (rank - len(shape)) + tuple(shape)
    return x.expand([dim if other == 1 else other for dim, other in zip(own, asked, strict=True)])


def _tile_axes(node: Node) -> str:
    """Axes of length 1 that it repeats are made by it."""
    repeats, shape = node.get("repeats"), node.inputs[0].shape
    return MOVED if any(n > 1 < r for n, r in zip(shape, repeats, strict=True)) else _expand_axes(node)


def _spelled_repeats(node: ShrunkNode) -> dict[str, Any]:
    lengths = zip(node.inputs[0].shape, node.get("repeats"), node.output_shape(), strict=True)
    return {"repeats": [new if old == 1 else repeated for old, repeated, new in lengths]}


@movement_op("Tile", 6, 13, axes=_tile_axes, spelled=_spelled_repeats)
def tile(x, repeats: Ints):
    return x.repeat(repeats)


@movement_op("Tile", 1, axes=MOVED)
def tile_1(x, tiles: Floats, axis: Floats):
    repeats = [1] * x.dim()
    repeats[int(axis[0])] = int(tiles[0])
    return x.repeat(repeats)


@movement_op("Trilu", 14, axes="... _ _")
def trilu(x, k: Ints | None = None, *, upper=1):
    diagonal = k[0] if k else 0
    return x.triu(diagonal) if upper else x.tril(diagonal)


@movement_op("ReverseSequence", 10, 28, axes=along("time_axis"))
def reverse_sequence(x, sequence_lens, *, batch_axis=1, time_axis=0):
    """The first sequence_lens[b] steps of each batch item b in reverse order, the others as they are."""
    x = x.movedim((time_axis, batch_axis), (0, 1))
    steps = torch.arange(x.shape[0], device=x.device)[:, None]
    source = torch.where(steps < sequence_lens, sequence_lens - 1 - steps, steps)
    return x[source, torch.arange(x.shape[1], device=x.device)].movedim((0, 1), (time_axis, batch_axis))


@movement_op("DepthToSpace", 1, 11, 13, 28, axes=MOVED)
def depth_to_space(x, *, blocksize, mode="DCR"):
    if mode == "CRD":
        return F.pixel_shuffle(x, blocksize)
    n, c, h, w = x.shape
    blocks = x.reshape(n, blocksize, blocksize, c // blocksize**2, h, w)
    return blocks.permute(0, 3, 4, 1, 5, 2).reshape(n, c // blocksize**2, h * blocksize, w * blocksize)


@movement_op("SpaceToDepth", 1, 13, 28, axes=MOVED)
def space_to_depth(x, *, blocksize, mode="DCR"):
    if mode == "CRD":
        return F.pixel_unshuffle(x, blocksize)
    n, c, h, w = x.shape
    h, w = h // blocksize, w // blocksize
    blocks = x.reshape(n, c, h, blocksize, w, blocksize)
    return blocks.permute(0, 3, 5, 1, 2, 4).reshape(n, c * blocksize**2, h, w)


# ---- joined and taken apart


def concat_axes(node: Node) -> str:
    parts = [f"part{i}" for i in range(len(node.inputs))]
    whole = f"[{' + '.join(parts)}]"
    return f"{', '.join(_with(node, part) for part in parts)} -> {_with(node, whole)}"


def _split_axes(node: Node) -> str:
    parts = [f"part{i}" for i in range(len(node.outputs))]
    whole = f"[{' + '.join(parts)}]"
    return f"{_with(node, whole)} -> {', '.join(_with(node, part) for part in parts)}"


def _with(node: Node, along: str) -> str:
    """The axes of a value, the one the node joins or divides written as ``along``."""
    own, axis = names(node.rank), node.get("axis") % node.rank
    return " ".join([*own[:axis], along, *own[axis + 1 :]])


def _spelled_parts(parameter: str) -> Callable[[ShrunkNode], dict[str, Any]]:
    """The sizes of the parts; left out where they are to be equal and are."""

    def spelled(node: ShrunkNode) -> dict[str, Any]:
        axis = node.get("axis") % node.rank
        sizes = [node.output_shape(i)[axis] for i in range(len(node.outputs))]
        if node.get(parameter) is None and len(set(sizes)) == 1:
            return {}
        return {parameter: sizes} | ({"num_outputs": None} if node.get("num_outputs") is not None else {})

    return spelled


@movement_op("Concat", 4, 11, 13, axes=concat_axes)
def concat(*inputs, axis):
    return torch.cat(inputs, axis)


@movement_op("Concat", 1, axes=concat_axes)
def concat_1(*inputs, axis=1):
    return torch.cat(inputs, axis)


@movement_op("Split", 18, axes=_split_axes, spelled=_spelled_parts("split"))
def split(x, split: Ints | None = None, *, axis=0, num_outputs=None, outputs: OutputCount = 1):
    """Parts of the sizes ``split``, or equal parts, the last of which may be smaller."""
    if split is None:
        length = x.shape[axis]
        part = -(-length // (num_outputs or outputs))
        split = [min(part, max(0, length - start * part)) for start in range(num_outputs or outputs)]
    return x.split([int(size) for size in split], axis)


@movement_op("Split", 13, axes=_split_axes, spelled=_spelled_parts("sizes"))
def split_13(x, sizes: Ints | None = None, *, axis=0, outputs: OutputCount = 1):
    return split(x, sizes, axis=axis, outputs=outputs)


@movement_op("Split", 2, 11, axes=_split_axes, spelled=_spelled_parts("split"))
def split_2(x, *, axis=0, split=None, outputs: OutputCount = 1):
    return split_13(x, split, axis=axis, outputs=outputs)


@movement_op("Split", 1, axes=_split_axes, spelled=_spelled_parts("split"))
def split_1(x, sizes: Floats | None = None, *, axis=0, split=None, outputs: OutputCount = 1):
    return split_13(x, split if sizes is None else sizes, axis=axis, outputs=outputs)
