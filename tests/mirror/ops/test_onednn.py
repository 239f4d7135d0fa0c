"""What oneDNN computes without gradients is what torch computes with them."""

from __future__ import annotations

import onnx
import pytest
import torch

from onnx_obd.mirror.mirror import Mirror
from onnx_obd.mirror.ops import onednn, recurrent
from tests.mirror.harness import case, check_forward, rand

X = rand(3, 4, 6, 5)
CASES = [
    case("MatMul", 13, rand(3, 4, 5), rand(5, 6)),
    case("Gemm", 13, rand(3, 4), rand(4, 5), rand(5)),
    case("Gemm", 13, rand(4, 3), rand(5, 4), rand(5), transA=1, transB=1),
    case("Gemm", 13, rand(3, 4), rand(4, 5), rand(3, 1)),
    case("Gemm", 13, rand(3, 4), rand(5, 4), transB=1),
    case("Conv", 11, X, rand(6, 4, 1, 1), rand(6)),
    case("Conv", 11, X, rand(6, 4, 2, 3), rand(6), strides=[2, 1], pads=[1, 0, 1, 0]),
    case("Conv", 11, X, rand(4, 1, 3, 3), group=4, dilations=[2, 1]),
    case("Conv", 11, X, rand(6, 4, 6, 5), rand(6)),
    case("Conv", 11, X[:1], rand(6, 4, 2, 2), rand(6)),
    case("LSTM", 14, rand(8, 2, 3), rand(1, 16, 3), rand(1, 16, 4), rand(1, 32), outputs=3, hidden_size=4),
    case(
        "GRU",
        14,
        rand(8, 2, 3),
        rand(1, 12, 3),
        rand(1, 12, 4),
        rand(1, 24),
        outputs=2,
        hidden_size=4,
        linear_before_reset=1,
    ),
    case("GRU", 14, rand(8, 2, 3), rand(1, 12, 3), rand(1, 12, 4), rand(1, 24), outputs=2, hidden_size=4),
    case("RNN", 14, rand(8, 2, 3), rand(1, 4, 3), rand(1, 4, 4), rand(1, 8), outputs=2, hidden_size=4),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_small_products_too(case, monkeypatch):
    monkeypatch.setattr(onednn, "MANY_PRODUCTS", 1)
    monkeypatch.setattr(recurrent, "MANY_STATES", 1)
    check_forward(case)


def test_only_without_gradients_and_in_single_precision(monkeypatch):
    called = []
    monkeypatch.setattr(onednn, "MANY_PRODUCTS", 1)
    monkeypatch.setattr(onednn, "linear", lambda x, w, b=None: called.append(x) or x @ w.mT)
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[2, 3] x, float[3, 4] w) => (float[2, 4] y) { y = MatMul (x, w) }"""
    )
    x, w = torch.ones(2, 3), torch.ones(3, 4)
    Mirror(model)(x, w.requires_grad_())
    with torch.no_grad():
        Mirror(model).double()(x.double(), w.double())
        torch.func.vmap(Mirror(model), (0, None))(x[None], w)
        assert not called
        Mirror(model)(x, w)
    assert called
