import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from onnx_obd.mirror.mirror import Mirror
from onnx_obd.mirror.propagate import propagate
from onnx_obd.mirror.uses import uses_of
from onnx_obd.mirror.values import Quantised, plain
from tests.mirror.harness import across, case, check_forward, check_gradient, check_second, rand

X = rand(2, 3, 4, low=-2, high=3)
SCALE, ZERO = np.float32(0.03), np.uint8(30)
SCALES, ZEROS = rand(3, low=0.02, high=0.1), np.array([-3, 5, 0], np.int8)
Q = np.arange(24, dtype=np.uint8).reshape(2, 3, 4) * 9
SIGNED_Q = (Q.astype(np.int16) - 100).clip(-128, 127).astype(np.int8)
BLOCKS, BLOCK_ZEROS = rand(2, 3, 2, low=0.02, high=0.1), np.arange(12, dtype=np.uint8).reshape(2, 3, 2)
ALL = (10, 13, 19, 21, 23, 24, 25, 28)
ONE = np.float32(1)


def in_blocks(parameter):
    """One number for three elements of the last axis: 4 elements have two blocks, the second one short."""
    return np.repeat(parameter, 3, axis=2)[:, :, :4]


def nearest(x, low, high):
    return np.clip(np.rint(x), low, high)


QUANTIZE = [
    *across(ALL, case("QuantizeLinear", 13, X, SCALE, ZERO)),
    *across(ALL[1:], case("QuantizeLinear", 13, X, SCALES, ZEROS, axis=-2)),
    case("QuantizeLinear", 13, X, SCALE),
    case("QuantizeLinear", 21, X, SCALE, output_dtype=TensorProto.INT16),
    case("QuantizeLinear", 21, X, BLOCKS, BLOCK_ZEROS, axis=2, block_size=3,
         expected=(nearest(np.rint(X / in_blocks(BLOCKS)) + in_blocks(BLOCK_ZEROS), 0, 255).astype(np.uint8),)),
    case("QuantizeLinear", 21, X, np.float32(0.2), np.array(1, ml_dtypes.int4), weights=(2,),
         expected=(nearest(np.rint(X / np.float32(0.2)) + 1, -8, 7).astype(np.int8),)),
    case("QuantizeLinear", 21, X, np.float32(0.2), output_dtype=TensorProto.UINT4,
         expected=(nearest(X / np.float32(0.2), 0, 15).astype(np.uint8),)),
    case("QuantizeLinear", 19, 300 * X, ONE, np.array(0, ml_dtypes.float8_e4m3fn), weights=(2,),
         expected=((300 * X).clip(-448, 448).astype(ml_dtypes.float8_e4m3fn),)),
    case("QuantizeLinear", 23, X, np.float32(0.7), output_dtype=TensorProto.FLOAT4E2M1,
         expected=((X / np.float32(0.7)).astype(ml_dtypes.float4_e2m1fn).astype(np.float32),)),
    case("QuantizeLinear", 19, X.astype(np.float16), np.float16(0.03), ZERO),
    case("QuantizeLinear", 23, X, np.float16(0.25), ZERO, precision=TensorProto.FLOAT,
         expected=(nearest(np.rint(X * 4) + 30, 0, 255).astype(np.uint8),)),
    case("DynamicQuantizeLinear", 11, X, outputs=3),
    case("DynamicQuantizeLinear", 11, np.abs(X), outputs=3),
    case("DynamicQuantizeLinear", 11, np.zeros((2, 3), np.float32), outputs=3),
]  # fmt: skip
DEQUANTIZE = [
    *across(ALL, case("DequantizeLinear", 13, Q, SCALE, ZERO)),
    *across(ALL[1:], case("DequantizeLinear", 13, SIGNED_Q, SCALES, ZEROS, axis=1)),
    case("DequantizeLinear", 13, np.int32([[70000, -5]]), SCALE),
    case("DequantizeLinear", 21, Q, BLOCKS, BLOCK_ZEROS, axis=2, block_size=3,
         expected=((Q.astype(np.float32) - in_blocks(BLOCK_ZEROS)) * in_blocks(BLOCKS),)),
    case("DequantizeLinear", 19, SIGNED_Q, np.float16(0.03), np.int8(2)),
    case("DequantizeLinear", 23, Q, SCALE, ZERO, output_dtype=TensorProto.FLOAT16, tolerance=2e-3,
         expected=(((Q.astype(np.float32) - 30) * SCALE).astype(np.float16),)),
    case("DequantizeLinear", 19, X.astype(ml_dtypes.float8_e5m2), SCALE, weights=(1,),
         expected=(X.astype(ml_dtypes.float8_e5m2).astype(np.float32) * SCALE,)),
]  # fmt: skip

