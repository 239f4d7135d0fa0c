"""Sliding windows: the geometry that convolutions and poolings share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Sizes = tuple[int, ...]


def geometry(
    size: Sequence[int],
    kernel: Sequence[int],
    auto_pad: str,
    pads: Sequence[int] | None,
    strides: Sequence[int] | None,
    dilations: Sequence[int] | None,
) -> tuple[Sizes, Sizes, Sizes, Sizes]:
    """Begin pads, end pads, strides and dilations, one number for each spatial axis of length ``size``."""
    rank = len(kernel)
    strides, dilations = strides or (1,) * rank, dilations or (1,) * rank
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        total = [
            max(0, (-(-n // s) - 1) * s + (k - 1) * d + 1 - n)
            for n, k, s, d in zip(size, kernel, strides, dilations, strict=True)
        ]
        return *split_pads(total, auto_pad == "SAME_UPPER"), strides, dilations
    if auto_pad == "VALID" or not pads:
        return (0,) * rank, (0,) * rank, strides, dilations
    return pads[:rank], pads[rank:], strides, dilations


def conv_geometry(x: Tensor, w: Tensor, attributes: Mapping[str, Any]) -> tuple[Sizes, Sizes, Sizes, Sizes]:
    """``geometry`` of a convolution node."""
    keys = ("pads", "strides", "dilations")
    return geometry(x.shape[2:], w.shape[2:], attributes.get("auto_pad", "NOTSET"), *map(attributes.get, keys))


def split_pads(total: Sequence[int], upper: bool) -> tuple[Sizes, Sizes]:
    """Half of each total at either end, the odd one at the end if ``upper``, else at the beginning."""
    less, more = tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
    return (less, more) if upper else (more, less)


def torch_pads(begin: Sequence[int], end: Sequence[int]) -> list[int]:
    """In the order of ``torch.nn.functional.pad``: last axis first."""
    return [p for pair in zip(reversed(begin), reversed(end), strict=True) for p in pair]


def windows(x: Tensor, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> Tensor:
    """Every window of x [N, C, *size] that fits: a view [N, C, *output, *kernel]."""
    for axis, (k, s, d) in enumerate(zip(kernel, strides, dilations, strict=True), start=2):
        x = x.unfold(axis, (k - 1) * d + 1, s)[..., ::d]
    return x


def channels_last(x: Tensor) -> Tensor:
    """Images x [N, C, H, W] in the memory layout in which torch's CPU kernels treat all channels of a place at once.

    Shape and values are the same. (Measured: pooling is ten times as fast.) Others than images on a CPU as they are.
    """
    if x.dim() != 4 or x.device.type != "cpu":
        return x
    n, c, h, w = x.shape
    if min(c, h, w) > 1:
        return x.contiguous(memory_format=torch.channels_last)
    # The stride of an axis of length 1 is anybody's guess, but torch judges the layout by it too.
    return x.permute(0, 2, 3, 1).flatten().view(n, h, w, c).permute(0, 3, 1, 2)


def positions(kernel: Sequence[int], output: Sequence[int], strides, dilations, size, device) -> Tensor:
    """Where window offset k of window o lies in a flattened image of ``size``: [prod(kernel), prod(output)]."""
    index = torch.zeros(1, 1, dtype=torch.int64, device=device)
    for k, o, s, d, n in zip(kernel, output, strides, dilations, size, strict=True):
        along = torch.arange(k, device=device)[:, None] * d + torch.arange(o, device=device) * s
        index = (index[:, None, :, None] * n + along[None, :, None, :]).flatten(2, 3).flatten(0, 1)
    return index


def bilinear(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Images x [N, C, H, W] read at real positions [N, P] (in pixels; zero outside): [N, C, P]."""
    height, width = x.shape[2:]
    flat, y = x.flatten(2), 0
    top, left = rows.detach().floor(), columns.detach().floor()
    below, beyond = rows - top, columns - left
    for i, vertical in ((top, 1 - below), (top + 1, below)):
        for j, horizontal in ((left, 1 - beyond), (left + 1, beyond)):
            inside = (i >= 0) & (i < height) & (j >= 0) & (j < width)
            index = (i.clamp(0, height - 1) * width + j.clamp(0, width - 1)).long()
            pixels = flat.gather(2, index.unsqueeze(1).expand(-1, flat.shape[1], -1))
            y = y + pixels * (vertical * horizontal * inside).unsqueeze(1)
    return y
