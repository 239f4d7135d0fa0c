"""Normalisation: batch, instance, group, layer, root-mean-square, Lp, local response.

Most are y = scale x^ + bias with x^ = (x - mean) / sigma and sigma^2 = var + epsilon over n elements. The Jacobian of
the normalisation is dx^_j/dx_i = (delta_ij - 1/n - x^_i x^_j / n) / sigma, from which the second-derivative rules
follow in closed form.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from onnx_obd.mirror.axes import Node, along
from onnx_obd.mirror.registry import DType, OutputCount, op
from onnx_obd.mirror.second import Call, broadcast_squares


def _standardise(x, dims, epsilon, centred=True):
    """x^, mean and sigma over ``dims``; about zero instead of the mean if not ``centred``."""
    if centred:
        variance, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
    else:
        variance, mean = x.square().mean(dims, keepdim=True), 0.0
    sigma = (variance + epsilon).sqrt()
    return (x - mean) / sigma, mean, sigma


def _standardise_second(h, normal, sigma, dims, centred=True):
    """h of x from that of x^: sum_j (dx^_j/dx_i)^2 h_j."""
    n = math.prod(normal.shape[dim] for dim in dims)
    square = normal.square()
    moment = (h * square).sum(dims, keepdim=True)
    if centred:
        total, cross = h.sum(dims, keepdim=True), (h * normal).sum(dims, keepdim=True)
        spread, own = total + 2 * normal * cross + square * moment, 1 + square
    else:
        spread, own = square * moment, square
    return (h * (1 - 2 * own / n) + spread / n**2) / sigma.square()


def _affine_second(h, normal, scale):
    """h of x^, scale and bias of y = scale x^ + bias."""
    return h * scale.square(), (h * normal.square()).sum_to_size(scale.shape), h.sum_to_size(scale.shape)


def _all_h(call: Call, h):
    """The h of every output, zeros where there is none."""
    return [
        None if y is None else torch.zeros_like(y) if value is None else value
        for y, value in zip(call.outputs, h, strict=True)
    ]


def _shaped(call: Call, found):
    """Each h in the shape of its input, for the wanted inputs."""
    triples = zip(found, call.inputs, call.wanted, strict=False)
    return [value.reshape(given.shape) if wanted else None for value, given, wanted in triples]


# ---- batch


def _per_channel(value, x):
    """A vector over the channels of x, or (spatial=0) one value for each element of an image, against x."""
    return value.view(-1, *[1] * (x.dim() - 2)) if value.numel() == x.shape[1] else value.view(x.shape[1:])


def _batch_dims(scale, x):
    return tuple(d for d in range(x.dim()) if d == 0 or (d > 1 and scale.shape[d - 1] == 1))


def _batch_given(x, scale, bias, mean, var, epsilon):
    """With given statistics. torch's kernel passes no gradient to these, so they go in through scale and bias."""
    if scale.numel() != x.shape[1]:
        scale, bias, mean, var = (_per_channel(value, x) for value in (scale, bias, mean, var))
        return (x - mean) / (var + epsilon).sqrt() * scale + bias
    if not torch.is_grad_enabled():
        if x.dim() != 3 or x.is_contiguous():
            return torch.batch_norm(x, scale, bias, mean, var, False, 0.0, epsilon, False)
        y = torch.batch_norm(x.unsqueeze(3), scale, bias, mean, var, False, 0.0, epsilon, False)
        return y.squeeze(3)  # of images torch's kernel knows that the channels may lie side by side
    slope = scale * (var + epsilon).rsqrt()
    none, one = torch.zeros_like(var), torch.ones_like(var)
    return torch.batch_norm(x, slope, bias - mean * slope, none, one, False, 0.0, 0.0, False)


def _batch_trained(x, scale, bias, mean, var, epsilon, momentum):
    """With the statistics of the batch; and the running ones it updates, and its own."""
    scale, bias = _per_channel(scale, x), _per_channel(bias, x)
    values = x.to(mean.dtype) if mean.dtype.itemsize > x.dtype.itemsize else x
    normal, batch_mean, sigma = _standardise(values, _batch_dims(scale, x), epsilon)
    own = [value.reshape(mean.shape) for value in (batch_mean, sigma.square() - epsilon)]
    running = [given * momentum + value * (1 - momentum) for given, value in zip((mean, var), own, strict=True)]
    return (normal.to(x.dtype) * scale + bias, *running, *own)


