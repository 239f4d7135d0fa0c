"""Convolutions over any number of spatial axes."""

from __future__ import annotations

import math
from functools import reduce

import torch
import torch.nn.functional as F

from onnx_obd.mirror.axes import Node
from onnx_obd.mirror.composite import composite, part
from onnx_obd.mirror.ops import onednn
from onnx_obd.mirror.ops.convolution_squares import conv_sample_squares
from onnx_obd.mirror.ops.linear import linear
from onnx_obd.mirror.ops.sliding import (
    bilinear,
    channels_last,
    conv_geometry,
    geometry,
    positions,
    split_pads,
    torch_pads,
    windows,
)
from onnx_obd.mirror.products import Product, row_bias, sliding_product
from onnx_obd.mirror.registry import Ints, OutputCount, Rounded, op
from onnx_obd.mirror.second import Call, movement, without_outputs

LARGE_IMAGES = 1 << 15
"""Elements from which the time to change the memory layout is well spent."""

_backward = torch.ops.aten.convolution_backward

CONV_AXES = "n (group c) _*, (group channel) c _*, (group channel), n (group channel) _* -> n (group channel) _*"
"""The fourth input is what the fused forms of Conv add to it."""

CONV_TRANSPOSE_AXES = "n (group c) _*, (group c) channel _*, (group channel) -> n (group channel) _*"


def _wanted(call: Call) -> list[bool]:
    """The output mask that ``convolution_backward`` takes: x, w, b."""
    return [*call.wanted, False][:3]


@without_outputs
def _conv_second(call: Call, h):
    """y is linear in each of x, w and b: one backward convolution with squared operands."""
    (x, w), attributes = call.inputs[:2], call.attributes
    begin, end, strides, dilations = conv_geometry(x, w, attributes)
    symmetric = begin == end
    padded = x.square() if symmetric else F.pad(x.square(), torch_pads(begin, end))
    padding = begin if symmetric else (0,) * len(begin)
    h_x, h_w, h_b = _backward(
        _laid_out(h[0], w), _laid_out(padded, w), w.square(), w.shape[:1], strides, padding, dilations, False,
        (0,) * len(begin), attributes.get("group", 1), _wanted(call),
    )  # fmt: skip
    if h_x is not None and not symmetric:
        h_x = F.pad(h_x, torch_pads([-p for p in begin], [-p for p in end]))
    return (h_x, h_w, h_b)[: len(call.inputs)]


def _laid_out(x, w):
    """x in the memory layout in which torch's CPU kernels convolve it fastest; shape and values are the same.

    Large images go channels last (measured: up to twice as fast, most for depthwise and for the early layers),
    unless the kernel, which torch lays out anew in every call, is larger still.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32 or x.dim() != 4:
        return x
    if w.numel() > x.numel():
        return x.contiguous()
    return channels_last(x) if x.numel() >= LARGE_IMAGES else x


def _by_channels(x):
    """Images with the channels last, if there are several or large ones: the layout of oneDNN's fastest kernels."""
    return channels_last(x) if len(x) > 1 or x.numel() >= LARGE_IMAGES else x


def _as_product(x, w, b, strides):
    """The convolution as one matrix product, where that is what it is; None elsewhere.

    So it is if there is one window, or if the windows lie side by side (the patches of a vision transformer).
    """
    kernel, rank = w.shape[2:], w.dim() - 2
    if x.shape[2:] == kernel:
        return linear(x.flatten(1), w.flatten(1), b).view(len(x), -1, *[1] * rank)
    if strides != kernel or math.prod(kernel) == 1:
        return None
    tiles = windows(x, kernel, kernel, (1,) * rank).movedim(1, 1 + rank)
    return linear(tiles.flatten(1 + rank), w.flatten(1), b).movedim(-1, 1)


SUMMED = 128
"""How many products onnxruntime's matrix kernel adds up before it adds their sum to the result."""


def _summed_in_blocks(x, w, b):
    """A convolution by windows of one element whose sums are rounded as onnxruntime rounds them, bit for bit.

    So what is quantised next falls on the same side of a tie; it takes up to twice as long as one product.
    """
    rows, matrix = x.movedim(1, -1).split(SUMMED, -1), w.flatten(1).split(SUMMED, 1)
    y = reduce(torch.Tensor.add_, map(onednn.linear, rows, matrix))
    return (y if b is None else y.add_(b)).movedim(-1, 1)


