"""Activations: elementwise functions of one tensor, with a bound or a slope beside it at most."""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F

from onnx_obd.mirror.axes import ELEMENTWISE, Node
from onnx_obd.mirror.registry import family, op
from onnx_obd.mirror.second import elementwise, unit, viewed

elementwise_op = family(second=elementwise, axes=ELEMENTWISE)
unit_op = family(second=unit, axes=ELEMENTWISE)


@unit_op("Relu", 1, 6, 13, 14, in_place=(torch.relu_,))
def relu(x):
    return torch.relu(x)


@elementwise_op("LeakyRelu", 1, 6, 16, in_place=(lambda x, *, alpha=0.01: F.leaky_relu_(x, alpha),))
def leaky_relu(x, *, alpha=0.01):
    return F.leaky_relu(x, alpha)


@elementwise_op("PRelu", 7, 9, 16)
def prelu(x, slope):
    if x.dim() > 1 and slope.shape in ((x.shape[1],) + (1,) * (x.dim() - 2), (1,)):
        return F.prelu(x, slope.reshape(-1))  # one slope per channel, or one in all: torch's kernel
    return torch.where(x < 0, slope * x, x)


def _slope_per_channel(x, slope):
    return x, slope if slope.dim() != 1 or x.dim() < 3 else slope.reshape(-1, *[1] * (x.dim() - 2))


def _slope_axes(node: Node) -> str:
    return "n c _*, c -> n c _*" if node.inputs[1].dim() == 1 and node.rank > 2 else ELEMENTWISE


@op("PRelu", 1, 6, second=viewed(_slope_per_channel), axes=_slope_axes)
def prelu_6(x, slope):
    return prelu(*_slope_per_channel(x, slope))


@unit_op("ThresholdedRelu", 1, 10, 22)
def thresholded_relu(x, *, alpha=1.0):
    return F.threshold(x, alpha, 0.0)


@elementwise_op("Elu", 1, 6, 22)
def elu(x, *, alpha=1.0):
    return F.elu(x, alpha)


@elementwise_op("Selu", 6, 22)
def selu(x, *, alpha=1.6732631921768188, gamma=1.0507010221481323):
    return torch.ops.aten.elu(x, alpha, gamma)


@elementwise_op("Selu", 1)
def selu_1(x, *, alpha=1.6732, gamma=1.0507):
    return selu(x, alpha=alpha, gamma=gamma)


@elementwise_op("Celu", 12, 28)
def celu(x, *, alpha=1.0):
    return F.celu(x, alpha)


@elementwise_op("Gelu", 20)
def gelu(x, *, approximate="none"):
    return F.gelu(x, approximate=approximate)


@elementwise_op("HardSigmoid", 1, 6, 22)
def hard_sigmoid(x, *, alpha=0.2, beta=0.5):
    if beta == 0.5 and math.isclose(alpha, 1 / 6, rel_tol=1e-6) and not torch.is_grad_enabled():
        return F.hardsigmoid(x)  # one pass instead of three, but torch cannot differentiate it twice
    return (alpha * x + beta).clamp(0, 1)


@elementwise_op("HardSwish", 14, 22, in_place=(partial(F.hardswish, inplace=True),))
def hard_swish(x):
    return F.hardswish(x)


@elementwise_op("Mish", 18, 22)
def mish(x):
    return F.mish(x)


@elementwise_op("Swish", 24)
def swish(x, *, alpha=1.0):
    return F.silu(x) if alpha == 1.0 else x * torch.sigmoid(alpha * x)


@elementwise_op("SwiGLU", 28)
def swiglu(a, b, *, alpha=1.0):
    return swish(a, alpha=alpha) * b


@elementwise_op("Softplus", 1, 22)
def softplus(x):
    return F.softplus(x, threshold=torch.inf)


@elementwise_op("Softsign", 1, 22)
def softsign(x):
    return F.softsign(x)


@elementwise_op("Shrink", 9)
def shrink(x, *, bias=0.0, lambd=0.5):
    return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, 0))


@elementwise_op("Sigmoid", 1, 6, 13, distribution="bernoulli", in_place=(torch.sigmoid_,))
def sigmoid(x):
    return torch.sigmoid(x)


@elementwise_op("Tanh", 1, 6, 13, in_place=(torch.tanh_,))
def tanh(x):
    return torch.tanh(x)


@elementwise_op("Erf", 9, 13, in_place=(torch.erf_,))
def erf(x):
    return torch.erf(x)


def _clip(clamp, x, minimum=None, maximum=None):
    if minimum is None and maximum is None:
        return x
    if not torch.is_grad_enabled():  # plain numbers are several times faster than tensors of one element
        minimum = None if minimum is None else minimum.item()
        maximum = None if maximum is None else maximum.item()
    return clamp(x, minimum, maximum)


@unit_op("Clip", 11, 12, 13, in_place=(partial(_clip, torch.clamp_),))
def clip(x, minimum=None, maximum=None):
    return _clip(torch.clamp, x, minimum, maximum)


_LOWEST = -3.4028234663852886e38
"""The least finite float32."""


@unit_op("Clip", 6, in_place=(lambda x, *, min=_LOWEST, max=-_LOWEST: torch.clamp_(x, min, max),))
def clip_6(x, *, min=_LOWEST, max=-_LOWEST):
    return torch.clamp(x, min, max)


@unit_op("Clip", 1)
def clip_1(x, *, min=None, max=None):
    return x if min is None and max is None else torch.clamp(x, min, max)


@elementwise_op("ParametricSoftplus", 1)
def parametric_softplus(x, *, alpha=1.0, beta=1.0):
    return alpha * softplus(beta * x)


@elementwise_op("ScaledTanh", 1)
def scaled_tanh(x, *, alpha=1.0, beta=1.0):
    return alpha * torch.tanh(beta * x)


@elementwise_op("Affine", 1)
def affine(x, *, alpha=1.0, beta=0.0):
    return alpha * x + beta


@elementwise_op("Scale", 1)
def scale(x, *, scale=1.0):
    return scale * x
