"""com.microsoft: mixtures of experts, in floats and with weights of a few bits.

A router gives every token a probability for each of E experts, and the k likeliest are asked. Every expert is a network
of its own: fc2(activation(fc1(x))). Here all experts see all tokens, and those who were not asked count nothing.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from onnx_obd.errors import ModelError
from onnx_obd.mirror.composite import composite, part
from onnx_obd.mirror.ops import activations, linear, softmax
from onnx_obd.mirror.ops.microsoft_packed import in_blocks, pack, unpack
from onnx_obd.mirror.registry import Stored, family
from onnx_obd.mirror.values import Quantised, plain

microsoft_op = family(domain="com.microsoft", second=composite)

_matmul, _softmax = part(linear.matmul), part(softmax.softmax)
_relu, _gelu, _swish = part(activations.relu), part(activations.gelu), part(activations.swish)

_ACTIVATIONS = {
    "relu": _relu, "gelu": partial(_gelu, approximate="tanh"), "silu": _swish, "identity": lambda x: x,
}  # fmt: skip


def _shares(router_probs: Tensor, router_weights: Tensor | None, k: int, normalize: bool) -> Tensor:
    """How much each expert counts for each token, [T, E]: its probability, or its weight, among the k likeliest."""
    probabilities = _softmax(router_probs, axis=-1)
    asked = probabilities.detach().topk(k, -1).indices
    shares = probabilities if router_weights is None else router_weights
    shares = shares * torch.zeros_like(shares.detach()).scatter(-1, asked, 1)
    return shares / shares.sum(-1, keepdim=True) if normalize else shares


def _layer(x: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
    """[E or 1, T, K] by a matrix [N, K] of each expert: [E, T, N]."""
    y = _matmul(x, weights.mT)
    return y if bias is None else y + bias.unsqueeze(1)


def _swiglu(x: Tensor, fusion: int, alpha: float, beta: float, limit: float | None) -> Tensor:
    """G sigmoid(alpha G) (L + beta) of a gate G and a linear part L, interleaved or one behind the other."""
    gate, line = x.unflatten(-1, (-1, 2)).unbind(-1) if fusion == 1 else x.chunk(2, -1)
    if limit is not None:
        gate, line = gate.clamp(max=limit), line.clamp(-limit, limit)
    return _swish(gate, alpha=alpha) * (line + beta)


def _mixture(x, shares, fc1, fc2, fc3, *, activation_type, activation_alpha, activation_beta, swiglu_fusion, limit):
    """The experts' answers by their shares; each fc is a pair of weights and bias, fc3 may have none."""
    tokens = x.reshape(1, -1, x.shape[-1])
    hidden = _layer(tokens, *fc1)
    if activation_type == "swiglu":
        if fc3[0] is not None:
            hidden = torch.cat((hidden, _layer(tokens, *fc3)), -1)
        hidden = _swiglu(hidden, swiglu_fusion, activation_alpha, activation_beta, limit)
    else:
        hidden = _ACTIVATIONS[activation_type](hidden)
        if fc3[0] is not None:
            hidden = hidden * _layer(tokens, *fc3)
    answers = _layer(hidden, *fc2)
    return (answers * shares.mT.unsqueeze(-1)).sum(0).reshape(x.shape)


def _refuse_sparse_mixer(use_sparse_mixer: int) -> None:
    if use_sparse_mixer:
        raise ModelError("the mirror does not have 'use_sparse_mixer' of a mixture of experts")


@microsoft_op("MoE", 1, weights=(2, 4, 6))
def moe(
    input, router_probs, fc1_experts_weights, fc1_experts_bias, fc2_experts_weights, fc2_experts_bias=None,
    fc3_experts_weights=None, fc3_experts_bias=None, *, activation_alpha=1.0, activation_beta=0.0,
    activation_type="relu", k=1, normalize_routing_weights=0, swiglu_fusion=0, swiglu_limit=None, use_sparse_mixer=0,
):  # fmt: skip
    _refuse_sparse_mixer(use_sparse_mixer)
    return _mixture(
        input, _shares(router_probs, None, k, bool(normalize_routing_weights)),
        (fc1_experts_weights, fc1_experts_bias), (fc2_experts_weights, fc2_experts_bias),
        (fc3_experts_weights, fc3_experts_bias), activation_type=activation_type, activation_alpha=activation_alpha,
        activation_beta=activation_beta, swiglu_fusion=swiglu_fusion, limit=swiglu_limit,
    )  # fmt: skip


# ---- weights of a few bits: [E, N, K] in bytes along K, with a scale for each row, or for each block of it


