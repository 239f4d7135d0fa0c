import math

import numpy as np
import pytest
import torch

from onnx_obd.mirror.ops.softmax import softmax
from tests.mirror.harness import case, check, rand

# A row behind a mask of minus infinity is not a number; one whose logits drown in a huge number is a constant.
_DROWNED = np.array([[0.5, -0.25, 1.0], [-1e38, -1e38, -2e38], [1e20, 1e20, 1e20]], np.float32)

CASES = [
    case("Softmax", 1, rand(2, 3, 4)),
    case("Softmax", 11, rand(2, 3, 4), axis=-2),
    case("Softmax", 13, rand(2, 3, 4), axis=1),
    case("Softmax", 11, _DROWNED),
    case("Softmax", 13, _DROWNED.T, axis=0),
    case("Softmax", 13, _DROWNED.astype(np.float64)),
    case("LogSoftmax", 1, rand(2, 3, 4), axis=0),
    case("LogSoftmax", 11, rand(2, 3, 4)),
    case("LogSoftmax", 13, rand(2, 3, 4)),
    case("Hardmax", 1, rand(2, 3, 4), gradient=False),
    case("Hardmax", 11, rand(2, 3, 4), axis=2, gradient=False),
    case("Hardmax", 13, rand(2, 3, 4), axis=1, gradient=False),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_operator(case):
    check(case)


def test_a_fully_masked_row_leaves_the_others_their_gradient():
    x = torch.tensor([[-math.inf, -math.inf], [0.5, 1.0]], dtype=torch.float64, requires_grad=True)
    y = softmax(x)
    assert y[0].isnan().all()
    y[1, 0].backward()
    p = math.exp(-0.5) / (1 + math.exp(-0.5))
    assert x.grad[0].tolist() == [0, 0]
    assert x.grad[1].tolist() == pytest.approx([p * (1 - p), -p * (1 - p)])
