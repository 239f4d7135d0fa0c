"""Padding and cropping."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from onnx_obd.mirror.axes import Node, ShrunkNode, names
from onnx_obd.mirror.registry import Floats, Ints, family
from onnx_obd.mirror.second import movement
from onnx_obd.mirror.values import is_float

movement_op = family(second=movement)

_TORCH_MODE = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}


def _pads(node: Node) -> tuple[list[int], list[int]]:
    """What is added before and after each axis."""
    pads, axes = node.get("pads") or node.get("paddings"), node.get("axes")
    axes = list(range(node.rank)) if axes is None else [axis % node.rank for axis in axes]
    before, after = [0] * node.rank, [0] * node.rank
    for position, axis in enumerate(axes):
        before[axis], after[axis] = pads[position], pads[position + len(axes)]
    return before, after


def pad_axes(node: Node) -> str:
    """Indices filled with a constant are made by the node."""
    own, out = names(node.rank), []
    for position, (before, after) in enumerate(zip(*_pads(node), strict=True)):
        name = own[position]
        if not before and not after:
            out.append(name)
        elif node.get("mode") == "constant" and before >= 0 and after >= 0:
            out.append(f"[{name}before={before} + {name} + {name}after={after}]")
        else:
            out.append("_")
            own[position] = "_"
    return f"{' '.join(own)} -> {' '.join(out)}"


def spelled_pads(node: ShrunkNode) -> dict[str, Any]:
    before, after, axes = *_pads(node), node.get("axes")
    kept = node.kept_outputs[0]
    left = [int(kept[axis][:n].sum()) if n > 0 else n for axis, n in enumerate(before)]
    right = [int(kept[axis][len(kept[axis]) - n :].sum()) if n > 0 else n for axis, n in enumerate(after)]
    order = range(node.rank) if axes is None else axes
    name = "paddings" if node.get("pads") is None else "pads"
    return {name: [side[axis] for side in (left, right) for axis in order]}


@movement_op("Pad", 18, 19, 21, 23, 24, 25, axes=pad_axes, spelled=spelled_pads)
def pad(x, pads: Ints, constant_value: Floats | None = None, axes: Ints | None = None, *, mode="constant"):
    """``pads``: what to add before each of ``axes``, then what to add after; negative numbers cut off."""
    axes = range(x.dim()) if axes is None else [axis % x.dim() for axis in axes]
    before, after = [0] * x.dim(), [0] * x.dim()
    for position, axis in enumerate(axes):
        before[axis], after[axis] = pads[position], pads[position + len(axes)]
    if mode == "constant":
        return _pad_constant(x, before, after, constant_value[0] if constant_value else 0)
    cut = _pad_constant(x, [min(n, 0) for n in before], [min(n, 0) for n in after], 0)
    return _pad_copies(cut, [max(n, 0) for n in before], [max(n, 0) for n in after], mode)


@movement_op("Pad", 11, 13, axes=pad_axes, spelled=spelled_pads)
def pad_11(x, pads: Ints, constant_value: Floats | None = None, *, mode="constant"):
    return pad(x, pads, constant_value, mode=mode)


@movement_op("Pad", 2, axes=pad_axes, spelled=spelled_pads)
def pad_2(x, *, pads, mode="constant", value=0.0):
    return pad(x, pads, (value,), mode=mode)


@movement_op("Pad", 1, axes=pad_axes, spelled=spelled_pads)
def pad_1(x, *, paddings, mode="constant", value=0.0):
    return pad(x, paddings, (value,), mode=mode)


@movement_op("CenterCropPad", 18, axes="_*")
def center_crop_pad(x, shape: Ints, *, axes=None):
    axes = range(x.dim()) if axes is None else axes
    before, after = [0] * x.dim(), [0] * x.dim()
    for axis, length in zip(axes, shape, strict=True):
        missing = length - x.shape[axis]
        half = abs(missing) // 2
        before[axis] = half if missing > 0 else -half
        after[axis] = missing - before[axis]
    return _pad_constant(x, before, after, 0)


@movement_op("Crop", 1, axes="n c _*")
def crop(x, *, border, scale=None):
    """A withdrawn experiment. ``border``: what to cut off left, above, right and below; ``scale``: height and width
    of the result, which then take the place of the last two."""
    left, top, right, bottom = border
    height, width = scale or (x.shape[2] - top - bottom, x.shape[3] - left - right)
    return x[:, :, top : top + height, left : left + width]


def _pad_constant(x: torch.Tensor, before: Sequence[int], after: Sequence[int], value: float) -> torch.Tensor:
    if not any(before) and not any(after):
        return x
    return torch.constant_pad_nd(x, _torch_order(before, after), value)


def _torch_order(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """Torch lists the last axis first: before, after, before, after, ..."""
    return [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair]


def _pad_copies(x: torch.Tensor, before: Sequence[int], after: Sequence[int], mode: str) -> torch.Tensor:
    """Padding with copies of elements of x."""
    padded = [axis for axis in range(x.dim()) if before[axis] or after[axis]]
    if not padded:
        return x
    first = min(padded[0], 2)  # torch pads the last one to three axes, after one or two others
    spatial = x.dim() - first
    longest = {"reflect": -1, "wrap": 0}.get(mode)
    fits = longest is None or all(max(before[a], after[a]) <= x.shape[a] + longest for a in padded)
    if is_float(x) and first and 1 <= spatial <= 3 and fits:
        return F.pad(x, _torch_order(before[first:], after[first:]), _TORCH_MODE[mode])
    for axis in reversed(padded):
        x = x.index_select(axis, _copied(x.shape[axis], before[axis], after[axis], mode).to(x.device))
    return x


def _copied(length: int, before: int, after: int, mode: str) -> torch.Tensor:
    """The element of an axis of that length of which each element of the padded axis is a copy."""
    position = torch.arange(-before, length + after)
    if mode == "edge":
        return position.clamp(0, length - 1)
    if mode == "wrap":
        return position % length
    period = max(2 * (length - 1), 1)
    position = position % period
    return torch.minimum(position, period - position)
