from dataclasses import replace

import numpy as np
import pytest

from onnx_obd.mirror.mirror import Mirror
from tests.mirror.harness import across, case, check, rand, same_as

X = rand(2, 3, 4, low=-3, high=3)

CASES = [
    *across((1, 6, 13, 14), case("Relu", 14, X)),
    *across((1, 6, 16), case("LeakyRelu", 16, X, alpha=0.2)),
    *across((7, 9, 16), case("PRelu", 16, X, rand(3, 1), weights=(1,))),
    case("PRelu", 16, X, rand(1)),
    case("PRelu", 16, X, rand(2, 1, 4)),
    # Up to version 6 the slopes go with the second axis, whatever follows it.
    *[
        replace(case("PRelu", 16, X, (s := rand(3)), expected=(np.where(X < 0, s[:, None] * X, X),)), opset=v)
        for v in (1, 6)
    ],
    *across((1, 10, 22), case("ThresholdedRelu", 10, X, alpha=0.7)),
    *across((1, 6, 22), case("Elu", 6, X, alpha=1.3)),
    *across((6, 22), case("Selu", 6, X)),
    case("Selu", 22, X, alpha=1.5, gamma=1.2, expected=(np.where(X > 0, X, 1.5 * (np.exp(X) - 1)) * np.float32(1.2),)),
    # The defaults of version 1 had four decimals.
    case("Selu", 1, X, expected=(np.float32(1.0507) * np.where(X > 0, X, np.float32(1.6732) * (np.exp(X) - 1)),)),
    *across((12, 28), case("Celu", 12, X, alpha=0.6)),
    case("Gelu", 20, X),
    case("Gelu", 20, X, approximate="tanh"),
    *across((1, 6, 22), case("HardSigmoid", 6, X, alpha=0.3, beta=0.4)),
    case("HardSigmoid", 6, X),
    case("HardSigmoid", 6, X, alpha=1 / 6),
    *across((14, 22), case("HardSwish", 14, X)),
    *across((18, 22), case("Mish", 18, X)),
    case("Swish", 24, X),
    case("Swish", 24, X, alpha=0.7, expected=(X / (1 + np.exp(np.float32(-0.7) * X)),)),
    case("SwiGLU", 28, X, (b := rand(2, 3, 4)), alpha=1.4, expected=(X / (1 + np.exp(np.float32(-1.4) * X)) * b,)),
    *across((1, 22), case("Softplus", 1, X)),
    case("Softplus", 22, rand(3, low=30, high=40)),
    *across((1, 22), case("Softsign", 1, X)),
    case("Shrink", 9, X, lambd=0.6, bias=0.4),
    *across((1, 6, 13), case("Sigmoid", 13, X)),
    *across((1, 6, 13), case("Tanh", 13, X)),
    *across((9, 13), case("Erf", 13, X)),
    *across((11, 12, 13), case("Clip", 13, X, np.float32(-0.5), np.float32(1.5))),
    case("Clip", 13, X, None, np.float32(1.5), weights=(2,)),
    case("Clip", 13, X, np.float32(-0.5)),
    case("Clip", 13, X),
    case("Clip", 13, np.arange(6), np.int64(1), np.int64(4), gradient=False),
    *across((1, 6), case("Clip", 6, X, min=-0.5, max=1.5)),
    case("Clip", 6, X),
    same_as(6, case("Clip", 1, X)),
    case("ParametricSoftplus", 1, X, alpha=0.5, beta=2.0),
    case("ScaledTanh", 1, X, alpha=0.5, beta=2.0),
    case("Affine", 1, X, alpha=0.5, beta=2.0),
    case("Scale", 1, X, scale=0.5),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_operator(case):
    check(case)


def test_the_memory_hint_of_opset_1_is_ignored():
    hinted = case("Relu", 1, X, consumed_inputs=[0])
    assert not Mirror(hinted.model()).boundaries