def _batch_second(call: Call, h):
    x, (scale, mean, var) = call.inputs[0], (_per_channel(call.inputs[i], call.inputs[0]) for i in (1, 3, 4))
    epsilon, momentum = call.attributes.get("epsilon", 1e-5), call.attributes.get("momentum", 0.9)
    h_y, *h_running = _all_h(call, h)
    if not h_running:
        sigma = (var + epsilon).sqrt()
        normal = (x - mean) / sigma
        h_normal, h_scale, h_bias = _affine_second(h_y, normal, scale)
        h_x = h_normal / sigma.square()
        h_var = h_scale * (scale / (2 * sigma.square())).square()
        return _shaped(call, (h_x, h_scale, h_bias, h_x.sum_to_size(mean.shape), h_var))
    dims = _batch_dims(scale, x)
    normal, _, sigma = _standardise(x, dims, epsilon)
    h_normal, h_scale, h_bias = _affine_second(h_y, normal, scale)
    h_x = _standardise_second(h_normal, normal, sigma, dims)
    h_running = [_per_channel(value, x) for value in h_running]
    h_own = [value * (1 - momentum) ** 2 for value in h_running[:2]]  # of the batch's mean and variance
    h_own = [value + own for value, own in zip(h_own, h_running[2:], strict=True)] if h_running[2:] else h_own
    share = sigma.numel() / x.numel()
    h_x = h_x + share**2 * (h_own[0] + h_own[1] * (2 * normal * sigma).square())
    return _shaped(call, (h_x, h_scale, h_bias, *(value * momentum**2 for value in h_running[:2])))


def _batch_sample_squares(call: Call, gradients, count: int, axis: int):
    """With given statistics every operand but x has one slope for each element of x."""
    (g, *others), x = gradients, call.inputs[0]
    if any(value is not None for value in others):
        return None
    scale, _, mean, var = (_per_channel(value, x) for value in call.inputs[1:])
    sigma = (var + call.attributes.get("epsilon", 1e-5)).sqrt()
    slopes = (
        None,
        lambda: (x - mean) / sigma,
        lambda: None,
        lambda: -scale / sigma,
        lambda: (x - mean) * scale / (-2 * sigma**3),
    )
    return [
        broadcast_squares(scale.shape, g, slope(), count, axis).reshape(value.shape) if wanted else None
        for value, wanted, slope in zip(call.inputs, call.wanted, slopes, strict=True)
    ]


def batch_axes(trained: bool) -> str:
    n = "_" if trained else "n"
    return f"{n} c _*, c, c, c, c -> {n} c _*, c, c, c, c"


@op(
    "BatchNormalization", 14, 15, second=_batch_second, sample_squares=_batch_sample_squares, constants=(3, 4),
    axes=lambda node: batch_axes(node.get("training_mode")),
)  # fmt: skip
def batch_normalization(x, scale, bias, mean, var, *, epsilon=1e-5, momentum=0.9, training_mode=0,
                        outputs: OutputCount = 1):  # fmt: skip
    if training_mode:
        return _batch_trained(x, scale, bias, mean, var, epsilon, momentum)[:outputs]
    return _batch_given(x, scale, bias, mean, var, epsilon)


@op(
    "BatchNormalization", 1, 6, 7, 9, second=_batch_second, sample_squares=_batch_sample_squares, constants=(3, 4),
    axes=lambda node: batch_axes(len(node.outputs) > 1 and not node.get("is_test")),
)  # fmt: skip
def batch_normalization_1(x, scale, bias, mean, var, *, epsilon=1e-5, is_test=0, momentum=0.9,
                          spatial=1, outputs: OutputCount = 1):  # fmt: skip
    """In the old versions the number of outputs says whether it trains."""
    if outputs > 1 and not is_test:
        return _batch_trained(x, scale, bias, mean, var, epsilon, momentum)[:outputs]
    return _batch_given(x, scale, bias, mean, var, epsilon)


# ---- instance, group


def _group_norm(x, groups, scale, bias, epsilon):
    """torch's kernel; its backward pass for channels-last tensors crashes where only scale and bias have gradients."""
    return torch.group_norm(x.contiguous(), groups, scale, bias, epsilon)


