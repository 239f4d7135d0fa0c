"""com.microsoft: operators on quantised tensors, element by element or window by window, and integer products.

Those called QLinear compute q(f(d(x), ...)): d takes whole numbers to floats by the scale and zero point of each input,
q takes the result to those of the output. All are made of ONNX's own quantisation, straight-through gradient included.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from onnx_obd.mirror.axes import ELEMENTWISE, Node, along, names
from onnx_obd.mirror.composite import composite, part
from onnx_obd.mirror.ops import (
    activations,
    linear,
    microsoft_attention,
    microsoft_fused,
    pooling,
    recurrent,
    shape,
    softmax,
)
from onnx_obd.mirror.ops import quantize as onnx_quantize
from onnx_obd.mirror.ops.quantize import bias_grid, on_grid
from onnx_obd.mirror.products import Product, matrix_product, row_bias
from onnx_obd.mirror.registry import Ints, OutputCount, Stored, family
from onnx_obd.mirror.values import Quantised, plain

microsoft_op = family(domain="com.microsoft", second=composite)

_quantize, _dequantize = part(onnx_quantize.quantize_linear), part(onnx_quantize.dequantize_linear)
_dynamic_quantize = part(onnx_quantize.dynamic_quantize_linear)
_matmul_integer, _qlinear_conv = part(onnx_quantize.matmul_integer), part(onnx_quantize.qlinear_conv)
_average_pool, _global_average_pool = part(pooling.average_pool), part(pooling.global_average_pool)
_leaky_relu, _sigmoid = part(activations.leaky_relu), part(activations.sigmoid)
_softmax, _softmax_1 = part(softmax.softmax), part(softmax.softmax_1)


def _zero_point(given: Tensor | None, like: Tensor) -> Tensor:
    """A zero point, 0 of the type of ``like`` where it is absent."""
    if given is not None:
        return given
    return torch.zeros((), dtype=like.element_dtype if isinstance(like, Quantised) else like.dtype, device=like.device)


def _grid_axes(node: Node) -> str:
    axis = node.get("axis")
    scale = names(node.rank)[1 if axis is None else axis] if node.inputs[1].numel() > 1 else ""
    return f"{' '.join(names(node.rank))}, {scale}, {scale} -> {' '.join(names(node.rank))}"


@microsoft_op("QuantizeLinear", 1, recodes=True, constants=(1,), axes=_grid_axes)
def quantize_linear(x, y_scale, y_zero_point=None, *, axis=None):
    return _quantize(x, y_scale, y_zero_point, axis=1 if axis is None else axis)


def _dequantize_grid(q, scale, zero_point=None, *, axis=None):
    return onnx_quantize.dequantize_grid(q, scale, zero_point, axis=1 if axis is None else axis)


@microsoft_op(
    "DequantizeLinear", 1, recodes=True, stored=(Stored(0, (1, 2), _dequantize_grid),), constants=(1,),
    axes=_grid_axes,
)  # fmt: skip
def dequantize_linear(x, x_scale, x_zero_point=None, *, axis=None):
    return _dequantize(x, x_scale, x_zero_point, axis=1 if axis is None else axis)


# ---- element by element


@microsoft_op("QLinearAdd", 1, stored=(on_grid(0, 1, 2), on_grid(3, 4, 5)), constants=(1, 4, 6), axes=ELEMENTWISE)
def qlinear_add(a, a_scale, a_zero_point, b, b_scale, b_zero_point, c_scale, c_zero_point=None):
    total = _dequantize(a, a_scale, a_zero_point) + _dequantize(b, b_scale, b_zero_point)
    return _quantize(total, c_scale, _zero_point(c_zero_point, a))


@microsoft_op("QLinearMul", 1, stored=(on_grid(0, 1, 2), on_grid(3, 4, 5)), constants=(1, 4, 6), axes=ELEMENTWISE)
def qlinear_mul(a, a_scale, a_zero_point, b, b_scale, b_zero_point, c_scale, c_zero_point=None):
    product = _dequantize(a, a_scale, a_zero_point) * _dequantize(b, b_scale, b_zero_point)
    return _quantize(product, c_scale, _zero_point(c_zero_point, a))


@microsoft_op("QLinearLeakyRelu", 1, constants=(1, 3), axes=ELEMENTWISE)
def qlinear_leaky_relu(x, x_scale, x_zero_point, y_scale, y_zero_point=None, *, alpha=0.01):
    y = _leaky_relu(_dequantize(x, x_scale, x_zero_point), alpha=alpha)
    return _quantize(y, y_scale, _zero_point(y_zero_point, x))


@microsoft_op("QLinearSigmoid", 1, constants=(1, 3), axes=ELEMENTWISE)
def qlinear_sigmoid(x, x_scale, x_zero_point, y_scale, y_zero_point=None):
    return _quantize(_sigmoid(_dequantize(x, x_scale, x_zero_point)), y_scale, _zero_point(y_zero_point, x))


@microsoft_op(
    "QLinearSoftmax", 1, constants=(1, 3),
    axes=lambda node: f"{along('axis')(node)}, , , , -> {along('axis')(node)}",
)  # fmt: skip
def qlinear_softmax(x, x_scale, x_zero_point, y_scale, y_zero_point, *, axis=-1, opset):
    """onnxruntime counts the steps of the result by a whole number, so that of ``y_scale`` is a little longer."""
    function = _softmax if opset >= 13 else _softmax_1
    given = y_scale.detach()
    step = y_scale + (1 / torch.floor(1 / given.float()) - given)
    return _quantize(function(_dequantize(x, x_scale, x_zero_point), axis=axis), step, y_zero_point)


@microsoft_op("QLinearWhere", 1, stored=(on_grid(1, 2, 3), on_grid(4, 5, 6)), constants=(2, 5, 7), axes=ELEMENTWISE)
def qlinear_where(condition, x, x_scale, x_zero_point, y, y_scale, y_zero_point, z_scale, z_zero_point):
    z = torch.where(condition, _dequantize(x, x_scale, x_zero_point), _dequantize(y, y_scale, y_zero_point))
    return _quantize(z, z_scale, z_zero_point)


def _qlinear_concat_axes(node: Node) -> str:
    """That of Concat, with a scale and a zero point after each tensor."""
    terms, _, result = shape.concat_axes(replace(node, inputs=node.inputs[2::3])).partition(" -> ")
    return f", , {', , , '.join(terms.split(', '))} -> {result}"


@microsoft_op("QLinearConcat", 1, axes=_qlinear_concat_axes)
def qlinear_concat(y_scale, y_zero_point, *inputs, axis):
    """``inputs`` are triples of a tensor, its scale and its zero point."""
    triples = zip(inputs[::3], inputs[1::3], inputs[2::3], strict=True)
    return _quantize(torch.cat([_dequantize(*three) for three in triples], axis), y_scale, y_zero_point)


# ---- windows


def _pool_axes(node: Node) -> str:
    own = "n _* c" if node.get("channels_last") else "n c _*"
    return f"{own}, , , , -> {own}"


@microsoft_op("QLinearAveragePool", 1, constants=(1, 3), axes=_pool_axes)
def qlinear_average_pool(
    x, x_scale, x_zero_point, y_scale, y_zero_point=None, *, auto_pad="NOTSET", ceil_mode=0, channels_last=0,
    count_include_pad=0, kernel_shape, pads=None, strides=None,
):  # fmt: skip
    values = _dequantize(x, x_scale, x_zero_point)
    y = _average_pool(
        values.movedim(-1, 1) if channels_last else values, auto_pad=auto_pad, ceil_mode=ceil_mode,
        count_include_pad=count_include_pad, kernel_shape=kernel_shape, pads=pads, strides=strides,
    )  # fmt: skip
    return _quantize(y.movedim(1, -1) if channels_last else y, y_scale, _zero_point(y_zero_point, x))


@microsoft_op("QLinearGlobalAveragePool", 1, constants=(1, 3), axes=_pool_axes)
def qlinear_global_average_pool(x, x_scale, x_zero_point, y_scale, y_zero_point, *, channels_last=0):
    values = _dequantize(x, x_scale, x_zero_point)
    y = _global_average_pool(values.movedim(-1, 1) if channels_last else values)
    return _quantize(y.movedim(1, -1) if channels_last else y, y_scale, y_zero_point)


def _qlinear_conv_axes(node: Node) -> str:
    own, last = "(group channel)", node.get("channels_last")
    x, y = ("n _* (group c)", f"n _* {own}") if last else ("n (group c) _*", f"n {own} _*")
    return f"{x}, , , {own} c _*, {own}, {own}, , , {own} -> {y}"


def _qlinear_conv_product(position, inputs, attributes) -> Product:
    x, *others = inputs
    x = x.movedim(-1, 1) if attributes.get("channels_last") else x
    return onnx_quantize.qlinear_conv_product(position, (x, *others), attributes)


@microsoft_op(
    "QLinearConv", 1, weights=(3,), constants=(1, 4, 6), stored=(on_grid(3, 4, 5), bias_grid(8, 1, 4)),
    axes=_qlinear_conv_axes, product=_qlinear_conv_product,
)  # fmt: skip
def qlinear_conv(
    x, x_scale, x_zero_point, w, w_scale, w_zero_point, y_scale, y_zero_point, b=None, *, auto_pad="NOTSET",
    channels_last=0, dilations=None, group=1, kernel_shape=None, pads=None, strides=None,
):  # fmt: skip
    """ONNX's QLinearConv; with ``channels_last`` on [N, ..., C], the kernel stays as it is."""
    y = _qlinear_conv(
        x.movedim(-1, 1) if channels_last else x, x_scale, x_zero_point, w, w_scale, w_zero_point, y_scale,
        y_zero_point, b, auto_pad=auto_pad, dilations=dilations, group=group, pads=pads, strides=strides,
    )  # fmt: skip
    return y.movedim(1, -1) if channels_last else y