def conv_product(position, inputs, attributes) -> Product:
    x, w, b = (*inputs, None)[:3]
    group = attributes.get("group", 1)
    begin, end, strides, dilations = conv_geometry(x, w, attributes)
    unfolded = windows(F.pad(x, torch_pads(begin, end)), w.shape[2:], strides, dilations)
    return sliding_product(unfolded, group, lambda w: w.reshape(group, len(w) // group, -1), row_bias(2, b, group))


@op(
    "Conv", 1, 11, 22, second=_conv_second, sample_squares=conv_sample_squares, weights=(1,), axes=CONV_AXES,
    product=conv_product,
)  # fmt: skip
def conv(
    x, w, b=None, *, auto_pad="NOTSET", dilations=None, group=1, kernel_shape=None, pads=None, strides=None,
    rounded: Rounded = False,
):  # fmt: skip
    kernel = w.shape[2:]
    begin, end, strides, dilations = geometry(x.shape[2:], kernel, auto_pad, pads, strides, dilations)
    none = (0,) * len(begin)
    if begin != end:
        x, begin = F.pad(x, torch_pads(begin, end)), none
    plain = group == max(dilations) == 1 and not any(begin)
    if plain and (y := _as_product(x, w, b, strides)) is not None:
        return y
    if x.dim() == 4 and onednn.applies(x):
        x = _by_channels(x)
        if plain and math.prod(kernel) == 1:
            if rounded and len(w[0]) > SUMMED:
                return _summed_in_blocks(x[..., :: strides[0], :: strides[1]], w, b)
            if max(strides) == x.stride(1) == 1 and onednn.multiplies(x, len(w)):
                return onednn.linear(x.movedim(1, -1), w.flatten(1), b).movedim(-1, 1)
        small = math.prod(x.shape[2:]) * w.numel() < onednn.MANY_PRODUCTS * math.prod(strides)
        if small and len(x) == group == max(dilations) == 1:
            return torch._C._nn.thnn_conv2d(x, w, kernel, b, strides, begin)
        return onednn.convolution(x, w, b, strides, begin, dilations, group)
    return torch.convolution(_laid_out(x, w), w, b, strides, begin, dilations, False, none, group)


def _transposed_geometry(x, w, attributes):
    """Stride, padding, dilation and output padding for torch, and what to crop off the result (None if nothing).

    The uncropped output has s (n - 1) + d (k - 1) + 1 elements along an axis; ONNX crops ``pads`` and appends
    ``output_padding``. torch can do both only where the crop is symmetric and the padding less than a stride.
    """
    kernel, size, get = w.shape[2:], x.shape[2:], attributes.get
    rank = len(kernel)
    auto_pad, shape, extra = get("auto_pad", "NOTSET"), get("output_shape"), get("output_padding") or (0,) * rank
    begin, end, strides, dilations = geometry(size, kernel, "NOTSET", get("pads"), get("strides"), get("dilations"))
    full = [s * (n - 1) + d * (k - 1) + 1 for n, k, s, d in zip(size, kernel, strides, dilations, strict=True)]
    if shape or auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        target = shape[-rank:] if shape else [n * s for n, s in zip(size, strides, strict=True)]
        total = [max(0, f + e - t) for f, e, t in zip(full, extra, target, strict=True)]
        begin, end = split_pads(total, auto_pad == "SAME_UPPER")
        if shape:
            extra = [t - f + b + e for f, t, b, e in zip(full, target, begin, end, strict=True)]
    plain = begin == end and all(0 <= e < max(s, d) for e, s, d in zip(extra, strides, dilations, strict=True))
    if plain:
        return strides, begin, dilations, tuple(extra), None
    none = (0,) * rank
    crop = torch_pads([-p for p in begin], [e - p for e, p in zip(extra, end, strict=True)])
    return strides, none, dilations, none, crop


@without_outputs
def _conv_transpose_second(call: Call, h):
    """As for Conv, with the roles of the two directions exchanged."""
    x, w = call.inputs[:2]
    strides, padding, dilations, extra, crop = _transposed_geometry(x, w, call.attributes)
    h_full = h[0] if crop is None else F.pad(h[0], [-p for p in crop])
    want_x, want_w, want_b = _wanted(call)
    h_x, h_w, _ = _backward(
        h_full, x.square(), w.square(), None, strides, padding, dilations, True, extra,
        call.attributes.get("group", 1), [want_x, want_w, False],
    )  # fmt: skip
    h_b = h[0].sum((0, *range(2, x.dim()))) if want_b else None
    return (h_x, h_w, h_b)[: len(call.inputs)]


def conv_transpose_product(position, inputs, attributes) -> Product:
    """A convolution of x, spread out by the strides and padded, with the mirrored kernel."""
    x, w, b = (*inputs, None)[:3]
    strides, padding, dilations, extra, crop = _transposed_geometry(x, w, attributes)
    group, rank = attributes.get("group", 1), len(strides)
    spread = x.new_zeros(*x.shape[:2], *[s * (n - 1) + 1 for n, s in zip(x.shape[2:], strides, strict=True)])
    spread[(..., *[slice(None, None, s) for s in strides])] = x
    reach = [d * (k - 1) - p for k, d, p in zip(w.shape[2:], dilations, padding, strict=True)]
    padded = F.pad(spread, torch_pads(reach, [r + e for r, e in zip(reach, extra, strict=True)]))
    padded = padded if crop is None else F.pad(padded, crop)
    kernel = tuple(range(2, 2 + rank))

    def matrix(w):
        return w.flip(kernel).unflatten(0, (group, -1)).transpose(1, 2).flatten(2)

    return sliding_product(windows(padded, w.shape[2:], (1,) * rank, dilations), group, matrix, row_bias(2, b, group))


@op(
    "ConvTranspose", 1, 11, 22, second=_conv_transpose_second, weights=(1,), axes=CONV_TRANSPOSE_AXES,
    product=conv_transpose_product,
)  # fmt: skip
def conv_transpose(
    x, w, b=None, *, auto_pad="NOTSET", dilations=None, group=1, kernel_shape=None, output_padding=None,
    output_shape=None, pads=None, strides=None,
):  # fmt: skip
    attributes = {"auto_pad": auto_pad, "dilations": dilations, "output_padding": output_padding,
                  "output_shape": output_shape, "pads": pads, "strides": strides}  # fmt: skip
    strides, padding, dilations, extra, crop = _transposed_geometry(x, w, attributes)
    x = _by_channels(x) if onednn.applies(x) else x
    if crop is None:
        return torch.convolution(x, w, b, strides, padding, dilations, True, extra, group)
    y = F.pad(torch.convolution(x, w, None, strides, padding, dilations, True, extra, group), crop)
    return y if b is None else y + b.view(-1, *[1] * len(strides))


def _causal_product(position, inputs, attributes) -> Product:
    x, w, b, past = (*inputs, None, None)[:4]
    length = w.shape[2] - 1
    padded = F.pad(x, (length, 0)) if past is None else torch.cat((past, x), 2)
    return conv_product(position, (padded, w, b), {"group": len(w)}).inside()


@op(
    "CausalConvWithState", 27, second=composite, weights=(1,), product=_causal_product,
    axes="n channel _, channel _ _, channel, n channel _ -> n channel _, n channel _",
)  # fmt: skip
def causal_conv_with_state(input, weight, bias=None, past_state=None, *, activation="none", outputs: OutputCount = 1):
    """Depthwise, over the past alone: what comes before the input is ``past_state`` or zeros."""
    length = weight.shape[2] - 1
    padded = F.pad(input, (length, 0)) if past_state is None else torch.cat((past_state, input), 2)
    y = part(conv)(padded, weight, bias, group=weight.shape[0])
    y = y if activation == "none" else F.silu(y)
    return y if outputs == 1 else (y, padded[:, :, padded.shape[2] - length :])


def _deform_conv_axes(node: Node) -> str:
    """Channels that are displaced apart, by groups of their own, stay."""
    x, y = "n (group c) _*" if node.get("offset_group") == 1 else "n _*", "(group channel)"
    return f"{x}, {y} c _*, n _*, {y}, n _* -> n {y} _*"


@op("DeformConv", 19, 22, weights=(1,), axes=_deform_conv_axes)
def deform_conv(
    x, w, offset, b=None, mask=None, *, dilations=None, group=1, kernel_shape=None, offset_group=1, pads=None,
    strides=None,
):  # fmt: skip
    """Convolution over bilinear samples at displaced positions (two spatial axes)."""
    n, kernel, output = x.shape[0], w.shape[2:], offset.shape[2:]
    begin, _, strides, dilations = geometry(x.shape[2:], kernel, "NOTSET", pads, strides, dilations)
    displaced = offset.reshape(n * offset_group, kernel[0], kernel[1], 2, *output)
    at = []
    for axis in (0, 1):
        tap = torch.arange(kernel[axis], device=x.device) * dilations[axis]
        place = torch.arange(output[axis], device=x.device) * strides[axis] - begin[axis]
        shape = [1, 1, 1, 1, 1]
        shape[1 + axis], shape[3 + axis] = len(tap), len(place)
        at.append((displaced[:, :, :, axis] + (tap[:, None] + place).view(shape).to(x.dtype)).flatten(1))
    samples = bilinear(x.reshape(n * offset_group, -1, *x.shape[2:]), *at)
    samples = samples.reshape(n, offset_group, -1, math.prod(kernel), math.prod(output))
    if mask is not None:
        samples = samples * mask.reshape(n, offset_group, 1, math.prod(kernel), math.prod(output))
    samples = samples.reshape(n, group, -1, math.prod(output))
    result = (w.reshape(group, w.shape[0] // group, -1) @ samples).reshape(n, w.shape[0], *output)
    return result if b is None else result + b.view(-1, 1, 1)


@op("Col2Im", 18, second=movement, axes="n (c _) _ -> n c _*")
def col2im(input, image_shape: Ints, block_shape: Ints, *, dilations=None, pads=None, strides=None):
    """Sums overlapping blocks [N, C prod(block), L] into images [N, C, *image]."""
    begin, end, strides, dilations = geometry(image_shape, block_shape, "NOTSET", pads, strides, dilations)
    padded = [n + p + q for n, p, q in zip(image_shape, begin, end, strict=True)]
    blocks = [
        (n - (k - 1) * d - 1) // s + 1 for n, k, s, d in zip(padded, block_shape, strides, dilations, strict=True)
    ]
    index = positions(block_shape, blocks, strides, dilations, padded, input.device).flatten()
    n, channels = input.shape[0], input.shape[1] // math.prod(block_shape)
    image = input.new_zeros(n, channels, math.prod(padded)).index_add(2, index, input.reshape(n, channels, -1))
    return F.pad(image.reshape(n, channels, *padded), torch_pads([-p for p in begin], [-p for p in end]))
