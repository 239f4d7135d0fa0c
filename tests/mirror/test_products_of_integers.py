"""The matrix form of nodes on integers against onnxruntime, in the numbers that the integers stand for."""

from dataclasses import replace

import pytest
import torch

from onnx_obd.mirror.mirror import Mirror
from onnx_obd.mirror.products import product_of
from onnx_obd.mirror.values import to_torch
from tests.mirror.harness import run_onnxruntime
from tests.mirror.ops import test_microsoft_quantized, test_quantize

PLACES = {
    "QLinearConv": ((3, 0),),
    "QLinearMatMul": ((3, 0), (0, 3)),
    "QGemm": ((3, 0),),
    "MatMulIntegerToFloat": ((1, 0), (0, 1)),  # its bias goes along the positions of a first operand
    "DynamicQuantizeMatMul": ((1, 0),),
}
"""Of the weight and of the data."""

REQUANTISED = {"QLinearConv": 6, "QLinearMatMul": 6, "QGemm": 7}
"""Where the scale of the output is, with its zero point behind it."""

CASES = [
    (case, *places)
    for case in (*test_quantize.PRODUCTS, *test_microsoft_quantized.PRODUCTS)
    for places in PLACES.get(case.op_type, ())
    if places != (0, 1) or len(case.inputs) < 7
]


def recorded(case, weight, data):
    """The node's product on what the mirror computes, and x wᵀ with the bias, [G, N, R]."""
    given = {i for i, value in enumerate(case.inputs) if value is not None}
    mirror = Mirror(replace(case, weights=tuple(given - {data})).model())
    values = mirror.program.record(mirror.start([to_torch(case.inputs[data])]))
    step = mirror.program.steps[-1]
    product = product_of(step.operator, weight, [values[slot] for slot in step.inputs], step.attributes)
    with torch.no_grad():
        y = product.features(torch.arange(product.positions)) @ product.matrix(mirror.weights[f"in{weight}"]).mT
        if bias := product.bias:
            y += bias.factor * bias.rows(mirror.weights[f"in{bias.position}"])[:, None]
    return product, y


def in_rows(output, case, first):
    """A tensor like the output as [G, N, R]."""
    if first:
        output = output.mT
    elif case.op_type == "QLinearConv" and not case.attributes.get("channels_last"):
        output = output.movedim(1, -1)
    return output.flatten(0, -2).unflatten(1, (case.attributes.get("group", 1), -1)).transpose(0, 1)


@pytest.mark.parametrize(("case", "weight", "data"), CASES, ids=str)
def test_product_is_the_node(case, weight, data):
    """Up to the rounding of an output that is quantised again, where that is not at the end of its range."""
    product, y = recorded(case, weight, data)
    (output,) = case.expected or run_onnxruntime(case)
    q = in_rows(to_torch(output).float(), case, first=weight == 0)
    scale, zero_point = (*case.inputs, None, None, None)[REQUANTISED.get(case.op_type, -2) :][:2]
    assert (product.outputs is None) == (scale is not None)
    if scale is None:
        torch.testing.assert_close(y, q)
        return
    inside = (q > 0) & (q < 255)
    assert inside.sum() > 5
    off = (y / float(scale) + int(zero_point or 0) - q).abs()
    assert off[inside].max() < 0.5 + 1e-4
