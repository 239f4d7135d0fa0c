"""com.microsoft: what onnxruntime's optimiser fuses out of products, convolutions, activations and normalisations.

Each is written out in the operators it was fused from; its second-derivative rule follows from theirs.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F

from onnx_obd.mirror.axes import ELEMENTWISE, Node, along
from onnx_obd.mirror.composite import composite, part
from onnx_obd.mirror.ops import activations, convolution, linear, normalization, pooling, softmax
from onnx_obd.mirror.ops.named_activations import named_activation
from onnx_obd.mirror.products import Product, matrix_product, row_bias
from onnx_obd.mirror.registry import DType, Ints, OutputCount, family, op

microsoft_op = family(domain="com.microsoft", second=composite)

_conv, _conv_transpose = part(convolution.conv), part(convolution.conv_transpose)
_gemm, _matmul, _max_pool = part(linear.gemm), part(linear.matmul), part(pooling.max_pool)
_softmax, _gelu, _swish = part(softmax.softmax_1), part(activations.gelu), part(activations.swish)
_layer_norm, _rms_norm = part(normalization.layer_normalization), part(normalization.rms_normalization)
_group_norm = part(normalization.group_normalization)


def _activated(y, name: str, parameters):
    """``y`` through the activation of that name, none if it is empty; ``parameters`` in the order of its attributes."""
    parameters = iter(parameters or ())
    return named_activation(name, parameters, parameters)(y) if name else y


# ---- convolutions


def _conv_product(position, inputs, attributes) -> Product:
    return convolution.conv_product(position, inputs[:3], attributes).inside()


def _nhwc_product(position, inputs, attributes) -> Product:
    x, *others = inputs
    return _conv_product(position, (_channels_first(x), *others), attributes)


@microsoft_op("FusedConv", 1, weights=(1,), axes=convolution.CONV_AXES, product=_conv_product)
def fused_conv(
    x, w, b=None, z=None, *, activation="", activation_params=None, auto_pad="NOTSET", dilations=None, group=1,
    kernel_shape=None, pads=None, strides=None,
):  # fmt: skip
    """activation(Conv(x, w, b) + z)."""
    y = _conv(x, w, b, auto_pad=auto_pad, dilations=dilations, group=group, pads=pads, strides=strides)
    return _activated(y if z is None else y + z, activation, activation_params)


def _channels_first(x):
    return None if x is None else x.movedim(-1, 1)


_NHWC_CONV_AXES = "n _* (group c), (group channel) c _*, (group channel), n _* (group channel) -> n _* (group channel)"


@microsoft_op("NhwcConv", 1, weights=(1,), axes=_NHWC_CONV_AXES, product=_nhwc_product)
def nhwc_conv(x, w, b=None, *, auto_pad="NOTSET", dilations=None, group=1, kernel_shape=None, pads=None, strides=None):
    """Conv on [N, ..., C]; the kernel stays [M, C/group, ...]."""
    geometry = {"auto_pad": auto_pad, "dilations": dilations, "group": group, "pads": pads, "strides": strides}
    return _conv(_channels_first(x), w, b, **geometry).movedim(1, -1)


@microsoft_op("NhwcFusedConv", 1, weights=(1,), axes=_NHWC_CONV_AXES, product=_nhwc_product)
def nhwc_fused_conv(
    x, w, b=None, z=None, *, activation="", activation_params=None, auto_pad="NOTSET", dilations=None, group=1,
    kernel_shape=None, pads=None, strides=None,
):  # fmt: skip
    y = fused_conv(
        _channels_first(x), w, b, _channels_first(z), activation=activation, activation_params=activation_params,
        auto_pad=auto_pad, dilations=dilations, group=group, pads=pads, strides=strides,
    )  # fmt: skip
    return y.movedim(1, -1)


@microsoft_op("NhwcMaxPool", 1, axes="n _* c")
def nhwc_max_pool(x, *, auto_pad="NOTSET", ceil_mode=0, dilations=None, kernel_shape, pads=None, strides=None):
    geometry = {"auto_pad": auto_pad, "ceil_mode": ceil_mode, "dilations": dilations, "pads": pads, "strides": strides}
    return _max_pool(_channels_first(x), kernel_shape=kernel_shape, **geometry).movedim(1, -1)


def _dynamic_pads_product(position, inputs, attributes) -> Product:
    x, w, pads, b = (*inputs, None, None)[:4]
    given = {} if pads is None else {"pads": tuple(int(p) for p in pads)}
    found = convolution.conv_transpose_product(position, (x, w), {**attributes, **given})
    return replace(found, bias=row_bias(3, b, attributes.get("group", 1)))


@microsoft_op(
    "ConvTransposeWithDynamicPads", 1, weights=(1,), product=_dynamic_pads_product,
    axes="n (group c) _*, (group c) channel _*, , (group channel) -> n (group channel) _*",
)  # fmt: skip
def conv_transpose_with_dynamic_pads(
    x, w, pads: Ints | None = None, b=None, *, auto_pad="NOTSET", dilations=None, group=1, kernel_shape=None,
    output_padding=None, strides=None,
):  # fmt: skip
    geometry = {"auto_pad": auto_pad, "dilations": dilations, "group": group, "strides": strides}
    return _conv_transpose(x, w, b, pads=pads, output_padding=output_padding, **geometry)


# ---- products


def _fused_gemm_product(position, inputs, attributes) -> Product:
    return linear.gemm_product(position, inputs, attributes).inside()


@microsoft_op("FusedGemm", 1, weights=(0, 1), axes=linear.gemm_axes, product=_fused_gemm_product)
def fused_gemm(
    a, b, c=None, *, activation="", activation_alpha=None, activation_beta=None, activation_gamma=None, alpha=1.0,
    beta=1.0, transA=0, transB=0,
):  # fmt: skip
    y = _gemm(a, b, c, alpha=alpha, beta=beta, transA=transA, transB=transB)
    return _activated(y, activation, [p for p in (activation_alpha, activation_beta) if p is not None])


def _fused_matmul_axes(node: Node) -> str | None:
    if node.get("transBatchA") or node.get("transBatchB"):
        return None
    a, b = "k i" if node.get("transA") else "i k", "neuron k" if node.get("transB") else "k neuron"
    return f"... {a}, ... {b} -> ... i neuron"


def _fused_matmul_product(position, inputs, attributes) -> Product | None:
    alpha = attributes.get("alpha", 1.0)
    turns = [(attributes.get(f"trans{side}", 0), attributes.get(f"transBatch{side}", 0)) for side in "AB"]
    found = matrix_product(position, *(_turned(value, *turn) for value, turn in zip(inputs, turns, strict=True)))
    return found and replace(
        found,
        features=lambda chosen: alpha * found.features(chosen),
        matrix=lambda w: found.matrix(_turned(w, *turns[position])),
        outputs=None,
    )


@microsoft_op("FusedMatMul", 1, weights=(0, 1), axes=_fused_matmul_axes, product=_fused_matmul_product)
def fused_matmul(a, b, *, alpha=1.0, transA=0, transB=0, transBatchA=0, transBatchB=0):
    """alpha a b; an operand with ``transBatch`` is [rows, *batch, columns], one with ``trans`` is turned after that."""
    a, b = _turned(a, transA, transBatchA), _turned(b, transB, transBatchB)
    y = _matmul(a, b)
    return y if alpha == 1.0 else alpha * y


def _turned(operand, transposed: int, batch_inside: int):
    if operand.dim() < 2:
        return operand
    operand = operand.movedim(0, -2) if batch_inside else operand
    return operand.mT if transposed else operand


@microsoft_op("TransposeMatMul", 1, weights=(0, 1), axes=_fused_matmul_axes, product=_fused_matmul_product)
def transpose_matmul(a, b, *, alpha=1.0, transA=0, transB=0):
    return fused_matmul(a, b, alpha=alpha, transA=transA, transB=transB)


@microsoft_op("FusedMatMulActivation", 1, weights=(0, 1), axes=_fused_matmul_axes, product=_fused_matmul_product)
def fused_matmul_activation(
    a, b, *, activation, activation_alpha=None, activation_axis=None, activation_beta=None, activation_gamma=None,
    alpha=1.0, transA=0, transB=0, transBatchA=0, transBatchB=0,
):  # fmt: skip
    y = fused_matmul(a, b, alpha=alpha, transA=transA, transB=transB, transBatchA=transBatchA, transBatchB=transBatchB)
    return _activated(y, activation, [p for p in (activation_alpha, activation_beta) if p is not None])


def _fast_gelu_product(position, inputs, attributes) -> Product | None:
    x, w, bias = (*inputs, None)[:3]
    found = matrix_product(position, x, w)
    return found and replace(found, outputs=None, bias=row_bias(2, bias) if position else None)


@microsoft_op(
    "GemmFastGelu", 1, weights=(0, 1), axes="... i k, k neuron, neuron -> ... i neuron", product=_fast_gelu_product
)
def gemm_fast_gelu(x, w, bias=None):
    return fast_gelu(_matmul(x, w), bias)


# ---- activations


@microsoft_op("Gelu", 1, axes=ELEMENTWISE)
def gelu(x):
    return _gelu(x)


@microsoft_op("FastGelu", 1, axes=ELEMENTWISE)
def fast_gelu(x, bias=None):
    return _gelu(x if bias is None else x + bias, approximate="tanh")


@microsoft_op("BiasGelu", 1, axes=ELEMENTWISE)
def bias_gelu(a, b):
    return _gelu(a + b)


@microsoft_op("QuickGelu", 1, axes=ELEMENTWISE)
def quick_gelu(x, *, alpha=1.702):
    """x sigmoid(alpha x)."""
    return _swish(x, alpha=alpha)


@microsoft_op("BiasSplitGelu", 1, axes="... [c + c], [c + c] -> ... c")
def bias_split_gelu(x, bias):
    """l gelu(r) for the halves l, r of x + bias."""
    left, right = (x + bias).chunk(2, -1)
    return left * _gelu(right)


@microsoft_op("BiasAdd", 1, axes=ELEMENTWISE)
def bias_add(x, bias, skip):
    return x + bias + skip


@microsoft_op("BiasSoftmax", 1, axes=along("axis", rest=True))
def bias_softmax(data, bias, *, axis=1, is_inner_broadcast):
    """Softmax over the axes from ``axis`` on; bias has the shape of data with ones where it is repeated."""
    return _softmax(data + bias, axis=axis)


# ---- normalisations: some outputs are statistics for training, which onnxruntime leaves empty too


_SKIP_NORM_AXES = "... _, ... _, _, _, _ -> ... _, ... _, ... _, ... _"


@microsoft_op("SkipLayerNormalization", 1, axes=_SKIP_NORM_AXES)
def skip_layer_normalization(input, skip, gamma, beta=None, bias=None, *, epsilon=1e-12):
    """LayerNormalization of s = input + skip + bias; s is the fourth output."""
    total = _sum(input, skip, bias)
    return _layer_norm(total, gamma, beta, epsilon=epsilon), None, None, total


@microsoft_op("SkipSimplifiedLayerNormalization", 1, axes=_SKIP_NORM_AXES)
def skip_simplified_layer_normalization(input, skip, gamma, bias=None, *, epsilon=1e-12):
    total = _sum(input, skip, bias)
    return _rms_norm(total, gamma, epsilon=epsilon), None, None, total


def _sum(input, skip, bias):
    return input + skip if bias is None else input + skip + bias


@op("SimplifiedLayerNormalization", 1, second=composite, axes=normalization.layer_axes)
@microsoft_op("SimplifiedLayerNormalization", 1, axes=normalization.layer_axes)
def simplified_layer_normalization(
    x, scale, *, axis=-1, epsilon=1e-5, stash_type: DType = torch.float32, outputs: OutputCount = 1
):
    """Divides by the root mean square; and its inverse."""
    y = _rms_norm(x, scale, axis=axis, epsilon=epsilon, stash_type=stash_type)
    if outputs == 1:
        return y
    power = x.to(torch.promote_types(x.dtype, stash_type)).square().mean(tuple(range(axis % x.dim(), x.dim())), True)
    return y, (power + epsilon).rsqrt()


@microsoft_op(
    "EmbedLayerNormalization", 1, weights=(2, 3, 4),
    axes="b t, b t, _ _, _ _, _ _, _, _, _*, _* -> b t _, b, b t _",
)  # fmt: skip
def embed_layer_normalization(
    input_ids, segment_ids, word_embedding, position_embedding, segment_embedding, gamma, beta, mask=None,
    position_ids=None, *, epsilon=1e-12, mask_index_type=0,
):  # fmt: skip
    """LayerNormalization of the sum of the embeddings; the number of unmasked words of each row; the sum."""
    if position_ids is None:
        position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)
    total = F.embedding(input_ids, word_embedding) + F.embedding(position_ids, position_embedding)
    if segment_embedding is not None:
        total = total + F.embedding(segment_ids, segment_embedding)
    count = input_ids.new_zeros(len(input_ids)) if mask is None else mask.sum(1)
    return _layer_norm(total, gamma, beta, epsilon=epsilon), count.to(torch.int32), total


def _group_norm_axes(node: Node) -> str:
    """The skip of SkipGroupNorm is an image, or one number for each channel."""
    own = "(groups _)"
    x = f"n _* {own}" if node.get("channels_last") else f"n {own} _*"
    skip = f"n {own}" if len(node.inputs) > 3 and node.inputs[3].dim() == 2 else x
    return f"{x}, {own}, {own}, {skip}, {own} -> {x}, {x}"


@microsoft_op("GroupNorm", 1, axes=_group_norm_axes)
def group_norm(x, gamma, beta, *, activation, channels_last=1, epsilon=1e-5, groups):
    y = _group_norm(_channels_first(x) if channels_last else x, gamma, beta, num_groups=groups, epsilon=epsilon)
    y = _swish(y) if activation else y
    return y.movedim(1, -1) if channels_last else y


@microsoft_op("SkipGroupNorm", 1, axes=_group_norm_axes)
def skip_group_norm(x, gamma, beta, skip, bias=None, *, activation, channels_last=1, epsilon=1e-5, groups):
    """GroupNorm of s = x + skip + bias; and s."""
    if skip.dim() == 2:
        skip = skip[:, None, None, :] if channels_last else skip[:, :, None, None]
    if bias is not None and not channels_last:
        bias = bias.view(-1, 1, 1)
    total = _sum(x, skip, bias)
    y = group_norm(
        total, gamma, beta, activation=activation, channels_last=channels_last, epsilon=epsilon, groups=groups
    )
    return y, total