# ---- products


def _to_float_product(position, inputs, attributes) -> Product | None:
    a, b, a_scale, b_scale, a_zero_point, b_zero_point, bias = (*inputs, *[None] * 7)[:7]
    a = onnx_quantize.dequantize_linear(a, a_scale, a_zero_point, axis=-2)
    found = matrix_product(position, a, onnx_quantize.dequantize_linear(b, b_scale, b_zero_point, axis=-1))
    return found and replace(found, bias=row_bias(6, bias) if position else None)


@microsoft_op(
    "MatMulIntegerToFloat", 1, weights=(0, 1), constants=(2, 3), stored=(on_grid(0, 2, 4, -2), on_grid(1, 3, 5, -1)),
    axes=lambda node: f"{linear.matmul_axes(node).partition('->')[0]}, i, neuron, i, neuron, neuron -> ... i neuron",
    product=_to_float_product,
)  # fmt: skip
def matmul_integer_to_float(a, b, a_scale, b_scale, a_zero_point=None, b_zero_point=None, bias=None):
    """(a - a_zero_point) (b - b_zero_point) a_scale b_scale + bias; those of b are one number or one per column."""
    y = plain(_matmul_integer(a, b, a_zero_point, b_zero_point)).to(a_scale.dtype) * (a_scale * b_scale)
    return y if bias is None else y + bias


