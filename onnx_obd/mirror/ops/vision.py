"""Sampling images at given places, and choosing boxes."""

from __future__ import annotations

import math
from itertools import product

import torch
import torch.nn.functional as F

from onnx_obd.mirror.registry import Floats, Ints, op
from onnx_obd.mirror.second import Call, movement

_MODES = {"bilinear": "bilinear", "linear": "bilinear", "nearest": "nearest", "bicubic": "bicubic", "cubic": "bicubic"}


GRID_SAMPLE_AXES = "n c _*, n _* -> n c _*"


@op("GridSample", 16, axes=GRID_SAMPLE_AXES)
def grid_sample_16(x, grid, *, align_corners=0, mode="bilinear", padding_mode="zeros"):
    return grid_sample(x, grid, align_corners=align_corners, mode=mode, padding_mode=padding_mode)


@op("GridSample", 20, 22, axes=GRID_SAMPLE_AXES)
def grid_sample(x, grid, *, align_corners=0, mode="linear", padding_mode="zeros"):
    return F.grid_sample(x, grid, _MODES[mode], padding_mode, bool(align_corners))


def _affine_grid_second(call: Call, h):
    """The grid is theta (base, 1): an entry of theta has the base coordinate it multiplies as its slope."""
    theta, size, rank = call.inputs[0], call.inputs[1], call.inputs[0].shape[1]
    identity = torch.eye(rank, rank + 1, dtype=theta.dtype, device=theta.device)[None]
    base = affine_grid(identity, (1, *size[1:]), **call.attributes)[0]
    slopes = torch.cat((base, torch.ones_like(base[..., :1])), -1).square().flatten(0, -2)
    return (h[0].flatten(1, -2).mT @ slopes, None)


@op("AffineGrid", 20, second=_affine_grid_second)
def affine_grid(theta, size: Ints, *, align_corners=0):
    return F.affine_grid(theta, list(size), bool(align_corners))


