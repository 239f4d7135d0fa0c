"""Squares of the gradients that the samples of a batch have for the weights of a convolution (``sample_squares``)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from onnx_obd.mirror.ops import onednn
from onnx_obd.mirror.ops.linear import product_squares
from onnx_obd.mirror.ops.sliding import conv_geometry, torch_pads, windows
from onnx_obd.mirror.second import Call, sum_of_squares

_backward = torch.ops.aten.convolution_backward

IN_CACHE = 1 << 19
"""Elements of laid-out windows to have in memory at once (measured: best about here)."""

MANY_WINDOWS = 1 << 21
"""Elements of the laid-out windows of one sample from which a convolution, which needs none, is no slower."""

FEW_WEIGHTS = 1 << 10
"""Up to so many weights and for a single column oneDNN takes longer to set up than to convolve."""


def conv_sample_squares(call: Call, gradients, count: int, axis: int):
    """The gradient of a sample is a product of its output gradients and its windows; squared while still in cache."""
    (x, w), (g,), attributes = call.inputs[:2], gradients, call.attributes
    _, want_w, want_b = (*call.wanted, False)[:3]
    if axis != 0 or len(g[0]) != count:
        return None
    geometry, group = conv_geometry(x, w, attributes), attributes.get("group", 1)
    pairs = want_w and _few_pairs(x, w, g, geometry, group)
    if want_w and not pairs and _few_windows(x, w, g, group):
        found, of_bias = _squares_by_products(x, w, g, geometry, group, want_b)
        return (None, found, of_bias)[: len(call.inputs)]
    of_bias = sum_of_squares([each.sum((*range(2, x.dim()),)) for each in g]).sum(0) if want_b else None
    if not want_w:
        return None, None, of_bias
    by = _squares_by_pairs if pairs else _squares_by_groups
    return (None, by(x, w, g, *geometry, group), of_bias)[: len(call.inputs)]


def _few_windows(x, w, g, group) -> bool:
    """Whether laying out windows is faster than a convolution with the samples as groups."""
    fast = x.device.type == "cpu" and x.dtype == torch.float32 and x.dim() == 4
    grouped = fast and group > 1 and (len(g) > 1 or w.numel() > FEW_WEIGHTS)
    return not grouped and _windows_of_one(w, g, group) <= MANY_WINDOWS


def _windows_of_one(w, g, group) -> int:
    return w[0].numel() * group * math.prod(g[0].shape[2:])


def _squares_by_products(x, w, g, geometry, group, want_b):
    """Those of the bias come along, as of the weight of one more input that is 1 everywhere, if columns are several."""
    begin, end, strides, dilations = geometry
    x = F.pad(x, torch_pads(begin, end)) if any((*begin, *end)) else x
    chunk, found, ones = max(1, max(IN_CACHE, w.numel()) // _windows_of_one(w, g, group)), 0, want_b and len(g) > 1
    of_bias = sum_of_squares([each.sum((*range(2, x.dim()),)) for each in g]).sum(0) if want_b and not ones else None
    for start in range(0, len(x), chunk):
        samples = slice(start, start + chunk)
        seen = _matrices(x[samples], w.shape[2:], strides, dilations, group, ones)
        back = [each[samples].flatten(2).unflatten(1, (group, -1)).mT for each in g]
        found = found + product_squares(seen, back)
    if ones:
        found, of_bias = found[..., :-1], found[..., -1].flatten()
    return found.reshape(len(w), *w.shape[2:], -1).movedim(-1, 1), of_bias


FEW_PAIRS = 24
"""Pairs of an input and an output of a group up to which ``_squares_by_pairs`` is faster than a product (measured)."""

MANY_TAPS, FEW_IMAGES, SMALL_IMAGES, MANY_PRODUCTS = 16, 16, 1 << 13, 1 << 22
"""With up to 8 inputs it still is from so many taps on, for up to so many outputs and elements of them in a sample, and
from so many multiplications in a call."""

PAIRS_AT_ONCE = 1 << 20
"""Elements of the gradients that it lays out anew at once: with fewer its calls cost too much (measured)."""


def _few_pairs(x, w, g, geometry, group) -> bool:
    if max(geometry[2]) > 1 or x.dim() != 4 or not onednn.applies(x):
        return False
    inputs, outputs = w.shape[1], len(w) // group
    kernel, places = math.prod(w.shape[2:]), math.prod(g[0].shape[2:])
    small = group > 1 or w.numel() * places < onednn.MANY_PRODUCTS
    if not small or not 1 < kernel <= places:
        return False
    if outputs * inputs * min(len(g), 4) <= FEW_PAIRS:
        return True
    few_images = outputs <= FEW_IMAGES and outputs * places <= SMALL_IMAGES
    in_a_call = len(x) * outputs * places * kernel
    return len(g) == group == 1 and inputs <= 8 and few_images and kernel >= MANY_TAPS and in_a_call >= MANY_PRODUCTS


def _squares_by_pairs(x, w, g, begin, end, _strides, dilations, group):
    """For strides of 1, by depthwise convolutions of the gradients with an input of each sample as kernels.

    dy/dw[k] = sum over p of g[p] x[p + d k - begin], and so at d (K - 1 - k) a correlation of g, padded by
    d (K - 1) - begin, with x. Channels are the samples and groups, which so lie in the lanes of a vector; the outputs
    of a group are the images of a batch. No windows are laid out.
    """
    padding = [d * (k - 1) - p for d, k, p in zip(dilations, w.shape[2:], begin, strict=True)]
    if begin != end or min(padding) < 0:
        x, padding = F.pad(x, torch_pads(begin, end)), [p + q for p, q in zip(padding, begin, strict=True)]
    inputs, shape = w.shape[1], (group, len(w) // group)
    chunk = max(1, PAIRS_AT_ONCE // g[0][0].numel())
    squares = w.new_zeros(inputs, shape[1], group, *w.shape[2:])
    for start in range(0, len(x), chunk):
        kernels = x[start : start + chunk].unflatten(1, (group, inputs))
        for each in g:
            images = each[start : start + chunk].unflatten(1, shape).movedim(2, 0).flatten(1, 2).contiguous()
            for number in range(inputs):
                kernel = kernels[:, :, number].reshape(-1, 1, *x.shape[2:])
                made = onednn.convolution(images, kernel, None, dilations, padding, (1, 1), len(kernel))
                squares[number] += made.square_().unflatten(1, (-1, group)).sum(1)
    return squares.permute(2, 1, 0, 3, 4).flip(-2, -1).reshape(w.shape)


def _squares_by_groups(x, w, g, begin, end, strides, dilations, group):
    """Samples as groups of one convolution, whose kernel then has the gradient of each; columns as further channels."""
    x = F.pad(x, torch_pads(begin, end)) if any((*begin, *end)) else x
    columns, shape = len(g), (group, len(w) // group)
    chunk = max(1, IN_CACHE // (columns * w.numel()))
    none, squares = (0,) * len(strides), torch.zeros_like(w)
    for start in range(0, len(x), chunk):
        images = x[start : start + chunk]
        parts = len(images) * group
        back = torch.cat([each[start : start + chunk].unflatten(1, shape) for each in g], 2)
        kernel = w.new_empty(1).expand(parts * columns * shape[1], *w.shape[1:])
        _, made, _ = _backward(
            back.reshape(1, -1, *g[0].shape[2:]), images.reshape(1, -1, *x.shape[2:]), kernel, None, strides, none,
            dilations, False, none, parts, [False, True, False],
        )  # fmt: skip
        squares += made.square_().view(-1, group, columns, shape[1], *w.shape[1:]).sum((0, 2)).view(w.shape)
    return squares


def _matrices(x, kernel, strides, dilations, group, ones=False):
    """The windows of x [N, C, *size] as [N, group, prod(output), prod(kernel) * C / group], copied in longest runs.

    With ``ones`` each has one element more, which is 1.
    """
    seen, rank = windows(x, kernel, strides, dilations).unflatten(1, (group, -1)), len(kernel)
    inside = x.stride(1) == 1 and seen.shape[2] * kernel[-1] >= seen.shape[2 + rank]  # along kernel and channels
    if not inside:
        seen = windows(x.contiguous(), kernel, strides, dilations).unflatten(1, (group, -1))
    output, taps = range(3, 3 + rank), (*range(3 + rank, 3 + 2 * rank), 2)
    places, elements = [seen.shape[d] for d in output], [seen.shape[d] for d in taps]
    size = math.prod(places), math.prod(elements) + ones
    matrix = x.new_empty(len(x), group, *(size if inside else reversed(size)))
    matrix = matrix if inside else matrix.mT
    matrix[..., size[1] - ones :] = 1
    matrix[..., : size[1] - ones].unflatten(3, elements).unflatten(2, places).copy_(seen.permute(0, 1, *output, *taps))
    return matrix