def _dynamic_product(position, inputs, attributes) -> Product | None:
    a, b, b_scale, b_zero_point, bias = (*inputs, *[None] * 5)[:5]
    if not position:
        return None
    a = onnx_quantize.dequantize_linear(*onnx_quantize.dynamic_quantize_linear(a))
    b = onnx_quantize.dequantize_linear(b, b_scale, b_zero_point, axis=-1)
    return replace(matrix_product(1, a, b), bias=row_bias(4, bias))


@microsoft_op(
    "DynamicQuantizeMatMul", 1, weights=(0, 1), constants=(2,), stored=(on_grid(1, 2, 3, -1),),
    axes="_*, _ neuron, neuron, neuron, neuron -> _* neuron", product=_dynamic_product,
)  # fmt: skip
def dynamic_quantize_matmul(a, b, b_scale, b_zero_point=None, bias=None):
    """The same for an ``a`` that is quantised here by its extremes."""
    a, a_scale, a_zero_point = _dynamic_quantize(a)
    return matmul_integer_to_float(a, b, a_scale, b_scale, a_zero_point, b_zero_point, bias)


def _qgemm_axes(node: Node) -> str:
    a, b = "k i" if node.get("transA") else "i k", "neuron k" if node.get("transB") else "k neuron"
    return f"{a}, , , {b}, neuron, neuron, i neuron, , -> i neuron"