@op("NonMaxSuppression", 10, 11, differentiable=False, data_dependent_shape=True)
def non_max_suppression(
    boxes, scores, max_output_boxes_per_class: Ints | None = None, iou_threshold: Floats | None = None,
    score_threshold: Floats | None = None, *, center_point_box=0,
):  # fmt: skip
    """Boxes by falling score, each class for itself, without those that overlap a chosen one: [batch, class, box]."""
    most = (max_output_boxes_per_class or (0,))[0]
    batch, classes, count = scores.shape
    left = scores.flatten(0, 1)
    alive = left > score_threshold[0] if score_threshold else torch.ones_like(left, dtype=torch.bool)
    low, high = _corners(boxes, center_point_box)
    low, high = (corner.repeat_interleave(classes, 0) for corner in (low, high))
    rows = torch.arange(batch * classes, device=boxes.device)
    chosen = []
    for _ in range(min(most, count)):  # all classes of all images take one step at a time
        active = alive.any(1)
        if not active.any():
            break
        best = left.masked_fill(~alive, -math.inf).argmax(1)
        chosen.append(torch.stack((rows, best), -1)[active])
        alive &= _overlap(low, high, best) <= (iou_threshold or (0.0,))[0]
        alive[rows, best] = False
    if not chosen:
        return torch.zeros(0, 3, dtype=torch.int64, device=boxes.device)
    row, box = torch.cat(chosen)[torch.cat(chosen)[:, 0].argsort(stable=True)].unbind(-1)
    return torch.stack((row // classes, row % classes, box), -1)


def _corners(boxes, center_point_box):
    first, second = boxes[..., :2], boxes[..., 2:]
    if center_point_box:
        return first - second / 2, first + second / 2
    return torch.minimum(first, second), torch.maximum(first, second)


def _overlap(low, high, index):
    """Intersection over union of the box at ``index`` in each row with every box of the row."""
    at = index[:, None, None].expand(-1, 1, 2)
    common = (torch.minimum(high, high.gather(1, at)) - torch.maximum(low, low.gather(1, at))).clamp_min(0).prod(-1)
    area = (high - low).prod(-1)
    union = area + area.gather(1, index[:, None]) - common
    return torch.where(union > 0, common / union, 0)


@op("MaxRoiPool", 1, 22, second=movement, axes="_ c _ _, _ _ -> _ c _ _")
def max_roi_pool(x, rois, *, pooled_shape, spatial_scale=1.0):
    """The maximum in each cell of a grid laid over each region (image, x1, y1, x2, y2); 0 where a cell is outside."""
    height, width = x.shape[2:]
    found = [x.new_zeros(0, x.shape[1], *pooled_shape)]
    images, corners = rois[:, 0].tolist(), (rois[:, 1:] * spatial_scale + 0.5).floor().tolist()
    for image, (x1, y1, x2, y2) in zip(map(round, images), (map(int, row) for row in corners), strict=True):
        pads = (-x1, max(x1, x2) + 1 - width, -y1, max(y1, y2) + 1 - height)
        cells = F.adaptive_max_pool2d(F.pad(x[image], pads, value=-math.inf), pooled_shape)
        found.append(cells.masked_fill(cells == -math.inf, 0)[None])
    return torch.cat(found)


@op("RoiAlign", 10, axes="_ c _ _, _ _, _ -> _ c _ _")
def roi_align_10(
    x, rois, batch_indices, *, mode="avg", output_height=1, output_width=1, sampling_ratio=0, spatial_scale=1.0
):
    return roi_align(
        x, rois, batch_indices, coordinate_transformation_mode="output_half_pixel", mode=mode,
        output_height=output_height, output_width=output_width, sampling_ratio=sampling_ratio,
        spatial_scale=spatial_scale,
    )  # fmt: skip


@op("RoiAlign", 16, 22, axes="_ c _ _, _ _, _ -> _ c _ _")
def roi_align(
    x, rois, batch_indices, *, coordinate_transformation_mode="half_pixel", mode="avg", output_height=1,
    output_width=1, sampling_ratio=0, spatial_scale=1.0,
):  # fmt: skip
    """Mean (or largest weighted corner) of bilinear samples in each cell of a grid laid over each region."""
    half_pixel = coordinate_transformation_mode == "half_pixel"
    corners = rois * spatial_scale - (0.5 if half_pixel else 0.0)
    start, extent = corners[:, :2], corners[:, 2:] - corners[:, :2]
    extent = extent if half_pixel else extent.clamp_min(1)
    bins = (output_width, output_height)
    shape = (len(rois), output_height, output_width, x.shape[1])
    y = x.new_zeros(shape)
    for per_bin, here in _by_density(extent, bins, sampling_ratio):
        (x_at, x_weight), (y_at, y_weight) = (
            _samples(start[here, axis], extent[here, axis], bins[axis], per_bin[axis], x.shape[3 - axis])
            for axis in (0, 1)
        )
        image = batch_indices[here][:, None, None]
        terms = [
            x[image, :, y_at[i][:, :, None], x_at[j][:, None, :]]
            * (y_weight[i][:, :, None] * x_weight[j][:, None, :])[..., None]
            for i, j in product((0, 1), (0, 1))
        ]
        terms = torch.stack(terms).unflatten(3, (output_width, -1)).unflatten(2, (output_height, -1))
        cells = terms.amax((0, 3, 5)) if mode == "max" else terms.sum(0).mean((2, 4))
        y = y.index_copy(0, here, cells)
    return y.permute(0, 3, 1, 2)


def _by_density(extent, bins, sampling_ratio: int):
    """The regions that are sampled equally densely go together: samples per bin along either axis, and which they are.

    Without a ratio it is a sample for each pixel that a bin covers.
    """
    if sampling_ratio > 0:
        yield (sampling_ratio, sampling_ratio), torch.arange(len(extent), device=extent.device)
        return
    density = (extent / extent.new_tensor(bins)).ceil().long()
    for per_bin in density.unique(dim=0):
        if per_bin.min() > 0:
            yield per_bin.tolist(), (density == per_bin).all(1).nonzero()[:, 0]


def _samples(start, extent, bins, per_bin, size):
    """Along one axis, for each region: the two neighbours of each sample and their weights (0 outside the image)."""
    steps = (torch.arange(bins * per_bin, device=start.device) + 0.5) / per_bin
    position = start[:, None] + steps.to(start.dtype) * (extent / bins)[:, None]
    inside = (position >= -1) & (position <= size)
    position = position.clamp(0, size - 1)
    low = position.detach().floor().long()
    upper = position - low
    return (low, (low + 1).clamp_max(size - 1)), ((1 - upper) * inside, upper * inside)