A, W = Q.reshape(6, 4), (np.arange(20, dtype=np.uint8) * 12).reshape(4, 5)
B = W.view(np.int8)
PER_COLUMN = np.array([1, -2, 3, 0, 5], np.int8)
IMAGE = (np.arange(2 * 4 * 5 * 6) * 37 % 256).astype(np.uint8).reshape(2, 4, 5, 6)
KERNEL = (np.arange(6 * 2 * 3 * 2) * 29 % 256 - 128).astype(np.int8).reshape(6, 2, 3, 2)
GEOMETRY = {"group": 2, "pads": [1, 0, 2, 1], "strides": [2, 1], "kernel_shape": [3, 2]}
KERNEL_SCALES, W_SCALE = rand(6, low=0.005, high=0.02), np.float32(0.01)
Y_SCALE, Y_ZERO = np.float32(0.8), np.uint8(80)
BIAS = np.array([500, -500, 0, 7, 90, -1000], np.int32)

PRODUCTS = [
    case("MatMulInteger", 10, A, W, np.uint8(7), np.uint8(99)),
    case("MatMulInteger", 10, A, B, np.uint8(7), PER_COLUMN),
    case("MatMulInteger", 10, A, W),
    case("ConvInteger", 10, IMAGE, KERNEL.view(np.uint8), np.uint8(9), **GEOMETRY),
    case("ConvInteger", 10, IMAGE, KERNEL.view(np.uint8), auto_pad="SAME_UPPER", group=2),
    *across((10, 21), case("QLinearMatMul", 10, A, SCALE, ZERO, W, W_SCALE, np.uint8(99), Y_SCALE, Y_ZERO)),
    case("QLinearMatMul", 10, A, SCALE, ZERO, B, SCALES[0] + rand(5, low=0, high=0.01), PER_COLUMN, Y_SCALE, ZERO),
    case("QLinearConv", 10, IMAGE, SCALE, ZERO, KERNEL, KERNEL_SCALES, np.zeros(6, np.int8), Y_SCALE, Y_ZERO, BIAS,
         **GEOMETRY),
    case("QLinearConv", 10, IMAGE, SCALE, ZERO, KERNEL, W_SCALE, np.int8(0), Y_SCALE, Y_ZERO, group=2),
]  # fmt: skip
CASES = QUANTIZE + DEQUANTIZE + PRODUCTS


@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward(case):
    check_forward(case)


@pytest.mark.parametrize("case", [c for c in DEQUANTIZE if c.expected is None or c.inputs[1].ndim], ids=str)
def test_gradient_of_the_scale(case):
    check_gradient(case)


@pytest.mark.parametrize("case", [c for c in CASES if c.op_type not in ("MatMulInteger", "ConvInteger")], ids=str)
def test_second(case):
    """For a rounded output the Jacobian of reference is the straight-through one."""
    check_second(case)


@pytest.mark.parametrize("case", PRODUCTS, ids=str)
def test_second_of_a_product_whose_first_operand_was_quantised(case):
    product = case.model()
    feeds = case.feeds()
    first = feeds.pop("in0")
    tensors = feeds | {"one": ONE, "zero": np.zeros((), first.dtype)}
    nodes = [helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["in0"]), *product.graph.node]
    mirror = Mirror(model(nodes, {"x": first.shape}, ["out0"], opset=case.opset, **tensors)).double()
    x = torch.from_numpy(first.astype(np.float64)) + 0.2
    plan = mirror.plan([x])
    with torch.no_grad():
        env = plan.record(plan.start([x]))
    seed = torch.from_numpy(rand(*env[plan.outputs[0]].shape, low=0.1, high=1).astype(np.float64))
    estimated = set()
    h = propagate(plan, env, {plan.outputs[0]: seed}, plan.inputs, estimated=estimated)[plan.inputs[0]]
    assert not estimated
    jacobian = torch.autograd.functional.jacobian(lambda v: plain(mirror.evaluate([v])[0]), x)
    torch.testing.assert_close(
        h, torch.einsum("ji,j->i", jacobian.reshape(seed.numel(), -1).square(), seed.reshape(-1)).reshape(x.shape)
    )