def _columns_grid(q, scale, zero_point=None, *, transB=0, **_):
    return onnx_quantize.dequantize_grid(q, scale, zero_point, axis=0 if transB else 1)


def _shift_grid(q, a_scale, b_scale, *, alpha=1.0, **_):
    return alpha * a_scale * b_scale, torch.zeros((), dtype=torch.int32)


def _qgemm_product(position, inputs, attributes) -> Product:
    a, a_scale, a_zero_point, b, b_scale, b_zero_point, c, y_scale = (*inputs, None, None)[:8]
    a = onnx_quantize.dequantize_linear(a, a_scale, a_zero_point)
    b = onnx_quantize.dequantize_linear(b, b_scale, b_zero_point, axis=0 if attributes.get("transB") else 1)
    found = linear.gemm_product(1 if position else 0, (a, b, c), attributes)
    found = replace(found, bias=found.bias and replace(found.bias, position=6))
    return found if y_scale is None else found.inside()


@microsoft_op(
    "QGemm", 1, weights=(0, 3), constants=(1, 4, 7),
    stored=(on_grid(0, 1, 2), Stored(3, (4, 5), _columns_grid), Stored(6, (1, 4), _shift_grid)), axes=_qgemm_axes,
    product=_qgemm_product,
)  # fmt: skip
def qgemm(
    a, a_scale, a_zero_point, b, b_scale, b_zero_point, c=None, y_scale=None, y_zero_point=None, *, alpha=1.0,
    transA=0, transB=0,
):  # fmt: skip
    """alpha a_scale b_scale (a b + c) for centred a and b; quantised where ``y_scale`` is given, otherwise floats."""
    products = _matmul_integer(a.mT if transA else a, b.mT if transB else b, a_zero_point, b_zero_point)
    products = plain(products).to(a_scale.dtype)
    y = (products if c is None else products + c) * (alpha * a_scale * b_scale)
    return y if y_scale is None else _quantize(y, y_scale, y_zero_point)


@microsoft_op(
    "QAttention", 1, weights=(1,), constants=(3, 4), stored=(on_grid(1, 4, 7, -1),),
    axes="b t i, i (3 num_heads _), (3 num_heads _), , (3 num_heads _), _*, , (3 num_heads _), _ b num_heads _ _ "
    "-> b t (num_heads _), _ b num_heads _ _",
)  # fmt: skip
def qattention(
    input, weight, bias, input_scale, weight_scale, mask_index=None, input_zero_point=None, weight_zero_point=None,
    past=None, *, do_rotary=0, mask_filter_value=-10000.0, num_heads, past_present_share_buffer=0, scale=None,
    unidirectional=0, outputs: OutputCount = 1,
):  # fmt: skip
    """Attention of com.microsoft, whose projection alone is quantised."""
    microsoft_attention.refuse(do_rotary=do_rotary, past_present_share_buffer=past_present_share_buffer)
    projected = matmul_integer_to_float(
        input, weight, input_scale, weight_scale, input_zero_point, weight_zero_point, bias
    )
    return microsoft_attention.self_attention(
        projected, mask_index, past, None, num_heads, mask_filter_value, None, scale, unidirectional, outputs
    )


