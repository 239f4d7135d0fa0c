"""Pooling over sliding windows and over whole images."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from onnx_obd.mirror.axes import Node
from onnx_obd.mirror.ops.sliding import channels_last, geometry, torch_pads, windows
from onnx_obd.mirror.registry import Ints, OutputCount, family, op
from onnx_obd.mirror.second import Call, movement, scaled_movement

_MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE_POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}

movement_op = family(second=movement)

POOL_AXES = "n c _*"


def _indexed_axes(node: Node) -> str:
    """Indices count through the whole tensor, so none can go."""
    return POOL_AXES if len(node.outputs) == 1 else "_*"


def _fits_torch(begin, end, kernel) -> bool:
    """torch pads either end alike, and by half a window at most."""
    return begin == end and all(2 * p <= k for p, k in zip(begin, kernel, strict=True))


def _enclosing_end(size, kernel, begin, end, strides, dilations, ceil_mode):
    """The end pads; with ``ceil_mode`` enough for a last, partial window that begins inside x or its begin pads."""
    if not ceil_mode:
        return end
    enclosing = []
    for n, k, p, q, s, d in zip(size, kernel, begin, end, strides, dilations, strict=True):
        reach = (k - 1) * d + 1
        last = -(-(n + p + q - reach) // s) * s  # where the last window begins
        last -= s if last >= n + p else 0
        enclosing.append(max(q, last + reach - n - p))
    return tuple(enclosing)


@movement_op("MaxPool", 1, 8, 10, 11, 12, 22, axes=_indexed_axes)
def max_pool(
    x, *, auto_pad="NOTSET", ceil_mode=0, dilations=None, kernel_shape, pads=None, storage_order=0, strides=None,
    outputs: OutputCount = 1,
):  # fmt: skip
    values = x if x.is_floating_point() else x.float()  # integers are 8-bit: exact
    size, padded = x.shape[2:], False
    begin, end, strides, dilations = geometry(size, kernel_shape, auto_pad, pads, strides, dilations)
    if not _fits_torch(begin, end, kernel_shape):
        end = _enclosing_end(size, kernel_shape, begin, end, strides, dilations, ceil_mode)
        values, padded, ceil_mode = F.pad(values, torch_pads(begin, end), value=-math.inf), True, 0
    values, padding = channels_last(values), 0 if padded else begin
    pool = _MAX_POOL[len(size)]
    if outputs == 1:
        return pool(values, kernel_shape, strides, padding, dilations, bool(ceil_mode)).to(x.dtype)
    y, indices = pool(values, kernel_shape, strides, padding, dilations, bool(ceil_mode), return_indices=True)
    along = torch.unravel_index(indices, values.shape[2:])
    if padded:
        along = [position - p for position, p in zip(along, begin, strict=True)]
    return y.to(x.dtype), _flat_indices(along, size, storage_order)


def _flat_indices(along, size, storage_order):
    """Positions along the spatial axes as indices into the whole flattened tensor (column-major within an image)."""
    batch, channels = along[0].shape[:2]
    axes = list(zip(along, size, strict=True))
    images = torch.arange(batch * channels, device=along[0].device)
    flat = 0
    for position, n in reversed(axes) if storage_order else axes:
        flat = flat * n + position
    return flat + (images * math.prod(size)).view(batch, channels, *[1] * len(size))


def _window_counts(x, kernel, begin, end, spare, strides, dilations, count_include_pad):
    """How many elements each window averages: those of x, and its own padding (not ``spare``) if that counts."""
    counts = x.new_ones(())
    for n, k, p, q, e, s, d in zip(x.shape[2:], kernel, begin, end, spare, strides, dilations, strict=True):
        counted = x.new_zeros(1, 1, p + n + q)
        counted[..., slice(0, p + n + q - e) if count_include_pad else slice(p, p + n)] = 1
        counts = counts.unsqueeze(-1) * windows(counted, (k,), (s,), (d,)).sum(-1).flatten()
    return counts


def _average_windows(
    x, kernel_shape, auto_pad="NOTSET", ceil_mode=0, count_include_pad=0, dilations=None, pads=None, strides=None
):
    """All windows of x, and how many elements each averages."""
    size = x.shape[2:]
    begin, end, strides, dilations = geometry(size, kernel_shape, auto_pad, pads, strides, dilations)
    enclosing = _enclosing_end(size, kernel_shape, begin, end, strides, dilations, ceil_mode)
    spare = [e - q for e, q in zip(enclosing, end, strict=True)]
    counts = _window_counts(x, kernel_shape, begin, enclosing, spare, strides, dilations, count_include_pad)
    return windows(F.pad(x, torch_pads(begin, enclosing)), kernel_shape, strides, dilations), counts


def _average_pool_second(call: Call, h):
    """y = (sum over the window) / count: every Jacobian entry is 1 / count."""
    _, counts = _average_windows(call.inputs[0], **call.attributes)
    return call.vjp([h[0] / counts])


@op("AveragePool", 1, 7, 10, 11, 19, 22, second=_average_pool_second, axes=POOL_AXES)
def average_pool(
    x, *, auto_pad="NOTSET", ceil_mode=0, count_include_pad=0, dilations=None, kernel_shape, pads=None, strides=None
):
    begin, end, steps, spacing = geometry(x.shape[2:], kernel_shape, auto_pad, pads, strides, dilations)
    has_kernel = x.dim() < 5 or x.dtype.itemsize > 2  # torch's avg_pool3d has none for half precision on a CPU
    if has_kernel and _fits_torch(begin, end, kernel_shape) and max(spacing) == 1:
        pool = _AVERAGE_POOL[len(begin)]
        return pool(channels_last(x), kernel_shape, steps, begin, bool(ceil_mode), bool(count_include_pad))
    inside, counts = _average_windows(x, kernel_shape, auto_pad, ceil_mode, count_include_pad, dilations, pads, strides)
    return inside.sum(tuple(range(x.dim(), inside.dim()))) / counts


def _lp_windows(x, kernel_shape, auto_pad="NOTSET", ceil_mode=0, dilations=None, p=2, pads=None, strides=None):
    """All windows of x as [N, C, *output, elements]."""
    begin, end, strides, dilations = geometry(x.shape[2:], kernel_shape, auto_pad, pads, strides, dilations)
    end = _enclosing_end(x.shape[2:], kernel_shape, begin, end, strides, dilations, ceil_mode)
    return windows(F.pad(x, torch_pads(begin, end)), kernel_shape, strides, dilations).flatten(x.dim())


def _lp_pool_second(call: Call, h):
    """Within its window an element has the slope of the norm; an element in several windows sums over them."""
    with torch.enable_grad():
        x = call.inputs[0].detach().requires_grad_()
        inside = _lp_windows(x, **call.attributes)
        elements = inside.detach().requires_grad_()
        norm = torch.linalg.vector_norm(elements, call.attributes.get("p", 2), dim=-1)
    (slope,) = torch.autograd.grad(norm, elements, torch.ones_like(norm))
    return torch.autograd.grad(inside, x, slope.square() * h[0].unsqueeze(-1))


@op("LpPool", 1, 2, 11, 18, 22, second=_lp_pool_second, axes=POOL_AXES)
def lp_pool(x, *, auto_pad="NOTSET", ceil_mode=0, dilations=None, kernel_shape, p=2, pads=None, strides=None):
    inside = _lp_windows(x, kernel_shape, auto_pad, ceil_mode, dilations, p, pads, strides)
    return torch.linalg.vector_norm(inside, p, dim=-1)


def _spatial(x) -> tuple[int, ...]:
    return tuple(range(2, x.dim()))


@op("GlobalAveragePool", 1, 22, second=scaled_movement(lambda call: 1 / call.inputs[0][0, 0].numel()), axes=POOL_AXES)
def global_average_pool(x):
    return x.mean(_spatial(x), keepdim=True)


@movement_op("GlobalMaxPool", 1, 22, axes=POOL_AXES)
def global_max_pool(x):
    return x.flatten(2).max(-1).values.reshape(*x.shape[:2], *[1] * (x.dim() - 2))


def _slope_second(call: Call, h):
    """Each element of x reaches one output: h_in = slope^2 h_out."""
    (slope,) = call.vjp([torch.ones_like(h[0])])
    return (slope.square() * h[0],)


@op("GlobalLpPool", 1, 2, 22, second=_slope_second, axes=POOL_AXES)
def global_lp_pool(x, *, p=2):
    return torch.linalg.vector_norm(x, p, dim=_spatial(x), keepdim=True)


@movement_op("MaxUnpool", 9, 11, 22, axes="_*")
def max_unpool(x, indices, output_shape: Ints | None = None, *, kernel_shape, pads=None, strides=None):
    """Puts each x at its index, zeros elsewhere.

    The indices are those of the flattened tensor that the pooling parameters imply; a larger ``output_shape`` pads
    that with zeros. (onnxruntime reads them as indices into the larger shape, against the definition.)
    """
    begin, end, strides, _ = geometry(x.shape[2:], kernel_shape, "NOTSET", pads, strides, None)
    size = [
        (n - 1) * s + k - p - q for n, k, p, q, s in zip(x.shape[2:], kernel_shape, begin, end, strides, strict=True)
    ]
    images = x.new_zeros(x.shape[0] * x.shape[1] * math.prod(size)).scatter(0, indices.flatten(), x.flatten())
    images = images.view(*x.shape[:2], *size)
    if output_shape is None:
        return images
    return F.pad(images, torch_pads([0] * len(size), [o - n for o, n in zip(output_shape[2:], size, strict=True)]))
