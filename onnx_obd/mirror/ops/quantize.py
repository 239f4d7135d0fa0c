"""Quantisation, with a gradient that passes straight through the rounding.

q = saturate(round(x / scale) + zero_point),  x' = (q - zero_point) scale. The derivative of rounding is taken as 1,
that of saturation is 1 inside the range and 0 outside (straight-through estimator; Bengio, Leonard, Courville 2013).
So that it can pass from node to node, a quantised tensor is a ``Quantised``: whole numbers carried by floats.
Products of integers are taken in float32, which is exact up to 2^24, where onnxruntime too rounds to float32 next.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from onnx import TensorProto

from onnx_obd.mirror.axes import Node, names
from onnx_obd.mirror.ops.cast import NARROW, convert
from onnx_obd.mirror.ops.convolution import conv, conv_product
from onnx_obd.mirror.ops.linear import matmul_axes
from onnx_obd.mirror.products import Product, matrix_product
from onnx_obd.mirror.registry import DType, ElemType, ElemTypes, Stored, op
from onnx_obd.mirror.second import Call, SecondRule, elementwise, multilinear, viewed
from onnx_obd.mirror.values import ElementType, Quantised, elem_type_of, plain

UINT8 = ElementType(TensorProto.UINT8, torch.uint8)


def _limits(element: ElementType) -> tuple[float, float]:
    if element.elem_type in NARROW:
        count = 1 << NARROW[element.elem_type]
        return (0, count - 1) if element.dtype == torch.uint8 else (-count // 2, count // 2 - 1)
    if element.elem_type == TensorProto.FLOAT4E2M1:
        return -6.0, 6.0
    info = torch.finfo(element.dtype) if element.dtype.is_floating_point else torch.iinfo(element.dtype)
    return info.min, info.max


def round_to(ratio: torch.Tensor, zero_point, element: ElementType, saturate: int = 1) -> Quantised:
    """saturate(round(ratio) + zero_point) as whole numbers of the element type; floating ones in their own steps.

    Where no gradient is wanted ``ratio`` is overwritten.
    """
    low, high = _limits(element)
    if not torch.is_grad_enabled() and not element.dtype.is_floating_point:
        return Quantised.mark(ratio.round_().add_(zero_point).clamp_(low, high), element.dtype)
    if element.dtype.is_floating_point:
        rounded = convert(ratio + zero_point, element, saturate).to(ratio.dtype)
    else:
        rounded = (ratio.round() + zero_point).clamp(low, high)
    if torch.is_grad_enabled():
        exact = (ratio + zero_point).clamp(low - 0.5, high + 0.5)  # what rounds to a limit is not beyond it
        rounded = exact + (rounded - exact).detach()
    return Quantised.mark(rounded, element.dtype)


def _spread(parameter, shape: torch.Size, axis: int, block_size: int):
    """A scale or zero point so that it broadcasts to ``shape``: one, one per index of ``axis`` or one per block."""
    if parameter is None or parameter.shape == shape or parameter.dim() == 0:
        return parameter
    if block_size and parameter.dim() == len(shape):
        return parameter.repeat_interleave(block_size, axis).narrow(axis, 0, shape[axis])
    if parameter.numel() == 1:
        return parameter.reshape(())
    if parameter.dim() > 1:
        return parameter
    return parameter.reshape(-1, *[1] * (len(shape) - 1 - axis % len(shape)))


def _spread_parameters(x, *parameters, axis=1, block_size=0, **_):
    return x, *[_spread(parameter, x.shape, axis, block_size) for parameter in parameters]


def on_grid(operand: int, scale: int | None, zero_point: int, axis: int = 0) -> Stored:
    """An operand whose scale and zero point are inputs of the node: one number each, or one per index of ``axis``."""

    def grid(q, *parameters, **_):
        spread = [_spread(parameter, q.shape, axis, 0) for parameter in parameters]
        return _grid(*spread) if scale is not None else _grid(torch.ones(()), *spread)

    return Stored(operand, (zero_point,) if scale is None else (scale, zero_point), grid)


def _grid(scale, zero_point=None):
    return scale, torch.zeros((), dtype=torch.int32) if zero_point is None else zero_point


def dequantize_grid(q, scale, zero_point=None, *, axis=1, block_size=0, **_):
    """The scale and zero point of DequantizeLinear, to broadcast against q."""
    return _grid(*_spread_parameters(q, scale, zero_point, axis=axis, block_size=block_size)[1:])


def grid_axes(node: Node) -> str:
    """One scale and zero point in all, one for each index of ``axis``, or one for each block of indices."""
    own, scale = names(node.rank), node.inputs[1]
    if scale.dim() == node.rank and node.rank > 1:
        pairs = zip(own, node.inputs[0].shape, scale.shape, strict=True)
        own = [name if length == blocks else "_" for name, length, blocks in pairs]
        parameter = " ".join(own)
    else:
        parameter = own[node.get("axis") % node.rank] if scale.numel() > 1 else ""
    return f"{' '.join(own)}, {parameter}, {parameter} -> {' '.join(own)}"


def _element(x, y_scale, y_zero_point=None, *, output_dtype=0, elem_types=(0, 0, 0), **_) -> ElementType:
    """What a tensor is quantised to."""
    if y_zero_point is None:
        return output_dtype or UINT8
    return ElementType(elem_types[2] or elem_type_of(y_zero_point), y_zero_point.dtype)


def _quantize(
    divide, x, y_scale, y_zero_point=None, *, axis=1, block_size=0, output_dtype=0, precision=0, saturate=1,
    elem_types=(0, 0, 0),
):  # fmt: skip
    x, scale, zero_point = _spread_parameters(x, y_scale, y_zero_point, axis=axis, block_size=block_size)
    element = _element(x, y_scale, y_zero_point, output_dtype=output_dtype, elem_types=elem_types)
    dtype = precision or _working(y_scale)
    ratio = divide(x.to(dtype), scale.to(dtype))
    return round_to(ratio, 0 if zero_point is None else zero_point.to(dtype), element, saturate)


def _cast_to_what_it_is(step, cast, operands, others):
    """A cast that changes nothing is passed over."""
    return step.call if cast.attributes["to"] == _element(*operands, **step.attributes) else None


def _there_and_back(step, back, operands, others):
    """Quantised and dequantised by one scale and zero point each, without the whole numbers in between.

    (saturate(round(x / s) + z) - z') s' is round(x / s) within limits that are z lower, plus z - z', times s'.
    """
    element, numbers = _element(*operands, **step.attributes), (*operands[1:], *others)
    if len(numbers) < 4 or not all(isinstance(number, torch.Tensor) and number.numel() == 1 for number in numbers):
        return None
    (x, scale, _), (back_scale, _) = operands, others
    if x.numel() < MANY or not x.is_cpu or isinstance(x, Quantised) or element.dtype.is_floating_point:
        return None
    one_dtype = x.dtype == scale.dtype == back_scale.dtype == _working(scale)
    if not one_dtype or {"precision", "output_dtype"} & {*step.attributes, *back.attributes}:
        return None
    low, high = _limits(element)
    divide = torch.Tensor.div_ if step.call.func is _quantize else torch.div

    def run(x, scale, zero_point, back_scale, back_zero_point):
        shift, back_shift = zero_point.item(), back_zero_point.item()
        y = divide(x, scale.reshape(())).round_().clamp_(low - shift, high - shift)
        return (y if shift == back_shift else y.add_(shift - back_shift)).mul_(back_scale.reshape(()))

    return run


MANY = 1 << 16
"""Elements from which a pass over them takes longer than reading two numbers on the host."""


@op(
    "QuantizeLinear", 10, 13, 19, 21, 23, 24, 25, 28, second=viewed(_spread_parameters), recodes=True, axes=grid_axes,
    in_place=(partial(_quantize, torch.Tensor.div_),),
    then={"Cast": _cast_to_what_it_is, "DequantizeLinear": _there_and_back},
)  # fmt: skip
def quantize_linear(
    x, y_scale, y_zero_point=None, *, axis=1, block_size=0, output_dtype: ElemType = 0, precision: DType = 0,
    saturate=1, elem_types: ElemTypes = (0, 0, 0),
):  # fmt: skip
    return _quantize(
        torch.div, x, y_scale, y_zero_point, axis=axis, block_size=block_size, output_dtype=output_dtype,
        precision=precision, saturate=saturate, elem_types=elem_types,
    )  # fmt: skip


def _dequantize_in_place(x, x_scale, x_zero_point=None, *, axis=1, block_size=0, output_dtype=0):
    x, scale, zero_point = _spread_parameters(plain(x), x_scale, x_zero_point, axis=axis, block_size=block_size)
    return (x if zero_point is None else x.sub_(plain(zero_point))).mul_(scale)


@op(
    "DequantizeLinear", 10, 13, 19, 21, 23, 24, 25, 28,
    second=viewed(_spread_parameters), recodes=True, stored=(Stored(0, (1, 2), dequantize_grid),),
    axes=grid_axes, in_place=(_dequantize_in_place,),
)  # fmt: skip
def dequantize_linear(x, x_scale, x_zero_point=None, *, axis=1, block_size=0, output_dtype: DType = 0):
    x, scale, zero_point = _spread_parameters(plain(x), x_scale, x_zero_point, axis=axis, block_size=block_size)
    dtype = output_dtype or x_scale.dtype
    centred, scale = _centred(x, zero_point, _working(x_scale)).to(dtype), scale.to(dtype)
    if zero_point is None or torch.is_grad_enabled():
        return centred * scale
    return centred.mul_(scale)


def _working(scale) -> torch.dtype:
    """The precision to count in: float32 at least, as in onnxruntime; half precision holds too few whole numbers."""
    return torch.promote_types(scale.dtype, torch.float32)


def _centred(x, zero_point, dtype):
    x = plain(x).to(dtype)
    return x if zero_point is None else x - plain(zero_point).to(dtype)


def _dynamic_second(call: Call, h):
    """y_j = x_j / s + zero_point with s = (max x - min x) / 255: every y_j depends on the two extremes as well.

    With c = ds/dx, h_x = h_y / s^2 - 2 x c h_y / s^3 + c^2 (sum x^2 h_y) / s^4 + c^2 h_s.
    """
    (x,), (_, scale, zero_point) = call.inputs, call.outputs
    h_y, h_scale = h[:2]
    slope = call.vjp([None, torch.ones_like(scale)])[0]
    h_x = torch.zeros_like(x) if h_scale is None else slope.square() * h_scale
    if h_y is not None:
        exact = x / scale + zero_point
        h_y = torch.where((exact >= -0.5) & (exact <= 255.5), h_y, 0)
        h_x = h_x + h_y / scale**2 - 2 * x * slope * h_y / scale**3
        h_x = h_x + slope.square() * (x.square() * h_y).sum() / scale**4
    return [h_x]


@op("DynamicQuantizeLinear", 11, second=_dynamic_second, axes="_*")
def dynamic_quantize_linear(x):
    low, high = x.amin().clamp_max(0), x.amax().clamp_min(0)
    scale = torch.where(high > low, (high - low) / 255, 1)
    zero_point = (-low / scale).round().clamp(0, 255).detach()
    return round_to(x / scale, zero_point, UINT8), scale, zero_point.to(torch.uint8)


# ---- products of quantised tensors


def _along(parameter, rank: int, axis: int):
    """One number, or one per index of ``axis`` of a tensor of ``rank`` axes; what broadcasts already as it is."""
    return None if parameter is None else _spread(parameter, torch.Size([0] * rank), axis, 0)


def _carrier(*values) -> torch.dtype:
    """The precision in which integers are multiplied: that of the floats that carry them."""
    return next((value.dtype for value in values if value.is_floating_point()), torch.float32)


def _centre_matrices(a, b, a_zero_point=None, b_zero_point=None):
    dtype = _carrier(a, b)
    a = _centred(a, _along(a_zero_point, a.dim(), -2), dtype)
    return a, _centred(b, _along(b_zero_point, b.dim(), -1), dtype), None, None


def _centre_images(x, w, x_zero_point=None, w_zero_point=None, **_):
    dtype = _carrier(x, w)
    return _centred(x, x_zero_point, dtype), _centred(w, _along(w_zero_point, w.dim(), 0), dtype), None, None


def matmul_integer_axes(node: Node) -> str:
    return f"{matmul_axes(node).partition('->')[0]}, i, neuron -> {matmul_axes(node).partition('->')[2]}"


@op(
    "MatMulInteger", 10, second=viewed(_centre_matrices, multilinear), weights=(0, 1),
    stored=(on_grid(0, None, 2, -2), on_grid(1, None, 3, -1)),
    axes=matmul_integer_axes,
)  # fmt: skip
def matmul_integer(a, b, a_zero_point=None, b_zero_point=None):
    a, b, *_ = _centre_matrices(a, b, a_zero_point, b_zero_point)
    return Quantised.mark(a @ b, torch.int32)


@op(
    "ConvInteger", 10, second=viewed(_centre_images, multilinear), weights=(1,), stored=(on_grid(1, None, 3),),
    axes="n (group c) _*, (group channel) c _*, , (group channel) -> n (group channel) _*",
)  # fmt: skip
def conv_integer(
    x, w, x_zero_point=None, w_zero_point=None, *, auto_pad="NOTSET", dilations=None, group=1, kernel_shape=None,
    pads=None, strides=None,
):  # fmt: skip
    x, w, *_ = _centre_images(x, w, x_zero_point, w_zero_point)
    y = conv(x, w, auto_pad=auto_pad, dilations=dilations, group=group, pads=pads, strides=strides)
    return Quantised.mark(y, torch.int32)


def _qlinear_matmul_product(position, inputs, attributes) -> Product | None:
    a, a_scale, _, b, b_scale, *_ = _prepare_qlinear_matmul(*inputs)
    found = matrix_product(1 if position else 0, a * a_scale, b * b_scale)
    return found and found.inside()


def qlinear_conv_product(position, inputs, attributes) -> Product:
    x, x_scale, _, w, *_, b = _prepare_qlinear_conv(*inputs)
    found = conv_product(1, (x * x_scale, w, b), attributes)
    return replace(found.inside(), bias=found.bias and replace(found.bias, position=8))


def _requantise(products, a_scale, b_scale, y_scale, y_zero_point):
    element = ElementType(elem_type_of(y_zero_point), y_zero_point.dtype)
    a_scale, b_scale, y_scale = (scale.to(products.dtype) for scale in (a_scale, b_scale, y_scale))
    return round_to(products * (a_scale * b_scale / y_scale), y_zero_point.to(products.dtype), element)


def _requantised(product: Callable) -> SecondRule:
    """The rule of y = requantise(product(a, b)), in its two steps: the second is elementwise, so nothing is lost."""

    def second(call: Call, h):
        a, a_scale, _, b, b_scale, _, y_scale, y_zero_point, *bias = call.inputs
        multiply, want = partial(product, **call.attributes), call.wanted
        scales = (a_scale, b_scale, y_scale)
        step = replace(call, function=_requantise, inputs=(multiply(a, b, *bias), *scales, y_zero_point))
        h_products, *h_scales, _ = elementwise(replace(step, wanted=(True, want[1], want[4], want[6], False)), h)
        step = replace(call, function=multiply, inputs=(a, b, *bias), wanted=(want[0], want[3], False)[: 2 + len(bias)])
        h_a, h_b, *_ = multilinear(step, [h_products])
        return [h_a, h_scales[0], None, h_b, h_scales[1], None, h_scales[2], None]

    return second


def _prepare_qlinear_matmul(a, a_scale, a_zero_point, b, b_scale, b_zero_point, y_scale, y_zero_point):
    dtype, rank = _working(a_scale), max(a.dim(), b.dim())
    a_centred = _centred(a, _along(a_zero_point, a.dim(), -2), dtype)
    b_centred = _centred(b, _along(b_zero_point, b.dim(), -1), dtype)
    a_scale, b_scale = _along(a_scale, a.dim(), -2), _along(b_scale, b.dim(), -1)
    y_scale, y_zero_point = _along(y_scale, rank, -2), _along(y_zero_point, rank, -2)
    return a_centred, a_scale, None, b_centred, b_scale, None, y_scale, y_zero_point


@op(
    "QLinearMatMul", 10, 21, second=viewed(_prepare_qlinear_matmul, _requantised(torch.matmul)), weights=(0, 3),
    constants=(1, 4, 6), stored=(on_grid(0, 1, 2, -2), on_grid(3, 4, 5, -1)),
    axes="... i k, i, i, ... k neuron, neuron, neuron, , -> ... i neuron", product=_qlinear_matmul_product,
)  # fmt: skip
def qlinear_matmul(a, a_scale, a_zero_point, b, b_scale, b_zero_point, y_scale, y_zero_point):
    a, a_scale, _, b, b_scale, _, y_scale, y_zero_point = _prepare_qlinear_matmul(
        a, a_scale, a_zero_point, b, b_scale, b_zero_point, y_scale, y_zero_point
    )
    return _requantise(a @ b, a_scale, b_scale, y_scale, y_zero_point)


def _prepare_qlinear_conv(
    x, x_scale, x_zero_point, w, w_scale, w_zero_point, y_scale, y_zero_point, b=None, **_
):  # fmt: skip
    dtype = _working(x_scale)
    x_centred = _centred(x, x_zero_point, dtype)
    w_centred = _centred(w, _along(w_zero_point, w.dim(), 0), dtype)
    b = None if b is None else b.to(dtype)
    return x_centred, x_scale, None, w_centred, _along(w_scale, x.dim(), 1), None, y_scale, y_zero_point, b


def bias_grid(operand: int, *scales: int) -> Stored:
    """Integers that are added to the products of two quantised operands, in steps of the product of their scales."""
    return Stored(operand, scales, lambda q, a_scale, b_scale, **_: _grid(a_scale * b_scale))


@op(
    "QLinearConv", 10, second=viewed(_prepare_qlinear_conv, _requantised(conv)), weights=(3,), constants=(1, 4, 6),
    stored=(on_grid(3, 4, 5), bias_grid(8, 1, 4)),
    axes="n (group c) _*, , , (group channel) c _*, (group channel), (group channel), , , (group channel) "
    "-> n (group channel) _*", product=qlinear_conv_product,
)  # fmt: skip
def qlinear_conv(
    x, x_scale, x_zero_point, w, w_scale, w_zero_point, y_scale, y_zero_point, b=None, *, auto_pad="NOTSET",
    dilations=None, group=1, kernel_shape=None, pads=None, strides=None,
):  # fmt: skip
    x, x_scale, _, w, w_scale, _, y_scale, y_zero_point, b = _prepare_qlinear_conv(
        x, x_scale, x_zero_point, w, w_scale, w_zero_point, y_scale, y_zero_point, b
    )
    products = conv(x, w, b, auto_pad=auto_pad, dilations=dilations, group=group, pads=pads, strides=strides)
    return _requantise(products, x_scale, w_scale, y_scale, y_zero_point)