# ---- layers of a network


def _direction_grid(q, scale, zero_point, **_):
    """One number for each direction, or one for each column of each."""
    return scale.view(len(q), 1, -1), zero_point.view(len(q), 1, -1)


@microsoft_op(
    "DynamicQuantizeLSTM", 1, weights=(1, 2), constants=(8, 10),
    axes="_*",
    stored=(Stored(1, (8, 9), _direction_grid), Stored(2, (10, 11), _direction_grid)),
)  # fmt: skip
def dynamic_quantize_lstm(
    x, w, r, b, sequence_lens: Ints | None, initial_h, initial_c, p, w_scale, w_zero_point, r_scale, r_zero_point, *,
    activation_alpha=None, activation_beta=None, activations=None, clip=None, direction="forward", hidden_size=None,
    input_forget=0,
):  # fmt: skip
    """LSTM with weights [D, I, 4*H] and [D, H, 4*H]; inputs and hidden states are quantised by their extremes.

    onnxruntime quantises the hidden states of a step together only where one thread has the whole batch.
    """
    layer = recurrent.Layer(x, w, r.mT, b, sequence_lens, [initial_h, initial_c], direction, 0)

    def projected(d: int) -> Tensor:
        y = dynamic_quantize_matmul(x, w[d], w_scale[d], w_zero_point[d])
        return y if b is None else y + sum(layer.bias(d))

    def gates(d: int):
        return lambda x, h: x + dynamic_quantize_matmul(h, r[d], r_scale[d], r_zero_point[d])

    functions = recurrent.layer_activations(
        3, len(r), activations or recurrent.LSTM_ACTIVATIONS * len(r), activation_alpha, activation_beta, clip
    )
    cells = [
        recurrent.lstm_cell(gates(d), *three, None if p is None else p[d], input_forget)
        for d, three in enumerate(functions)
    ]
    return layer.loop(cells, [projected(d) for d in range(len(r))])


_EMBEDDING_GRIDS = tuple(
    on_grid(operand, scale, zero_point) for operand, scale, zero_point in
    ((2, 8, 13), (3, 9, 14), (4, 10, 15), (5, 11, 16), (6, 12, 17))
)  # fmt: skip


@microsoft_op(
    "QEmbedLayerNormalization", 1, weights=(2, 3, 4), constants=(8, 9, 10, 11, 12), stored=_EMBEDDING_GRIDS,
    axes="b t, b t, _ _, _ _, _ _, _, _, _* -> b t _, b",
)  # fmt: skip
def qembed_layer_normalization(
    input_ids, segment_ids, word_embedding, position_embedding, segment_embedding, gamma, beta, mask,
    word_embedding_scale, position_embedding_scale, segment_embedding_scale, gamma_scale, beta_scale,
    word_embedding_zero_point, position_embedding_zero_point, segment_embedding_zero_point, gamma_zero_point,
    beta_zero_point, *, epsilon=1e-12,
):  # fmt: skip
    """EmbedLayerNormalization of tables, gamma and beta that are quantised."""
    word = _dequantize(word_embedding, word_embedding_scale, word_embedding_zero_point)
    position = _dequantize(position_embedding, position_embedding_scale, position_embedding_zero_point)
    segment = None
    if segment_embedding is not None:
        segment = _dequantize(segment_embedding, segment_embedding_scale, segment_embedding_zero_point)
    gamma = _dequantize(gamma, gamma_scale, gamma_zero_point)
    beta = _dequantize(beta, beta_scale, beta_zero_point)
    return microsoft_fused.embed_layer_normalization(
        input_ids, segment_ids, word, position, segment, gamma, beta, mask, epsilon=epsilon
    )[:2]
