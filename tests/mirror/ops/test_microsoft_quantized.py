"""Values against onnxruntime, second derivatives against the straight-through Jacobian."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from onnx import helper, numpy_helper

from onnx_obd.mirror.mirror import Mirror
from onnx_obd.mirror.propagate import propagate
from onnx_obd.mirror.values import plain
from tests.mirror.harness import case, check_forward, rand

microsoft = partial(case, domain="com.microsoft")
RNG = np.random.default_rng(3)


def bytes_(*shape: int, dtype=np.uint8) -> np.ndarray:
    return RNG.integers(0, 256, shape).astype(np.uint8).view(dtype)


def scale(value: float) -> np.ndarray:
    return np.array(value, np.float32)


X, Y = bytes_(2, 3, 4), bytes_(3, 4)
X_SCALE, X_ZERO = scale(0.031), np.uint8(120)
Y_SCALE, Y_ZERO = scale(0.047), np.uint8(90)
Z_SCALE, Z_ZERO = scale(0.0513), np.uint8(110)
SIGNED = bytes_(2, 3, 4, dtype=np.int8)
IMAGE = bytes_(2, 3, 6, 5)
NHWC = np.ascontiguousarray(IMAGE.transpose(0, 2, 3, 1))
WINDOW = {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1], "strides": [2, 1]}
A, B = bytes_(4, 6), bytes_(6, 5, dtype=np.int8)
COLUMN_SCALES, COLUMN_ZEROS = rand(5, low=0.01, high=0.03), np.array([0, 3, -2, 0, 1], np.int8)

ELEMENTWISE = [
    microsoft("QLinearAdd", 1, X, X_SCALE, X_ZERO, Y, Y_SCALE, Y_ZERO, Z_SCALE, Z_ZERO),
    microsoft("QLinearMul", 1, X, X_SCALE, X_ZERO, Y, Y_SCALE, Y_ZERO, scale(0.103), Z_ZERO),
    microsoft("QLinearAdd", 1, SIGNED, X_SCALE, np.int8(3), SIGNED[:1], Y_SCALE, np.int8(1), Z_SCALE),
    microsoft("QLinearLeakyRelu", 1, X, X_SCALE, X_ZERO, Y_SCALE, Y_ZERO, alpha=0.3),
    microsoft("QLinearLeakyRelu", 1, SIGNED, X_SCALE, np.int8(2), Y_SCALE, np.int8(-5)),
    microsoft("QLinearSigmoid", 1, X, X_SCALE, X_ZERO, scale(1 / 256), np.uint8(0)),
    microsoft("QLinearWhere", 1, RNG.random((2, 3, 4)) < 0.5, X, X_SCALE, X_ZERO, Y, Y_SCALE, Y_ZERO, Z_SCALE, Z_ZERO),
    microsoft("QLinearConcat", 1, Z_SCALE, Z_ZERO, X, X_SCALE, X_ZERO, bytes_(2, 2, 4), Y_SCALE, Y_ZERO, axis=1),
    microsoft("QuantizeLinear", 1, rand(2, 3, 4, low=-3, high=3), X_SCALE, X_ZERO),
    microsoft("QuantizeLinear", 1, rand(2, 3), rand(3, low=0.01, high=0.02), np.array([-1, 0, 5], np.int8), axis=1),
    microsoft("DequantizeLinear", 1, X, X_SCALE, X_ZERO),
    microsoft("DequantizeLinear", 1, SIGNED, rand(4, low=0.01, high=0.02), np.array([-1, 0, 5, 9], np.int8), axis=2),
]
WINDOWS = [
    microsoft("QLinearAveragePool", 1, IMAGE, X_SCALE, X_ZERO, Y_SCALE, Y_ZERO, **WINDOW),
    microsoft("QLinearAveragePool", 1, IMAGE, X_SCALE, X_ZERO, Y_SCALE, Y_ZERO, **WINDOW, count_include_pad=1),
    microsoft("QLinearAveragePool", 1, NHWC, X_SCALE, X_ZERO, Y_SCALE, Y_ZERO, **WINDOW, channels_last=1),
    microsoft("QLinearGlobalAveragePool", 1, IMAGE, X_SCALE, X_ZERO, scale(0.011), Y_ZERO),
    microsoft("QLinearGlobalAveragePool", 1, NHWC, X_SCALE, X_ZERO, scale(0.011), Y_ZERO, channels_last=1),
]
SOFTMAX = microsoft("QLinearSoftmax", 1, X, X_SCALE, X_ZERO, scale(1 / 256), np.uint8(0))
WINDOWS += [replace(SOFTMAX, attributes={"opset": 13}), replace(SOFTMAX, attributes={"opset": 12, "axis": 1})]
UNEVEN = microsoft("QLinearSoftmax", 1, bytes_(40, 9), scale(0.02), X_ZERO, scale(0.0031), np.uint8(0), gradient=False)
WINDOWS += [replace(UNEVEN, attributes={"opset": 13})]  # 1 / 0.0031 is not whole
PRODUCTS = [
    microsoft("QLinearConv", 1, IMAGE, X_SCALE, X_ZERO, bytes_(4, 3, 3, 2, dtype=np.int8), scale(0.011), np.int8(0),
              scale(0.713), Y_ZERO, np.array([90, -1000, 0, 700], np.int32), **WINDOW),
    microsoft("QLinearConv", 1, NHWC, X_SCALE, X_ZERO, bytes_(4, 3, 3, 2, dtype=np.int8), scale(0.011), np.int8(0),
              scale(0.713), Y_ZERO, channels_last=1),
    microsoft("MatMulIntegerToFloat", 1, A, B, X_SCALE, COLUMN_SCALES, X_ZERO, COLUMN_ZEROS, rand(5)),
    microsoft("MatMulIntegerToFloat", 1, A, B, X_SCALE, scale(0.02)),
    microsoft("DynamicQuantizeMatMul", 1, rand(2, 4, 6), B, COLUMN_SCALES, COLUMN_ZEROS, rand(5)),
    microsoft("DynamicQuantizeMatMul", 1, rand(4, 6), bytes_(6, 5), scale(0.02), np.uint8(99)),
    microsoft("QGemm", 1, A, X_SCALE, X_ZERO, B, COLUMN_SCALES, COLUMN_ZEROS, np.arange(5, dtype=np.int32) * 900),
    microsoft("QGemm", 1, A.T.copy(), X_SCALE, X_ZERO, B.T.copy(), scale(0.02), np.int8(1), None, scale(0.303), Y_ZERO,
              transA=1, transB=1, alpha=0.5),
    microsoft("QAttention", 1, bytes_(2, 3, 5), rand(5, 24).astype(np.int8) + bytes_(5, 24, dtype=np.int8), rand(24),
              X_SCALE, scale(0.02), np.array([3, 2], np.int32), X_ZERO, np.int8(2), num_heads=2),
    microsoft("QAttention", 1, bytes_(2, 3, 5), bytes_(5, 24, dtype=np.int8), rand(24), X_SCALE,
              rand(24, low=0.01, high=0.02), None, X_ZERO, np.zeros(24, np.int8), rand(2, 2, 2, 2, 4), num_heads=2,
              unidirectional=1, outputs=2),
]  # fmt: skip


def lstm(*others, directions=1, scales=1, **attributes):
    """One sequence: of several, onnxruntime quantises those together that one thread works on."""
    x, bias = rand(4, 1, 5), rand(directions, 24)
    w, r = bytes_(directions, 5, 12, dtype=np.int8), bytes_(directions, 3, 12, dtype=np.int8)
    values = []
    for _ in range(2):
        zeros = np.zeros((directions, scales) if scales > 1 else directions, np.int8)  # onnxruntime wants no other
        values += [rand(*zeros.shape, low=0.005, high=0.01), zeros]
    others = (*others, *[None] * 4)[:4]
    weights = (1, 2, 8, 9, 10, 11)
    return microsoft(
        "DynamicQuantizeLSTM",
        1,
        x,
        w,
        r,
        bias[:, :24],
        *others,
        *values,
        weights=weights,
        outputs=3,
        hidden_size=3,
        direction="bidirectional" if directions == 2 else "forward",
        **attributes,
    )


IDS = RNG.integers(0, 3, (2, 4)).astype(np.int32)
TABLES = [bytes_(5, 8), bytes_(6, 8), bytes_(3, 8), bytes_(8), bytes_(8)]
TABLE_SCALES = [scale(s) for s in (0.01, 0.02, 0.03, 0.01, 0.02)]
TABLE_ZEROS = [np.uint8(z) for z in (9, 99, 128, 5, 3)]
LAYERS = [
    lstm(),
    lstm(None, rand(2, 1, 3), rand(2, 1, 3), directions=2, scales=12),
    microsoft("QEmbedLayerNormalization", 1, IDS, IDS[::-1].copy(), *TABLES, None, *TABLE_SCALES, *TABLE_ZEROS,
              outputs=2, epsilon=1e-5),
    microsoft("QEmbedLayerNormalization", 1, IDS, None, *TABLES[:2], None, *TABLES[3:], IDS.clip(0, 1),
              *TABLE_SCALES[:2], None, *TABLE_SCALES[3:], *TABLE_ZEROS[:2], None, *TABLE_ZEROS[3:], outputs=2,
              epsilon=1e-5),
]  # fmt: skip
CASES = ELEMENTWISE + WINDOWS + PRODUCTS + LAYERS


@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward(case):
    check_forward(case)


def _behind_a_quantiser(case):
    """The node of ``case`` with a QuantizeLinear of float x (scale 1) before each of its quantised tensors."""
    model, feeds, free = case.model(), case.feeds(), {}
    nodes = []
    for name, value in feeds.items():
        if value.dtype in (np.uint8, np.int8) and value.ndim > 1:
            free[f"x_{name}"] = value.astype(np.float64)
            nodes.append(helper.make_node("QuantizeLinear", [f"x_{name}", "one", f"zero_{value.dtype}"], [name]))
    rest = {name: value for name, value in feeds.items() if f"x_{name}" not in free}
    rest |= {"one": np.float32(1), "zero_uint8": np.uint8(0), "zero_int8": np.int8(0)}
    inputs = [helper.make_tensor_value_info(name, 1, value.shape) for name, value in free.items()]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in rest.items()]
    graph = helper.make_graph([*nodes, *model.graph.node], "g", inputs, model.graph.output, tensors)
    return helper.make_model(graph, opset_imports=model.opset_import), list(free.values())


INEXACT = {"QAttention", "QuantizeLinear", "DynamicQuantizeMatMul"}  # by parts, or a float operand
EXACT = [c for c in ELEMENTWISE + WINDOWS + PRODUCTS if c.op_type not in INEXACT]


@pytest.mark.parametrize("case", EXACT, ids=str)
def test_second_derivatives_of_the_quantised_operands(case):
    proto, values = _behind_a_quantiser(case)
    mirror = Mirror(proto).double()
    inputs = [torch.from_numpy(value) for value in values]
    plan = mirror.plan(inputs)
    with torch.no_grad():
        env = plan.record(plan.start(inputs))
    seed = torch.linspace(1, 2, env[plan.outputs[0]].numel()).double().view(env[plan.outputs[0]].shape)
    estimated = set()
    h = propagate(plan, env, {plan.outputs[0]: seed}, plan.inputs, estimated=estimated)
    assert not estimated
    for position, slot in enumerate(plan.inputs):

        def output(value, position=position):
            return plain(mirror.evaluate([*inputs[:position], value, *inputs[position + 1 :]])[0])

        jacobian = torch.autograd.functional.jacobian(output, inputs[position])
        expected = jacobian.reshape(seed.numel(), -1).square().mul(seed.reshape(-1, 1)).sum(0)
        assert expected.any()
        torch.testing.assert_close(h[slot], expected.view(inputs[position].shape))
