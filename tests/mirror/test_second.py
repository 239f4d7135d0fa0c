"""The rules that are not tested operator by operator: probes, and squared gradients sample by sample."""

import pytest
import torch

from onnx_obd.mirror.ops.convolution import conv
from onnx_obd.mirror.ops.linear import matmul
from onnx_obd.mirror.registry import lookup
from onnx_obd.mirror.second import Call, broadcast_squares, probes


def seeded(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def test_probes_have_the_squared_jacobian_as_expectation():
    """Also for an h of both signs, as the full form may give."""
    x, h = seeded(3, 4), seeded(3, 2, seed=1)
    mix = seeded(4, 2, seed=2)

    def function(x):
        return (x @ mix).sin() * x.sum(1, keepdim=True)

    call = Call("n", function, {}, (x,), (), (True,), torch.Generator().manual_seed(0))
    (found,) = probes(call, [h], num_probes=4000)
    jacobian = torch.autograd.functional.jacobian(function, x).reshape(6, 12)
    expected = (jacobian.square() * h.reshape(-1, 1)).sum(0).reshape(3, 4)
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0.05 * float(expected.abs().max()))


def squares_one_by_one(function, data, w, gradients):
    total = torch.zeros_like(w)
    for g in gradients:
        for n in range(len(data)):
            leaf = w.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(function(data[n : n + 1], leaf), leaf, g[n : n + 1])
            total += gradient.square()
    return total


@pytest.mark.parametrize("directions", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["groups", "windows"])
@pytest.mark.parametrize(
    "attributes",
    [{}, {"pads": (1, 0, 0, 2), "strides": (2, 1)}, {"group": 2, "dilations": (1, 2)}, {"auto_pad": "SAME_UPPER"}],
    ids=["plain", "padded", "grouped", "same"],
)
def test_squares_of_a_convolution(attributes, dtype, directions):
    x = seeded(5, 8, 6, 7, dtype=dtype)
    w = seeded(16, 8 // attributes.get("group", 1), 3, 3, dtype=dtype, seed=1)
    shape = conv(x, w, **attributes).shape
    gradients = [seeded(*shape, dtype=dtype, seed=2 + n) for n in range(directions)]
    call = Call("n", conv, attributes, (x, w), (), (False, True))
    _, found = lookup("", "Conv", 17).sample_squares(call, [gradients], len(x), 0)
    expected = squares_one_by_one(lambda part, leaf: conv(part, leaf, **attributes), x, w, gradients)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3 if dtype == torch.float32 else 1e-9)


@pytest.mark.parametrize("directions", [1, 3])
@pytest.mark.parametrize("position", [0, 1])
def test_squares_of_a_matrix_over_several_rows(position, directions):
    data = seeded(5, 2, 3, 4)
    w = seeded(4, 6, seed=1) if position else seeded(6, 3, seed=1)

    def product(part, leaf):
        return matmul(part, leaf) if position else matmul(leaf, part)

    gradients = [seeded(*product(data, w).shape, seed=2 + n) for n in range(directions)]
    inputs, wanted = ((data, w), (False, True)) if position else ((w, data), (True, False))
    call = Call("n", matmul, {}, inputs, (), wanted)
    found = lookup("", "MatMul", 17).sample_squares(call, [gradients], len(data), 0)[position]
    torch.testing.assert_close(found, squares_one_by_one(product, data, w, gradients))


@pytest.mark.parametrize("shape", [(4,), (3, 1), (1, 1, 4), (1, 3, 1), ()])
def test_squares_of_a_broadcast_operand(shape):
    data, slope = seeded(5, 3, 4), seeded(5, 3, 4, seed=1)
    w, gradients = seeded(*shape, seed=2), [seeded(5, 3, 4, seed=3), seeded(5, 3, 4, seed=4)]
    expected = torch.zeros_like(w)
    for g in gradients:
        for n in range(len(data)):
            expected += (g * slope)[n].sum_to_size(shape if len(shape) < 3 else shape[1:]).reshape(shape).square()
    torch.testing.assert_close(broadcast_squares(torch.Size(shape), gradients, slope, 5, 0), expected)
