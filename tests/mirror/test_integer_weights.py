"""Weights stored as integers: what becomes a parameter, what it holds, and that it goes back as it came."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, parser

from onnx_obd.graph.weights import write_weights
from onnx_obd.mirror.mirror import Mirror
from onnx_obd.mirror.values import plain
from tests.mirror.harness import rand, second_of_weights

RNG = np.random.default_rng(5)


def integers(*shape: int, dtype=np.int8) -> np.ndarray:
    low, high = (0, 15) if dtype is ml_dtypes.uint4 else (-8, 7) if dtype is ml_dtypes.int4 else (-100, 100)
    low, high = (0, 255) if dtype is np.uint8 else (low, high)
    return RNG.integers(low, high + 1, shape).astype(dtype)


def scales(*shape: int) -> np.ndarray:
    return RNG.uniform(0.01, 0.05, shape).astype(np.float32)


def model(text: str, opset: int = 21, **tensors: np.ndarray) -> onnx.ModelProto:
    opsets = f'"" : {opset}, "com.microsoft" : 1, "local" : 1'
    proto = parser.parse_model(f"<ir_version: 10, opset_import: [{opsets}]> {text}")
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in tensors.items())
    return proto


def run(proto: onnx.ModelProto, *inputs: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {value.name: array for value, array in zip(session.get_inputs(), inputs, strict=True)})[0]


DENSE = "m (float[3, 6] x) => (float[3, 4] y) { d = DequantizeLinear (w, s, z) y = MatMul (x, d) }"
PER_AXIS = DENSE.replace("Linear (", "Linear <axis = 1> (")
BLOCKS = DENSE.replace("Linear (", "Linear <axis = 0, block_size = 4> (")
BODY = """m (float[3, 6] x, bool c) => (float[3, 4] y) {
    y = If (c) <then_branch = t () => (float[3, 4] o) { d = DequantizeLinear (w, s, z) o = MatMul (x, d) },
                else_branch = e () => (float[3, 4] o) { d = DequantizeLinear (w, s, z) p = MatMul (x, d) o = Neg (p) }>
}"""
MOVED = """m (float[3, 6] x) => (float[3, 4] y) {
    t = Transpose (w) d = DequantizeLinear (t, s, z) y = MatMul (x, d) }"""
TABLE = """m (int64[3] x) => (float[3, 4] y) { r = Gather (w, x) y = DequantizeLinear (r, s, z) }"""
INTEGER = """m (uint8[3, 6] x) => (float[3, 4] y) {
    p = MatMulInteger (x, w, xz, z) f = Cast <to = 1> (p) y = Mul (f, s) }"""
CONV = """m (uint8[1, 2, 5, 5] x) => (uint8[1, 3, 3, 3] y) {
    y = QLinearConv (x, xs, xz, w, s, z, ys, yz, b) }"""
NBITS = """m (float[3, 40] x) => (float[3, 5] y) {
    y = com.microsoft.MatMulNBits <K = 40, N = 5, bits = 4, block_size = 16> (x, w, s, z) }"""
ROWS = """m (int64[3] x) => (float[3, 32] y) {
    y = com.microsoft.GatherBlockQuantized <block_size = 16, bits = 4> (w, x, s) }"""
FLOATED = """m (float[3, 6] x) => (float[3, 4] y) {
    q, a, c = DynamicQuantizeLinear (x) y = com.microsoft.MatMulIntegerToFloat (q, w, a, s, c, z) }"""
DYNAMIC = "m (float[3, 6] x) => (float[3, 4] y) { y = com.microsoft.DynamicQuantizeMatMul (x, w, s, z) }"
GEMM = """m (uint8[3, 6] x) => (float[3, 4] y) {
    y = com.microsoft.QGemm <transB = 1, alpha = 0.5> (x, xs, xz, w, s, z, b) }"""
ATTENTION = """m (uint8[1, 3, 6] x) => (float[1, 3, 4] y) {
    y = com.microsoft.QAttention <num_heads = 2> (x, w, b, xs, s, , xz, z) }"""
LAST = """m (uint8[1, 5, 5, 2] x) => (uint8[1, 3, 3, 3] y) {
    y = com.microsoft.QLinearConv <channels_last = 1> (x, xs, xz, w, s, z, ys, yz, b) }"""
EXPERTS = """m (float[3, 16] x) => (float[3, 16] y) {
    y = com.microsoft.QMoE <k = 2, activation_type = "silu"> (x, r, w, s, , v, t, , , , , z, u) }"""

X = rand(3, 6)
X_BYTES = integers(3, 6, dtype=np.uint8)
IMAGE = integers(1, 2, 5, 5, dtype=np.uint8)
ONE = np.float32(0.02)
LIMITS = np.repeat(np.int8([[-128], [127]]), 12).reshape(6, 4)
ROUNDED = [
    ("int8", DENSE, [X], {"w": integers(6, 4), "s": ONE, "z": np.int8(3)}),
    ("uint8", DENSE, [X], {"w": integers(6, 4, dtype=np.uint8), "s": ONE, "z": np.uint8(120)}),
    ("int4", DENSE, [X], {"w": integers(6, 4, dtype=ml_dtypes.int4), "s": ONE, "z": np.array(1, ml_dtypes.int4)}),
    ("uint4", DENSE, [X], {"w": integers(6, 4, dtype=ml_dtypes.uint4), "s": ONE, "z": np.array(7, ml_dtypes.uint4)}),
    ("int16", DENSE, [X], {"w": integers(6, 4, dtype=np.int16), "s": ONE, "z": np.int16(9)}),
    ("limits", DENSE, [X], {"w": LIMITS, "s": scales()[()], "z": np.int8(0)}),
    ("per axis", PER_AXIS, [X], {"w": integers(6, 4), "s": scales(4), "z": integers(4)}),
    ("blocks", BLOCKS, [X], {"w": integers(6, 4), "s": scales(2, 4), "z": integers(2, 4)}),
    ("in bodies", BODY, [X, np.array(True)], {"w": integers(6, 4), "s": ONE, "z": np.int8(3)}),
    ("behind a transpose", MOVED, [X], {"w": integers(4, 6), "s": ONE, "z": np.int8(3)}),
    ("table", TABLE, [np.array([1, 4, 1])], {"w": integers(6, 4), "s": ONE, "z": np.int8(3)}),
    ("integer product", INTEGER, [X_BYTES], {"w": integers(6, 4), "xz": np.uint8(100), "z": np.int8(3), "s": ONE}),
    ("quantised convolution", CONV, [IMAGE], {
        "xs": ONE, "xz": np.uint8(100), "w": integers(3, 2, 3, 3), "s": scales(3), "z": np.zeros(3, np.int8),
        "ys": np.float32(0.3), "yz": np.uint8(128), "b": np.array([900, -900, 5], np.int32)}),
    ("channels last", LAST, [np.ascontiguousarray(np.moveaxis(IMAGE, 1, -1))], {
        "xs": ONE, "xz": np.uint8(100), "w": integers(3, 2, 3, 3), "s": scales(3), "z": np.zeros(3, np.int8),
        "ys": np.float32(0.3), "yz": np.uint8(128), "b": np.array([900, -900, 5], np.int32)}),
    ("floated product", FLOATED, [X], {"w": integers(6, 4), "s": scales(4), "z": np.zeros(4, np.int8)}),
    ("dynamic product", DYNAMIC, [X], {"w": integers(6, 4), "s": scales(4), "z": np.zeros(4, np.int8)}),
    ("quantised gemm", GEMM, [X_BYTES], {
        "xs": ONE, "xz": np.uint8(100), "w": integers(4, 6), "s": scales(4), "z": np.zeros(4, np.int8),
        "b": np.array([900, -900, 5, 0], np.int32)}),
    ("quantised attention", ATTENTION, [X_BYTES[None]], {
        "xs": np.float32(0.002), "xz": np.uint8(100), "w": integers(6, 12), "s": scales(12), "b": rand(12),
        "z": np.zeros(12, np.int8)}),
    ("experts", EXPERTS, [rand(3, 16)], {
        "r": rand(3, 2), "w": integers(2, 16, 8, dtype=np.uint8), "s": scales(2, 16),
        "z": integers(2, 8, dtype=np.uint8), "v": integers(2, 16, 8, dtype=np.uint8), "t": scales(2, 16),
        "u": integers(2, 8, dtype=np.uint8)}),
    ("four bits", NBITS, [rand(3, 40)], {
        "w": integers(5, 3, 8, dtype=np.uint8), "s": scales(15), "z": integers(10, dtype=np.uint8)}),
    ("rows of four bits", ROWS, [np.array([1, 4, 1])], {"w": integers(6, 16, dtype=np.uint8), "s": scales(6, 2)}),
]  # fmt: skip
IDS = [name for name, *_ in ROUNDED]


@pytest.mark.parametrize(("_", "text", "inputs", "tensors"), ROUNDED, ids=IDS)
class TestParameters:
    def test_same_outputs_and_bytes(self, _, text, inputs, tensors):
        proto = model(text, **tensors)
        mirror = Mirror(proto)
        assert "w" in mirror.weights
        assert mirror.weights["w"].dtype == torch.float32
        found = mirror.evaluate([torch.from_numpy(array) for array in inputs])[0]
        np.testing.assert_allclose(found.detach().numpy(), run(proto, *inputs), rtol=1e-5, atol=1e-5)
        before = proto.SerializeToString(deterministic=True)
        write_weights(proto, mirror.state())
        assert proto.SerializeToString(deterministic=True) == before

    def test_changed_weights_go_back_to_the_nearest_integers(self, _, text, inputs, tensors):
        proto = model(text, **tensors)
        mirror = Mirror(proto)
        weight = mirror.weights["w"]
        with torch.no_grad():
            weight[torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) < 0.5] = 0
            weight.view(-1)[:3] += 0.011  # off the grid
            weight.view(-1)[3] = 1e4  # beyond it
        inputs_ = [torch.from_numpy(array) for array in inputs]
        with torch.no_grad():
            expected = mirror.evaluate(inputs_)[0].numpy()
        write_weights(proto, {"w": mirror.state()["w"]})
        np.testing.assert_allclose(expected, run(proto, *inputs), rtol=1e-5, atol=1e-5)
        again = Mirror(proto)
        assert (again.weights["w"] == 0).sum() >= (weight == 0).sum()

    def test_gradients_and_second_derivatives_reach_it(self, _, text, inputs, tensors):
        proto = model(text, **tensors)
        mirror = Mirror(proto)
        output = plain(mirror.evaluate([torch.from_numpy(array) for array in inputs])[0])
        gradient = torch.autograd.grad(output.sum(), mirror.weights["w"])[0]
        h = second_of_weights(proto, inputs)["w"]
        assert torch.isfinite(gradient).all()
        assert torch.equal(gradient != 0, h != 0)
        assert h.any()


def test_values_are_the_dequantised_ones():
    w, s, z = integers(6, 4), scales(4), integers(4)
    mirror = Mirror(model(PER_AXIS, w=w, s=s, z=z))
    expected = (w.astype(np.float32) - z) * s
    np.testing.assert_array_equal(mirror.weights["w"].detach().numpy(), expected)


def test_gradient_and_second_derivatives_are_those_of_the_float_model():
    w, s, z = integers(6, 4), scales(4), np.zeros(4, np.int8)
    quantised = model(PER_AXIS, w=w, s=s, z=z)
    dense = model("m (float[3, 6] x) => (float[3, 4] y) { y = MatMul (x, w) }", w=w.astype(np.float32) * s)
    torch.testing.assert_close(second_of_weights(quantised, [X])["w"], second_of_weights(dense, [X])["w"])
    gradients = []
    for proto in (quantised, dense):
        mirror = Mirror(proto)
        mirror(torch.from_numpy(X)).square().sum().backward()
        gradients.append(mirror.weights["w"].grad)
    torch.testing.assert_close(*gradients)


def test_weights_at_the_limits_of_the_grid_have_gradients():
    for scale in scales(50):
        mirror = Mirror(model(DENSE, w=LIMITS, s=scale, z=np.int8(0)))
        mirror(torch.ones(3, 6)).sum().backward()
        assert (mirror.weights["w"].grad != 0).all()


def test_a_constant_node_and_a_function_body():
    w = integers(6, 4)
    values = ", ".join(map(str, w.reshape(-1)))
    text = f"""m (float[3, 6] x) => (float[3, 4] y) {{ y = local.f (x) }}
        <domain: "local", opset_import: ["" : 21]> f (x) => (y) {{
            w = Constant <value = int8[6, 4] {{{values}}}> ()
            s = Constant <value = float {{0.02}}> ()
            d = DequantizeLinear (w, s)
            y = MatMul (x, d)
        }}"""
    proto = model(text)
    mirror = Mirror(proto)
    np.testing.assert_array_equal(mirror.weights["w"].detach().numpy(), w * np.float32(0.02))
    before = proto.SerializeToString(deterministic=True)
    write_weights(proto, mirror.state())
    assert proto.SerializeToString(deterministic=True) == before
    with torch.no_grad():
        mirror.weights["w"].mul_(0)
    write_weights(proto, mirror.state())
    assert not run(proto, X).any()


REFUSED = {
    "a graph output": """m (float[3, 6] x) => (float[3, 4] y, int8[6, 4] v) {
        d = DequantizeLinear (w, s, z) y = MatMul (x, d) v = Identity (w) }""",
    "another reader": """m (float[3, 6] x) => (float[3, 4] y) {
        d = DequantizeLinear (w, s, z) f = Cast <to = 1> (w) e = Add (d, f) y = MatMul (x, e) }""",
    "two scales": """m (float[3, 6] x) => (float[3, 4] y) {
        d = DequantizeLinear (w, s, z) e = DequantizeLinear (w, s2, z) f = Add (d, e) y = MatMul (x, f) }""",
    "a scale that depends on the input": """m (float[3, 6] x) => (float[3, 4] y) {
        m = ReduceMax <keepdims = 0> (x) t = Abs (m) d = DequantizeLinear (w, t, z) y = MatMul (x, d) }""",
}


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED.keys())
def test_what_stays_a_constant(text):
    proto = model(text, w=integers(6, 4), s=ONE, z=np.int8(3), s2=np.float32(0.03))
    mirror = Mirror(proto)
    assert "w" not in mirror.weights
    np.testing.assert_allclose(mirror.evaluate([torch.from_numpy(X)])[0].detach().numpy(), run(proto, X), rtol=1e-5)


def test_readers_that_agree_share_one_parameter():
    text = """m (float[3, 6] x) => (float[3, 4] y) {
        d = DequantizeLinear (w, s, z) e = DequantizeLinear (w, s2, z) f = Mul (d, e) y = MatMul (x, f) }"""
    mirror = Mirror(model(text, w=integers(6, 4), s=ONE, z=np.int8(3), s2=ONE))
    assert sum(weight.numel() == 24 for weight in mirror.weights.values()) == 1


@pytest.mark.parametrize("field", ["raw_data", "int32_data"])
@pytest.mark.parametrize("elem_type", [TensorProto.INT8, TensorProto.UINT8, TensorProto.INT4, TensorProto.INT16])
def test_the_field_that_holds_the_integers_stays(field, elem_type):
    proto = model(DENSE, s=ONE, z=np.array(0, onnx.helper.tensor_dtype_to_np_dtype(elem_type)))
    values = np.arange(24) % 8
    tensor = onnx.helper.make_tensor("w", elem_type, [6, 4], values)
    if field == "raw_data":
        tensor = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor), "w")
    proto.graph.initializer.append(tensor)
    mirror = Mirror(proto)
    with torch.no_grad():
        mirror.weights["w"][0] = 0
    write_weights(proto, mirror.state())
    stored = next(t for t in proto.graph.initializer if t.name == "w")
    assert stored.HasField("raw_data") == (field == "raw_data")
    assert stored.data_type == elem_type
    expected = np.where(np.arange(24) < 4, 0, values).reshape(6, 4)
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(stored).astype(int), expected)
