"""Sums that are quantised next: in onnxruntime's order."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import parser

from onnx_obd.graph.session import open_session
from onnx_obd.mirror.mirror import Mirror

RNG = np.random.default_rng(2)


def _network(channels: int, relu: bool, quantised: bool) -> onnx.ModelProto:
    """A convolution by single elements, whose sums are the output too."""
    behind = "r = Relu (c)" if relu else "r = Identity (c)"
    last = "q = QuantizeLinear (r, s, z) y = DequantizeLinear (q, s, z)" if quantised else "y = Neg (r)"
    model = parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 13]>
        m (float[2, {channels}, 25, 25] x) => (float[2, 8, 13, 13] c, float[2, 8, 13, 13] y) {{
            c = Conv <strides = [2, 2]> (x, w, b) {behind} {last} }}""")
    tensors = {
        "w": RNG.normal(size=(8, channels, 1, 1)).astype(np.float32), "b": RNG.normal(size=8).astype(np.float32),
        "s": np.float32(0.3), "z": np.uint8(128),
    }  # fmt: skip
    model.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in tensors.items())
    return model


def _same_bits(model: onnx.ModelProto) -> float:
    """The share of the sums that are the same number in onnxruntime and in the mirror."""
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    x = RNG.normal(size=shape).astype(np.float32)
    with torch.no_grad():
        found = Mirror(model)(torch.from_numpy(x))[0].numpy()
    return (found == open_session(model, optimize=False).run(None, {"x": x})[0]).mean()


@pytest.mark.parametrize("relu", [False, True], ids=["quantised", "quantised behind a Relu"])
def test_sums_that_are_quantised_next_are_those_of_onnxruntime(relu):
    if _same_bits(_network(100, relu, quantised=True)) < 1 or _same_bits(_network(200, relu, quantised=False)) == 1:
        pytest.skip("on this processor the matrix kernels of torch and onnxruntime add in another order altogether")
    assert _same_bits(_network(200, relu, quantised=True)) == 1
    assert _same_bits(_network(390, relu, quantised=True)) == 1


@pytest.mark.parametrize("zero_points", [(3, 3), (100, 7)])
def test_large_values_go_to_the_grid_and_back_at_once(zero_points):
    """... as in onnxruntime, whether the operand may be written over or is an input."""
    first, second = (np.uint8(number) for number in zero_points)
    model = parser.parse_model("""<ir_version: 8, opset_import: ["" : 13]>
        m (float[2, 16, 64, 64] x) => (float[2, 16, 64, 64] y, float[2, 16, 64, 64] v) {
            q = QuantizeLinear (x, s, z) c = Cast <to = 2> (q) y = DequantizeLinear (c, t, u)
            n = Neg (x) r = QuantizeLinear (n, s, z) v = DequantizeLinear (r, t, u) }""")
    tensors = {"s": np.float32(0.03), "t": np.float32([0.02]), "z": first, "u": second}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in tensors.items())
    mirror, x = Mirror(model), RNG.normal(size=(2, 16, 64, 64), scale=2).astype(np.float32)
    expected = open_session(model, optimize=False).run(None, {"x": x})
    with torch.no_grad():
        for _ in range(4):
            found = mirror(torch.from_numpy(x))
            assert all((ours.numpy() == theirs).all() for ours, theirs in zip(found, expected, strict=True))
    calls = mirror.plan([torch.from_numpy(x)])._unrecorded.calls
    assert len(calls) == 3, "each pair is one"
