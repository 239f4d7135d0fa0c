from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.mirror.harness import case, check, rand

microsoft = partial(case, domain="com.microsoft")
TOKENS, EXPERTS, WIDTH, HIDDEN = 5, 3, 4, 6

X, ROUTER = rand(TOKENS, WIDTH), 3 * rand(TOKENS, EXPERTS)
FC1, FC1_BIAS = rand(EXPERTS, HIDDEN, WIDTH), rand(EXPERTS, HIDDEN)
FC2, FC2_BIAS = rand(EXPERTS, WIDTH, HIDDEN), rand(EXPERTS, WIDTH)
FC3, FC3_BIAS = rand(EXPERTS, HIDDEN, WIDTH), rand(EXPERTS, HIDDEN)
FUSED, FUSED_BIAS = rand(EXPERTS, 2 * HIDDEN, WIDTH), rand(EXPERTS, 2 * HIDDEN)
BOTH = (FC1, FC1_BIAS, FC2, FC2_BIAS)
SWIGLU = {"activation_type": "swiglu", "activation_alpha": 1.7, "activation_beta": 1.0, "swiglu_limit": 0.7}


def one_by_one(x, router, fc1, fc1_bias, fc2, fc2_bias, fc3, fc3_bias) -> np.ndarray:
    """The two likeliest experts of every token, one after the other: silu(fc1 x) (fc3 x)."""
    t = list(map(torch.from_numpy, (x, router, fc1, fc1_bias, fc2, fc2_bias, fc3, fc3_bias)))
    rows = []
    for token, probabilities in zip(t[0], t[1].softmax(-1), strict=True):
        asked = probabilities.argsort(descending=True)[:2]
        hidden = [F.silu(F.linear(token, t[2][e], t[3][e])) * F.linear(token, t[6][e], t[7][e]) for e in asked]
        rows.append(sum(probabilities[e] * F.linear(z, t[4][e], t[5][e]) for e, z in zip(asked, hidden, strict=True)))
    return torch.stack(rows).numpy()


def drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, shape).astype(np.uint8)


def quantised(bits: int, size: int = 32, hidden: int = 32, blocks: int = 0, zero_points: bool = False) -> list:
    """Inputs of QMoE: tokens of ``size`` numbers, experts with ``hidden`` units."""
    per_byte = 8 // bits
    inputs = [rand(TOKENS, size), ROUTER]
    points = []
    for rows, columns in ((hidden, size), (size, hidden)):
        shape = (EXPERTS, rows, columns // blocks) if blocks else (EXPERTS, rows)
        inputs += [drawn(EXPERTS, rows, columns // per_byte), rand(*shape, low=0.01, high=0.02), rand(EXPERTS, rows)]
        points.append(drawn(*shape[:-1], shape[-1] // per_byte))
    return [*inputs, None, None, None, *points] if zero_points else inputs


network = partial(microsoft, exact_second=False)  # an expert is a network of several layers
large = partial(microsoft, gradient=False)  # the mixture itself is differentiated in floats

CASES = [
    network("MoE", 1, X, ROUTER, *BOTH, weights=(2, 3, 4, 5)),
    network("MoE", 1, X, ROUTER, *BOTH, k=2, activation_type="gelu"),
    network("MoE", 1, X[None], ROUTER, *BOTH, k=2, activation_type="silu", normalize_routing_weights=1),
    network("MoE", 1, X, ROUTER, FC1, None, FC2, k=2, activation_type="identity"),
    network("MoE", 1, X, ROUTER, FUSED, FUSED_BIAS, FC2, FC2_BIAS, k=2, swiglu_fusion=1, **SWIGLU),
    # onnxruntime has a third layer on other devices only
    network("MoE", 1, X, ROUTER, *BOTH, FC3, FC3_BIAS, k=2, activation_type="silu",
              expected=(one_by_one(X, ROUTER, *BOTH, FC3, FC3_BIAS),)),
    network("MoE", 1, X, ROUTER, *BOTH, FC3, FC3_BIAS, k=2, activation_type="swiglu",
              expected=(one_by_one(X, ROUTER, *BOTH, FC3, FC3_BIAS),)),
    large("QMoE", 1, *quantised(8), expert_weight_bits=8, k=2),
    large("QMoE", 1, *quantised(4), k=2, normalize_routing_weights=1, activation_type="silu", weights=range(2, 8)),
    large("QMoE", 1, *quantised(4, blocks=16), k=2, block_size=16, activation_type="gelu"),
    large("QMoE", 1, *quantised(4, blocks=16, zero_points=True), k=2, block_size=16),
    large("QMoE", 1, *quantised(8, zero_points=True), k=1, expert_weight_bits=8),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_operator(case):
    check(case)
