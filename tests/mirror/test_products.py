"""The matrix form of a node against the node itself: y - y(w = 0) must be x wᵀ, group by group."""

from __future__ import annotations

import itertools

import pytest
import torch

from onnx_obd.mirror import ops  # noqa: F401  (importing registers the operators)
from onnx_obd.mirror.products import product_of
from onnx_obd.mirror.registry import lookup


def rand(*shape):
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape))) - 0.5


CASES = {
    "matmul": ("MatMul", 1, [rand(4, 7, 5), rand(5, 3)], {}),
    "matmul vector": ("MatMul", 1, [rand(4, 7, 5), rand(5)], {}),
    "matmul batched": ("MatMul", 1, [rand(4, 2, 7, 5), rand(2, 5, 3)], {}),
    "matmul first operand": ("MatMul", 0, [rand(3, 5), rand(4, 5, 7)], {}),
    "gemm": ("Gemm", 1, [rand(4, 5), rand(5, 3), rand(3)], {"alpha": 0.5, "beta": 2.0}),
    "gemm transB": ("Gemm", 1, [rand(4, 5), rand(3, 5), rand(3)], {"transB": 1}),
    "gemm transA": ("Gemm", 1, [rand(5, 4), rand(5, 3)], {"transA": 1}),
    "gemm first operand": ("Gemm", 0, [rand(5, 4), rand(5, 3)], {"transA": 1, "alpha": 3.0}),
    "conv 1d": ("Conv", 1, [rand(2, 4, 9), rand(6, 4, 3), rand(6)], {"pads": (0, 2), "strides": (2,)}),
    "conv 2d dilated": ("Conv", 1, [rand(2, 4, 9, 7), rand(6, 4, 3, 2)], {"dilations": (2, 3), "pads": (1, 0, 2, 3)}),
    "conv grouped": ("Conv", 1, [rand(2, 4, 5, 7), rand(6, 2, 3, 1)], {"group": 2, "auto_pad": "SAME_LOWER"}),
    "conv depthwise 3d": ("Conv", 1, [rand(2, 3, 4, 5, 6), rand(6, 1, 2, 3, 1)], {"group": 3}),
    "deconv 1d": ("ConvTranspose", 1, [rand(2, 4, 5), rand(4, 3, 3)], {"strides": (2,), "output_padding": (1,)}),
    "deconv grouped": (
        "ConvTranspose",
        1,
        [rand(2, 4, 5, 3), rand(4, 3, 2, 3), rand(6)],
        {"group": 2, "strides": (3, 1), "dilations": (1, 2), "pads": (0, 1, 1, 2)},
    ),
    "deconv symmetric": ("ConvTranspose", 1, [rand(2, 4, 5, 3), rand(4, 3, 3, 3)], {"pads": (1, 1, 1, 1)}),
}


@pytest.mark.parametrize("name", CASES)
def test_product_is_the_node(name):
    op_type, position, inputs, attributes = CASES[name]
    operator = lookup("", op_type, 22)
    y = operator.function(*inputs, **attributes)
    at_zero = [value if i != position else torch.zeros_like(value) for i, value in enumerate(inputs)]
    product = product_of(operator, position, inputs, attributes, y)
    x = product.features(torch.arange(product.positions))
    w = product.matrix(inputs[position])
    assert x.dim() == w.dim() == 3
    expected = product.outputs(y - operator.function(*at_zero, **attributes))
    torch.testing.assert_close(x @ w.mT, expected)
    some = torch.tensor([product.positions - 1, 2])
    torch.testing.assert_close(product.features(some), x[:, some], rtol=0, atol=0)


@pytest.mark.parametrize("name", [name for name, (_, _, inputs, _) in CASES.items() if len(inputs) == 3])
def test_bias_is_added_to_every_position(name):
    op_type, position, inputs, attributes = CASES[name]
    operator = lookup("", op_type, 22)
    product = product_of(operator, position, inputs, attributes, operator.function(*inputs, **attributes))
    where, factor = product.bias
    zeros = [torch.zeros_like(value) if i in (0, 1) else value for i, value in enumerate(inputs)]
    y = product.outputs(operator.function(*zeros, **attributes))
    torch.testing.assert_close(y, factor * inputs[where].reshape(y.shape[0], 1, -1).expand_as(y))


def test_products_that_do_not_factor_are_refused():
    matmul = lookup("", "MatMul", 13)
    for a, b in itertools.pairwise([rand(5, 3), rand(2, 3, 4), rand(4, 3)][:2]):
        assert product_of(matmul, 1, [a, b], {}, a @ b) is None
