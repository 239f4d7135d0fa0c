"""Interpolation: Resize and Upsample.

Resampling is separable: along each axis every output is a weighted sum of inputs, y = (M1 x M2 x ...) x. The
matrices are built once on the host, in the float32 arithmetic of onnxruntime, and kept; where torch has a faster
kernel for the same weights it is used. The second derivative passes through the squared matrices, transposed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, wraps
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from onnx_obd.mirror.axes import Node, names, spelled_shape
from onnx_obd.mirror.registry import Floats, Ints, op
from onnx_obd.mirror.second import Call

_SHORT = 100
"""Axes up to about this length are resampled faster by a matrix product than by torch's kernels for interpolation.
Those are left to float32: in float64 they would not round coordinates as onnxruntime does."""


class _Axis(NamedTuple):
    """``start`` and ``end`` are the region of interest, as fractions of the axis."""

    position: int
    length: int
    resized: int
    scale: float
    start: float = 0.0
    end: float = 1.0


@dataclass(frozen=True)
class _Filter:
    """What makes weights of an axis: the attributes of Resize.

    ``fractional``: align_corners takes length * scale for the length of the result, not what it is rounded to.
    """

    mode: str = "nearest"
    transformation: str = "half_pixel"
    nearest: str = "round_prefer_floor"
    cubic: float = -0.75
    exclude_outside: bool = False
    antialias: bool = False
    fractional: bool = True


@dataclass(frozen=True)
class _Resampling:
    """Along which axes to resample, and how. ``outside``: the value of what lies outside the input, if any does."""

    filter: _Filter
    axes: tuple[_Axis, ...]
    outside: float | None = None

    def __call__(self, x: Tensor) -> Tensor:
        y = x
        if self.filter.mode == "nearest":
            for axis in reversed(self.axes):  # the last axis, which is slowest, while there is least of it
                y = _pick(y, axis, self.filter)
        elif self.axes:
            y = self._interpolate(x if x.dtype in (torch.float32, torch.float64) else x.float()).to(x.dtype)
        if self.outside is not None:
            y = torch.where(self._beyond(y), self.outside, y)
        return y

    def _interpolate(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float32 and any(axis.length > _SHORT for axis in self.axes) and self._torch_has_it(x.dim()):
            corners = self.filter.transformation == "align_corners"
            size = list(x.shape[2:])
            for axis in self.axes:
                size[axis.position - 2] = axis.resized
            mode = "bicubic" if self.filter.mode == "cubic" else ("linear", "bilinear", "trilinear")[len(size) - 1]
            return F.interpolate(x, size, mode=mode, align_corners=corners)
        for axis in reversed(self.axes):
            x = _apply(_matrix(axis, self.filter, x.dtype, x.device), x, axis.position)
        return x

    def _torch_has_it(self, rank: int) -> bool:
        how = self.filter
        if how.antialias or how.exclude_outside or any(axis.position < 2 for axis in self.axes):
            return False
        kernel = rank in (3, 4, 5) if how.mode == "linear" else rank == 4 and how.cubic == -0.75
        if how.transformation == "align_corners" and not how.fractional:
            return kernel
        lengths = all(_product(axis.length, axis.scale) == axis.resized for axis in self.axes)
        if how.transformation == "pytorch_half_pixel":
            return kernel and lengths and all(axis.resized > 1 for axis in self.axes)
        return kernel and lengths and how.transformation in ("align_corners", "half_pixel")

    def _beyond(self, y: Tensor) -> Tensor:
        """Which elements of the output lie outside the input."""
        beyond = torch.zeros((), dtype=torch.bool, device=y.device)
        for axis in self.axes:
            source = _coordinates(axis, self.filter)
            mask = torch.from_numpy((source < 0) | (source > axis.length - 1)).to(y.device)
            beyond = beyond | mask.reshape(-1, *[1] * (y.dim() - 1 - axis.position))
        return beyond.expand(y.shape)

    def second(self, h: Tensor) -> Tensor:
        """sum_j (dy_j/dx_i)^2 h_j: the matrices squared and transposed."""
        if self.outside is not None:
            h = h.masked_fill(self._beyond(h), 0)
        for axis in self.axes:
            h = _apply(_matrix(axis, self.filter, h.dtype, h.device).square().mT, h, axis.position)
        return h


def _resized_axes(node: Node) -> str:
    pairs = zip(names(node.rank), node.inputs[0].shape, node.outputs[0].shape, strict=True)
    own = " ".join(name if before == after else "_" for name, before, after in pairs)
    return f"{own} -> {own}"


def _resampling_op(name: str, *since: int) -> Callable:
    """Register the operator whose function, with the signature of the schema, says by which resampling it works."""

    def register(resampling: Callable[..., _Resampling]) -> Callable:
        @wraps(resampling)
        def run(x, *inputs, **attributes):
            return resampling(x, *inputs, **attributes)(x)

        def second(call: Call, h: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
            return [resampling(*call.inputs, **call.attributes).second(h[0])]

        op(name, *since, second=second, axes=_resized_axes, spelled=spelled_shape("sizes"))(run)
        return resampling

    return register


@_resampling_op("Resize", 19)
def resize(
    x,
    roi: Floats | None = None,
    scales: Floats | None = None,
    sizes: Ints | None = None,
    *,
    antialias=0,
    axes=None,
    coordinate_transformation_mode="half_pixel",
    cubic_coeff_a=-0.75,
    exclude_outside=0,
    extrapolation_value=0.0,
    keep_aspect_ratio_policy="stretch",
    mode="nearest",
    nearest_mode="round_prefer_floor",
):
    cropping = coordinate_transformation_mode == "tf_crop_and_resize"
    positions = range(x.dim()) if axes is None else [axis % x.dim() for axis in axes]
    region = roi if cropping and roi else (0.0,) * len(positions) + (1.0,) * len(positions)
    spans = list(zip(region[: len(positions)], region[len(positions) :], strict=True))
    lengths = [x.shape[position] for position in positions]
    if scales:
        sizes = [int(_product(*known)) for known in zip(lengths, scales, strict=True)]
    else:
        scales, sizes = _scales_for(lengths, sizes, keep_aspect_ratio_policy)
    found = [_Axis(*known, *span) for *known, span in zip(positions, lengths, sizes, scales, spans, strict=True)]
    how = _Filter(
        mode, coordinate_transformation_mode, nearest_mode, cubic_coeff_a, bool(exclude_outside), bool(antialias)
    )
    return _Resampling(how, _changed(found, how), extrapolation_value if cropping else None)


@_resampling_op("Resize", 11, 13, 18)
@wraps(resize)
def resize_11(*inputs, **attributes):
    """Resize-19 introduced the fractional length of the result; onnxruntime has none in any version."""
    how = resize(*inputs, **attributes)
    return replace(how, filter=replace(how.filter, fractional=False))


@_resampling_op("Resize", 10)
@_resampling_op("Upsample", 9)
def resize_10(x, scales: Floats, *, mode="nearest"):
    how = resize(x, None, scales, mode=mode, coordinate_transformation_mode="asymmetric", nearest_mode="simple")
    return how


@_resampling_op("Upsample", 7)
def upsample_7(x, *, scales, mode="nearest"):
    return resize_10(x, scales, mode=mode)


@_resampling_op("Upsample", 1)
def upsample_1(x, *, height_scale, width_scale, mode="nearest"):
    return resize_10(x, (1.0, 1.0, height_scale, width_scale), mode={"bilinear": "linear"}.get(mode, mode))


def _scales_for(lengths: Sequence[int], sizes: Sequence[int], policy: str) -> tuple[list[float], list[int]]:
    scales = [float(np.float32(size) / np.float32(length)) for size, length in zip(sizes, lengths, strict=True)]
    if policy == "stretch":
        return scales, list(sizes)
    scale = min(scales) if policy == "not_larger" else max(scales)
    return [scale] * len(scales), [int(_product(length, scale) + np.float32(0.5)) for length in lengths]


def _changed(axes: Sequence[_Axis], how: _Filter) -> tuple[_Axis, ...]:
    """The axes to resample. What onnxruntime leaves as it is: the axes of scale 1, even where a region is cut out; a
    tensor whose shape does not change; with antialiasing each axis whose length does not change."""
    if how.antialias or all(axis.length == axis.resized for axis in axes):
        axes = [axis for axis in axes if axis.length != axis.resized]
    return tuple(sorted(axis for axis in axes if axis.scale != 1))


def _product(length: int, scale: float) -> np.float32:
    return np.float32(length) * np.float32(scale)


# ---- weights along one axis


def _coordinates(axis: _Axis, how: _Filter) -> np.ndarray:
    """Where in the input each output lies, in float32 as onnxruntime computes it."""
    at, scale, one = np.arange(axis.resized, dtype=np.float32), np.float32(axis.scale), np.float32(1)
    last = np.float32(axis.length - 1)
    half = np.float32(0.5)
    exact = _product(axis.length, axis.scale)
    match how.transformation:
        case "asymmetric":
            return at / scale
        case "tf_half_pixel_for_nn":
            return (at + half) / scale
        case "align_corners":
            length = exact if how.fractional else np.float32(axis.resized)
            return at * last / (length - one) if length != 1 else at * 0
        case "tf_crop_and_resize":
            start, end = np.float32(axis.start), np.float32(axis.end)
            if axis.resized == 1:
                return at + half * (start + end) * last
            return start * last + at * (end - start) * last / np.float32(axis.resized - 1)
        case "pytorch_half_pixel" if axis.resized == 1:
            return at
        case "half_pixel_symmetric":
            centre = np.float32(axis.length) / 2
            return centre * (one - np.float32(axis.resized) / exact) + (at + half) / scale - half
    return (at + half) / scale - half


@lru_cache(maxsize=128)
def _index(axis: _Axis, how: _Filter, device: torch.device) -> Tensor:
    """Nearest neighbours: the input that each output copies."""
    source = _coordinates(axis, how).astype(np.float64)
    rule = how.nearest if how.nearest != "simple" else "ceil" if axis.scale < 1 else "floor"
    match rule:
        case "round_prefer_floor":
            nearest = np.ceil(source - 0.5)
        case "round_prefer_ceil":
            nearest = np.floor(source + 0.5)
        case "ceil":
            nearest = np.ceil(source)
        case _:
            nearest = np.floor(source)
    return torch.from_numpy(nearest.clip(0, axis.length - 1).astype(np.int64)).to(device)


@lru_cache(maxsize=128)
def _repeats(axis: _Axis, how: _Filter) -> int:
    """n where nearest neighbours copy every input n times, otherwise 0."""
    repeats, rest = divmod(axis.resized, axis.length)
    even = torch.arange(axis.resized) // max(repeats, 1)
    return repeats if rest == 0 and torch.equal(_index(axis, how, torch.device("cpu")), even) else 0


def _pick(x: Tensor, axis: _Axis, how: _Filter) -> Tensor:
    """Nearest neighbours, with the axes in the order in which they lie in memory: so runs are copied, and stay runs."""
    order = sorted(range(x.dim()), key=x.stride, reverse=True)
    y, position = x.permute(order), order.index(axis.position)
    if repeats := _repeats(axis, how):
        y = y.repeat_interleave(repeats, position)
    else:
        y = y.index_select(position, _index(axis, how, x.device))
    return y.permute(*map(order.index, range(x.dim())))


@lru_cache(maxsize=128)
def _matrix(axis: _Axis, how: _Filter, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The weight of each input (column) in each output (row)."""
    if how.mode == "nearest":
        return F.one_hot(_index(axis, how, device), axis.length).to(dtype)
    kernel = _triangle if how.mode == "linear" else lambda distance: _cubic(distance, how.cubic)
    stretch = max(1.0, 1.0 / axis.scale) if how.antialias else 1.0
    radius = stretch * (1 if how.mode == "linear" else 2)
    source = _coordinates(axis, how).astype(np.float64)[:, None]
    taps = np.floor(source - radius) + np.arange(1, np.ceil(2 * radius) + 1)
    weights = kernel(np.abs(taps - source) / stretch)
    if how.exclude_outside:
        weights = weights * ((taps >= 0) & (taps < axis.length))
    weights = weights / np.maximum(weights.sum(1, keepdims=True), np.finfo(np.float64).tiny)
    matrix = np.zeros((axis.resized, axis.length))
    rows = np.arange(axis.resized)[:, None]
    np.add.at(matrix, (rows, taps.clip(0, axis.length - 1).astype(np.int64)), weights)
    return torch.from_numpy(matrix).to(device, dtype)


def _triangle(distance: np.ndarray) -> np.ndarray:
    return np.maximum(0, 1 - distance)


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """Keys' convolution kernel (1981, equation 4), where a = -1/2 is his choice."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0))


def _apply(matrix: Tensor, x: Tensor, axis: int) -> Tensor:
    """The matrix times every vector along an axis of x."""
    if axis == x.dim() - 2:
        return matrix @ x
    return (x.movedim(axis, -1) @ matrix.mT).movedim(-1, axis)