def _bits(layer: int, attributes: dict[str, Any]) -> int:
    return attributes.get(f"fc{layer}_expert_weight_bits") or attributes.get("expert_weight_bits", 4)


def _numbers(stored: Tensor, *, layer: int, **attributes: Any) -> Tensor:
    return plain(stored) if isinstance(stored, Quantised) else unpack(stored, _bits(layer, attributes))


def _bytes(q: Tensor, stored: Tensor, *, layer: int, **attributes: Any) -> Tensor:
    return pack(q, _bits(layer, attributes)).to(stored.dtype)


def _grid(q: Tensor, scales: Tensor, zero_points: Tensor | None = None, *, layer: int, **attributes: Any):
    bits, size = _bits(layer, attributes), attributes.get("block_size") or 0
    if zero_points is None:
        zero_points = torch.full_like(scales, 1 << (bits - 1))
    else:
        zero_points = unpack(zero_points, bits)[..., : scales.shape[-1]].to(scales.dtype)
    if scales.dim() == 2:
        return scales.unsqueeze(-1), zero_points.unsqueeze(-1)
    return tuple(in_blocks(value, size, 2, q.shape[2]) for value in (scales, zero_points))


def _stored(operand: int, layer: int, zero_points: int) -> Stored:
    given = {"layer": layer}
    return Stored(
        operand, (operand + 1, zero_points), partial(_grid, **given), partial(_numbers, **given),
        partial(_bytes, **given), lambda **attributes: _bits(layer, attributes),
    )  # fmt: skip


@microsoft_op(
    "QMoE", 1, weights=(2, 5, 8), constants=(3, 6, 9), stored=(_stored(2, 1, 11), _stored(5, 2, 12), _stored(8, 3, 13))
)
def qmoe(
    input, router_probs, fc1_experts_weights, fc1_scales, fc1_experts_bias, fc2_experts_weights, fc2_scales,
    fc2_experts_bias=None, fc3_experts_weights=None, fc3_scales=None, fc3_experts_bias=None, fc1_zero_points=None,
    fc2_zero_points=None, fc3_zero_points=None, router_weights=None, fc1_global_scale=None, fc2_global_scale=None,
    fc1_act_scale=None, fc2_act_scale=None, fc1_act_block_scale=None, fc2_act_block_scale=None, *, accuracy_level=0,
    activation_alpha=1.0, activation_beta=0.0, activation_type="relu", block_size=None, expert_weight_bits=4,
    fc1_expert_weight_bits=None, fc2_expert_weight_bits=None, fc3_expert_weight_bits=None, k=1,
    normalize_routing_weights=0, quant_type="int", swiglu_fusion=0, swiglu_limit=None, use_sparse_mixer=0,
    weights_prepacked=-1,
):  # fmt: skip
    """MoE with weights (q - zero_point) scale; without a zero point it is the middle.

    onnxruntime lets the experts that are asked share the whole, whether ``normalize_routing_weights`` or not.
    """
    _refuse_sparse_mixer(use_sparse_mixer)
    if quant_type != "int" or weights_prepacked > 0:
        raise ModelError(f"the mirror does not have experts quantised as '{quant_type}' or packed for one processor")
    how = {
        "block_size": block_size, "expert_weight_bits": expert_weight_bits,
        "fc1_expert_weight_bits": fc1_expert_weight_bits, "fc2_expert_weight_bits": fc2_expert_weight_bits,
        "fc3_expert_weight_bits": fc3_expert_weight_bits,
    }  # fmt: skip

    def values(layer: int, stored: Tensor | None, scales: Tensor | None, zero_points: Tensor | None) -> Tensor | None:
        if stored is None:
            return None
        q = _numbers(stored, layer=layer, **how)
        scale, zero_point = _grid(q, scales, zero_points, layer=layer, **how)
        return (q.to(scale.dtype) - zero_point) * scale

    return _mixture(
        input, _shares(router_probs, router_weights, k, router_weights is None or bool(normalize_routing_weights)),
        (values(1, fc1_experts_weights, fc1_scales, fc1_zero_points), fc1_experts_bias),
        (values(2, fc2_experts_weights, fc2_scales, fc2_zero_points), fc2_experts_bias),
        (values(3, fc3_experts_weights, fc3_scales, fc3_zero_points), fc3_experts_bias),
        activation_type=activation_type, activation_alpha=activation_alpha, activation_beta=activation_beta,
        swiglu_fusion=swiglu_fusion, limit=swiglu_limit,
    )  # fmt: skip