def model(nodes, inputs, outputs, opset=13, **initializers):
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in initializers.items()]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()]
    graph = helper.make_graph(nodes, "g", values, [onnx.ValueInfoProto(name=name) for name in outputs], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def fake_quantisation():
    """A weight behind QuantizeLinear and DequantizeLinear, with a Transpose and a Reshape between them."""
    nodes = [
        helper.make_node("QuantizeLinear", ["w", "s", "z"], ["q"]),
        helper.make_node("Transpose", ["q"], ["qt"], perm=[1, 0]),
        helper.make_node("Reshape", ["qt", "shape"], ["qr"]),
        helper.make_node("DequantizeLinear", ["qr", "s", "z"], ["wd"]),
        helper.make_node("MatMul", ["x", "wd"], ["y"]),
    ]
    w = np.float32([[0.12, -0.31, 9], [0.48, 0.02, -9]])  # the last column saturates
    return model(nodes, {"x": [4, 3]}, ["y", "qr"], w=w, s=np.float32(0.05), z=np.int8(0), shape=np.array([3, 2]))


def test_gradient_passes_straight_through_to_the_weight():
    mirror = Mirror(fake_quantisation())
    x = torch.from_numpy(rand(4, 3))
    y, q = mirror(x)
    assert q.dtype == torch.int8
    y.sum().backward()
    inside = torch.tensor([[1.0, 1, 0], [1, 1, 0]])
    torch.testing.assert_close(mirror.weights["w"].grad, inside * x.sum(0))


def test_second_derivatives_pass_straight_through_to_the_weight():
    mirror = Mirror(fake_quantisation())
    x = torch.from_numpy(rand(4, 3))
    plan = mirror.plan([x])
    with torch.no_grad():
        env = plan.record(plan.start([x]))
    weight = mirror.weight_slots()["w"]
    h = propagate(plan, env, {mirror.slot("y"): torch.ones(4, 2)}, [weight])[weight]
    inside = torch.tensor([[1.0, 1, 0], [1, 1, 0]])
    torch.testing.assert_close(h, inside * x.square().sum(0))
    assert not isinstance(h, Quantised)


def test_a_quantised_weight_is_the_matrix_of_the_product_behind():
    mirror = Mirror(fake_quantisation())
    (use,) = uses_of(mirror.program, mirror.weight_slots()["w"])
    assert use.operator.name == "MatMul"
    assert use.multiplies
    assert not any(use.multiplies for use in uses_of(mirror.program, mirror.weight_slots()["s"]))


def dynamically_quantised():
    """x is quantised by its own range, multiplied as integers and scaled back; w2 stands before it."""
    nodes = [
        helper.make_node("Mul", ["x", "gain"], ["scaled"]),
        helper.make_node("DynamicQuantizeLinear", ["scaled"], ["q", "s", "z"]),
        helper.make_node("MatMulInteger", ["q", "w", "z", "wz"], ["products"]),
        helper.make_node("Cast", ["products"], ["sums"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["s", "ws"], ["scale"]),
        helper.make_node("Mul", ["sums", "scale"], ["y"]),
    ]
    return model(nodes, {"x": [6, 4]}, ["y"], gain=rand(4), w=B, wz=PER_COLUMN, ws=np.float32(0.02))


def test_gradient_passes_through_integer_products():
    """y = (x + e s) w, with the range s a function of x and the rounding error e, in steps, a constant."""
    mirror = Mirror(dynamically_quantised()).double()
    x = torch.from_numpy(rand(6, 4)).double()
    mirror(x).square().sum().backward()
    gain = mirror.weights["gain"].detach().requires_grad_()
    weights = 0.02 * (torch.from_numpy(B).double() - torch.from_numpy(PER_COLUMN).double())
    scaled = x * gain
    step = (scaled.max().clamp_min(0) - scaled.min().clamp_max(0)) / 255
    error = ((scaled / step).round() - scaled / step).detach()
    ((scaled + error * step) @ weights).square().sum().backward()
    torch.testing.assert_close(mirror.weights["gain"].grad, gain.grad)


def test_quantised_values_keep_their_mark_when_moved_and_lose_it_when_read():
    x = Quantised.mark(torch.tensor([[1.0, 2], [3, 4]], requires_grad=True) * 1, torch.int8)
    for moved in (x.T, x.reshape(4), torch.cat([x, x]), torch.max_pool1d(x[None], 2), x.split(1)[1], x[0]):
        assert isinstance(moved, Quantised)
        assert moved.element_dtype == torch.int8
    assert isinstance(x.topk(1).values, Quantised)
    assert not isinstance(x > 2, Quantised)
    assert not isinstance(x.topk(1).indices, Quantised)
    assert type(torch.autograd.grad(x.sum(), x)[0]) is torch.Tensor


def test_the_gradient_passes_under_function_transforms_too():
    mirror = Mirror(fake_quantisation())
    x = torch.from_numpy(rand(4, 3))

    def loss(w):
        return mirror.evaluate([x], weights={"w": w})[0].square().sum()

    w = mirror.weights["w"].detach()
    expected = torch.autograd.grad(loss(mirror.weights["w"]), mirror.weights["w"])[0]
    torch.testing.assert_close(torch.func.grad(loss)(w), expected)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(w.expand(2, 2, 3))[1], expected)
