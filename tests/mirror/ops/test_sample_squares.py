"""Squares of per-sample gradients at sizes where other kernels and blocks are used than in small graphs."""

import pytest
import torch

from onnx_obd.mirror.ops import onednn
from onnx_obd.mirror.ops.convolution import conv
from onnx_obd.mirror.ops.convolution_squares import MANY_WINDOWS, PAIRS_AT_ONCE
from onnx_obd.mirror.ops.linear import IN_CACHE, product_squares
from onnx_obd.mirror.registry import operator_of
from onnx_obd.mirror.second import Call


@pytest.mark.parametrize(
    "groups, rows, k, m, directions",
    [
        (1, 7, 3, 5, 1),
        (3, 7, 3, 5, 2),
        (1, 64, 150, 130, 3),
        (2, 64, 150, 130, 1),
        (1, 5, 20, 170, 9),
        (1, 9, 900, 700, 2),
        (2, 1, 6, 5, 2),
    ],
)
@pytest.mark.parametrize("rows_inside", [False, True])
@torch.no_grad()
def test_products_are_squared_sample_by_sample(groups, rows, k, m, directions, rows_inside):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, groups, rows, k, generator=generator)
    g = [torch.randn(4, groups, rows, m, generator=generator) for _ in range(directions)]
    if rows_inside:
        x, g = x.mT.contiguous().mT, [each.mT.contiguous().mT for each in g]
    expected = sum(torch.einsum("ngrk,ngrm->ngmk", x.double(), each.double()).square().sum(0) for each in g)
    torch.testing.assert_close(product_squares(x, g).double(), expected, rtol=1e-4, atol=1e-4)


def test_the_cases_above_reach_every_path():
    assert 64 * 150 * 130 >= onednn.MANY_PRODUCTS and 9 * 900 * 700 >= onednn.MANY_PRODUCTS
    assert 150 * 130 < IN_CACHE < 900 * 700


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    "channels, out, kernel, attributes",
    [
        (3, 20, (5, 3), {"pads": [2, 0, 1, 1]}),
        (40, 30, (3, 3), {"strides": [2, 1], "pads": [1, 1, 1, 1]}),
        (64, 64, (3, 2), {"dilations": [1, 2]}),
        (32, 64, (3, 3), {"group": 4}),
    ],
)
@pytest.mark.parametrize("many_windows", [1, MANY_WINDOWS])
@torch.no_grad()
def test_convolutions_are_squared_sample_by_sample(
    monkeypatch, channels, out, kernel, attributes, many_windows, layout
):
    monkeypatch.setattr("onnx_obd.mirror.ops.convolution_squares.MANY_WINDOWS", many_windows)
    assert_squared_sample_by_sample(channels, out, kernel, attributes, layout)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    "channels, out, kernel, attributes",
    [
        (1, 6, (5, 3), {"pads": [2, 1, 2, 1]}),
        (2, 5, (3, 2), {"pads": [2, 0, 1, 1], "dilations": [1, 2]}),
        (3, 4, (3, 3), {}),
        (8, 8, (3, 3), {"group": 8, "dilations": [2, 1]}),
        (6, 12, (3, 2), {"group": 3, "pads": [3, 3, 3, 3]}),
    ],
)
@pytest.mark.parametrize("at_once", [1, PAIRS_AT_ONCE])
def test_convolutions_of_few_channels_are_squared_sample_by_sample(
    monkeypatch, channels, out, kernel, attributes, at_once, layout
):
    monkeypatch.setattr("onnx_obd.mirror.ops.convolution_squares.PAIRS_AT_ONCE", at_once)
    for other in ("_squares_by_products", "_squares_by_groups"):
        monkeypatch.delattr(f"onnx_obd.mirror.ops.convolution_squares.{other}")
    assert_squared_sample_by_sample(channels, out, kernel, attributes, layout)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_so_are_those_of_many_taps_along_one_direction(monkeypatch, layout):
    monkeypatch.setattr("onnx_obd.mirror.ops.convolution_squares.MANY_PRODUCTS", 1)
    monkeypatch.delattr("onnx_obd.mirror.ops.convolution_squares._squares_by_products")
    assert_squared_sample_by_sample(6, 16, (5, 5), {"pads": [1, 0, 0, 2]}, layout, most=1)


@torch.no_grad()
def assert_squared_sample_by_sample(channels, out, kernel, attributes, layout, most=2):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, channels, 15, 17, generator=generator).to(memory_format=layout)
    w = torch.randn(out, channels // attributes.get("group", 1), *kernel, generator=generator)
    y = conv(x, w, **attributes)
    g = [torch.randn(y.shape, generator=generator).to(memory_format=layout) for _ in range(2)]
    for directions in (g[:number] for number in range(1, most + 1)):
        call = Call("node", None, attributes, (x, w, w.new_zeros(out)), (), (False, True, True))
        _, found, of_bias = operator_of(conv).sample_squares(call, [directions], 3, 0)
        each = sum(direction.double().sum((2, 3)).square().sum(0) for direction in directions)
        torch.testing.assert_close(of_bias.double(), each, rtol=1e-4, atol=1e-3)
        expected = torch.zeros_like(w, dtype=torch.float64)
        for direction in directions:
            for n in range(3):
                _, pull = torch.func.vjp(lambda w, n=n: conv(x[n : n + 1].double(), w, **attributes), w.double())
                expected += pull(direction[n : n + 1].double())[0].square()
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-3)