def _group_second(call: Call, h):
    x, scale = call.inputs[:2]
    groups = call.attributes.get("num_groups", x.shape[1])
    parts = x.reshape(x.shape[0], groups, x.shape[1] // groups, -1)
    normal, _, sigma = _standardise(parts, (2, 3), call.attributes.get("epsilon", 1e-5))
    h_normal, h_scale, h_bias = _affine_second(h[0].reshape(parts.shape), normal, scale.view(groups, -1, 1))
    return _shaped(call, (_standardise_second(h_normal, normal, sigma, (2, 3)), h_scale, h_bias))


@op("InstanceNormalization", 1, 6, 22, second=_group_second, axes="n c _*, c, c -> n c _*")
def instance_normalization(x, scale, bias, *, epsilon=1e-5):
    return _group_norm(x, x.shape[1], scale, bias, epsilon)


@op(
    "GroupNormalization", 21, second=_group_second,
    axes="n (num_groups _) _*, (num_groups _), (num_groups _) -> n (num_groups _) _*",
)  # fmt: skip
def group_normalization(x, scale, bias, *, epsilon=1e-5, num_groups, stash_type: DType = torch.float32):
    return _group_norm(x, num_groups, scale, bias, epsilon)


@op(
    "GroupNormalization", 18, second=_group_second,
    axes="n (num_groups _) _*, num_groups, num_groups -> n (num_groups _) _*",
)  # fmt: skip
def group_normalization_18(x, scale, bias, *, epsilon=1e-5, num_groups):
    """Scale and bias are per group, not yet per channel."""
    channels = x.shape[1] // num_groups
    scale, bias = scale.repeat_interleave(channels), bias.repeat_interleave(channels)
    return _group_norm(x, num_groups, scale, bias, epsilon)


# ---- layer, root mean square


def _layer_second(call: Call, h):
    x, scale, dims = _layer_arguments(call)
    normal, _, sigma = _standardise(x, dims, call.attributes.get("epsilon", 1e-5))
    h_y, *h_statistics = _all_h(call, h)
    h_normal, h_scale, _ = _affine_second(h_y, normal, scale)
    h_x = _standardise_second(h_normal, normal, sigma, dims)
    slopes = (1.0, normal / sigma.square())  # times 1/n: of the mean, and of 1/sigma up to its sign
    n = math.prod(x.shape[dim] for dim in dims)
    for value, slope in zip(h_statistics, slopes, strict=False):
        h_x = h_x if value is None else h_x + value * (slope / n) ** 2
    h_bias = [h_y.sum_to_size(bias.shape) for bias in call.inputs[2:] if bias is not None]
    return _shaped(call, (h_x, h_scale, *h_bias))


def _layer_arguments(call: Call):
    x, scale = call.inputs[:2]
    axis = call.attributes.get("axis", -1)
    return x, scale, tuple(range(axis % x.dim(), x.dim()))


def _layer_sample_squares(call: Call, gradients, count: int, axis: int):
    """y = normal scale + bias."""
    g, *others = gradients
    if any(value is not None for value in others):
        return None
    x, _, dims = _layer_arguments(call)
    slope, _, _ = _standardise(x, dims, call.attributes.get("epsilon", 1e-5)) if call.wanted[1] else (None,) * 3
    triples = zip(call.inputs, call.wanted, (None, slope, None), strict=False)
    return [broadcast_squares(v.shape, g, slope, count, axis) if wanted else None for v, wanted, slope in triples]


def layer_axes(node: Node) -> str:
    """Along ``axis`` and those after it."""
    own = along("axis", rest=True)(node)
    return f"{own}, _*, _* -> {own}, {own}, {own}"


@op("LayerNormalization", 17, second=_layer_second, sample_squares=_layer_sample_squares, axes=layer_axes)
def layer_normalization(x, scale, bias=None, *, axis=-1, epsilon=1e-5, stash_type: DType = torch.float32,
                        outputs: OutputCount = 1):  # fmt: skip
    shape = x.shape[axis:]
    if outputs == 1 and scale.shape == shape and (bias is None or bias.shape == shape):
        return torch.layer_norm(x, shape, scale, bias, epsilon, False)
    dims = tuple(range(axis % x.dim(), x.dim()))
    values = x.to(torch.promote_types(x.dtype, stash_type))
    normal, mean, sigma = _standardise(values, dims, epsilon)
    y = normal.to(x.dtype) * scale
    return (y if bias is None else y + bias, mean, 1 / sigma)[:outputs]


def _rms_second(call: Call, h):
    x, scale, dims = _layer_arguments(call)
    normal, _, sigma = _standardise(x, dims, call.attributes.get("epsilon", 1e-5), centred=False)
    h_normal, h_scale, _ = _affine_second(h[0], normal, scale)
    return _shaped(call, (_standardise_second(h_normal, normal, sigma, dims, centred=False), h_scale))


@op("RMSNormalization", 23, second=_rms_second, axes=layer_axes)
def rms_normalization(x, scale, *, axis=-1, epsilon=1e-5, stash_type: DType = torch.float32):
    values = x.to(torch.promote_types(x.dtype, stash_type))
    power = values.square().mean(tuple(range(axis % x.dim(), x.dim())), keepdim=True)
    return (values * (power + epsilon).rsqrt()).to(x.dtype) * scale


# ---- without weights


def _mean_variance_second(call: Call, h):
    x, dims = call.inputs[0], call.attributes.get("axes", (0, 2, 3))
    normal, _, sigma = _standardise(x, dims, 0.0)
    return (_standardise_second(h[0], normal, sigma, dims),)


@op("MeanVarianceNormalization", 9, 13, second=_mean_variance_second, axes=along("axes"))
def mean_variance_normalization(x, *, axes=(0, 2, 3)):
    variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    return (x - mean) / (variance.sqrt() + 1e-9)


def _statistics_dims(x, across_channels=0, **_):
    return tuple(range(x.dim())) if across_channels else tuple(d for d in range(x.dim()) if d != 1)


def _mean_variance_1_second(call: Call, h):
    x, dims = call.inputs[0], _statistics_dims(call.inputs[0], **call.attributes)
    normal, _, sigma = _standardise(x, dims, 0.0)
    if call.attributes.get("normalize_variance", 1):
        return (_standardise_second(h[0], normal, sigma, dims),)
    n = x.numel() // sigma.numel()  # dy_j/dx_i = delta_ij - 1/n
    return (h[0] * (1 - 2 / n) + h[0].sum(dims, keepdim=True) / n**2,)


@op("MeanVarianceNormalization", 1, second=_mean_variance_1_second, axes="_*")
def mean_variance_normalization_1(input, *, across_channels=0, normalize_variance=1):
    """The withdrawn form, with flags instead of axes."""
    dims = _statistics_dims(input, across_channels)
    if normalize_variance:
        return mean_variance_normalization(input, axes=dims)
    return input - input.mean(dims, keepdim=True)


def _lp_second(call: Call, h):
    """dy_j/dx_i = (delta_ij - g_i y_j) / r with r the norm and g its gradient."""
    x, y = call.inputs[0], call.outputs[0]
    p, axis = call.attributes.get("p", 2), call.attributes.get("axis", -1)
    norm = torch.linalg.vector_norm(x, p, dim=axis, keepdim=True)
    gradient = x.sign() if p == 1 else y
    total = (h[0] * y.square()).sum(axis, keepdim=True)
    return ((h[0] * (1 - 2 * gradient * y) + gradient.square() * total) / norm.square(),)


@op("LpNormalization", 1, 22, second=_lp_second, axes=along("axis"))
def lp_normalization(x, *, axis=-1, p=2):
    norm = torch.linalg.vector_norm(x, p, dim=axis, keepdim=True)
    return x / norm.masked_fill(norm == 0, 1)


def _across_channels(values, size, transposed=False):
    """The sum over the window of ``size`` channels around each; ``transposed``: over the windows that hold it."""
    before, after = (size - 1) // 2, size // 2
    before, after = (after, before) if transposed else (before, after)
    rows = values.flatten(2).unsqueeze(1)  # [N, 1, C, elements]
    return F.avg_pool2d(F.pad(rows, (0, 0, before, after)), (size, 1), 1, divisor_override=1).reshape(values.shape)


def _lrn_second(call: Call, h):
    """y_j = x_j d_j^-beta, d_j = bias + a sum x^2 over the window: dy_j/dx_i = delta_ij d^-beta - 2 a beta x_i v_j."""
    x, get = call.inputs[0], call.attributes.get
    size, beta, a = get("size"), get("beta", 0.75), get("alpha", 1e-4) / get("size")
    d = get("bias", 1.0) + a * _across_channels(x.square(), size)
    v = x * d ** (-beta - 1)
    cross = 2 * a * beta * x
    around = _across_channels(h[0] * v.square(), size, transposed=True)
    return (h[0] * (d ** (-2 * beta) - 2 * cross * v * d**-beta) + cross.square() * around,)


@op("LRN", 1, 13, second=_lrn_second, axes="n _*")
def lrn(x, *, alpha=1e-4, beta=0.75, bias=1.0, size):
    return x / (bias + alpha / size * _across_channels(x.square(), size)) ** beta
