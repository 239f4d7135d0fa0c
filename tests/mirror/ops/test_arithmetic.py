import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from onnx_obd.mirror.mirror import Mirror
from onnx_obd.mirror.propagate import propagate
from onnx_obd.mirror.values import to_torch
from tests.mirror.harness import across, case, check, rand

A, B, LAST = rand(2, 3, 4), rand(2, 3, 4, low=0.5, high=2), rand(3, 1, low=0.5, high=2)
MIDDLE = rand(3, low=0.5, high=2)  # goes with axis 1 of A under the rules of opset 6
POSITIVE = rand(2, 3, 4, low=0.5, high=2)
INTEGERS, DIVISORS = np.array([[7, -7, 5], [-5, 8, -9]]), np.array([3, -2, 4])


def old_forms(name, function, opsets=(1, 6), a=A):
    """Up to opset 6: equal shapes, or B along ``axis``, or B along the last axes."""
    last = rand(3, 4, low=0.5, high=2)
    for opset in opsets:
        yield case(name, opset, a, B, expected=(function(a, B),))
        yield case(name, opset, a, MIDDLE, broadcast=1, axis=1, expected=(function(a, MIDDLE[:, None]),))
        yield case(name, opset, a, last, broadcast=1, weights=(1,), expected=(function(a, last),))


CASES = [
    *old_forms("Add", np.add),
    *old_forms("Sub", np.subtract),
    *old_forms("Mul", np.multiply),
    *old_forms("Div", np.divide),
    *old_forms("Pow", np.power, (1,), POSITIVE),
    *[case(name, opset, A, LAST, weights=(1,)) for name in ("Add", "Sub", "Mul", "Div") for opset in (7, 13, 14)],
    *[case(name, 14, A[0, :, :1], B) for name in ("Add", "Sub", "Mul", "Div")],
    *[case(name, 14, INTEGERS, DIVISORS, gradient=False) for name in ("Add", "Sub", "Mul", "Div")],
    *across((7, 12, 13, 15), case("Pow", 15, POSITIVE, rand(3, 1, high=2), weights=(1,))),
    case("Pow", 15, A, np.array(3), weights=(1,)),
    case("Pow", 15, A, np.array([2], np.int32)),
    case("Pow", 15, INTEGERS, np.array([2, 3, 0]), gradient=False),
    case("Pow", 15, np.abs(INTEGERS), np.array(1.5, np.float32), gradient=False),
    *across((10, 13, 28), case("Mod", 13, rand(2, 3, low=-3, high=3), rand(3, low=0.5, high=2), fmod=1)),
    case("Mod", 28, np.float32([-3.5, 3.5, -1]), np.float32([2, -2, 3]), expected=(np.float32([0.5, -0.5, 2]),)),
    case("Mod", 13, INTEGERS, DIVISORS, gradient=False),
    case("Mod", 13, INTEGERS, DIVISORS, fmod=1, gradient=False),
    *[c for name in ("Max", "Min") for c in across((1, 6, 8, 12, 13), case(name, 13, A, B, -A))],
    *[case(name, 13, A, LAST, rand(4)) for name in ("Max", "Min")],
    case("Max", 13, INTEGERS, DIVISORS, gradient=False),
    case("Min", 13, A),
    *[c for name in ("Sum", "Mean") for c in across((1, 6, 8, 13), case(name, 13, A, B, POSITIVE))],
    *[case(name, 13, A, LAST, rand(4), weights=(2,)) for name in ("Sum", "Mean")],
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_operator(case):
    check(case)


@pytest.mark.parametrize(
    ("name", "opset", "attributes"),
    [("Mul", 6, {"broadcast": 1, "axis": 0}), ("Mul", 14, {}), ("Add", 14, {}), ("Sum", 13, {}), ("Mean", 13, {})],
)
def test_second_of_an_operand_that_stands_twice(name, opset, attributes):
    """The slopes of the two places add up before they are squared: y = x x has (2 x)^2, y = x + x has 4."""
    node = helper.make_node(name, ["x", "x"], ["y"], **attributes)
    x, y = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, 4]), onnx.ValueInfoProto(name="y")
    graph = helper.make_graph([node], "g", [x], [y])
    mirror = Mirror(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)]))
    plan = mirror.plan([to_torch(A)])
    with torch.no_grad():
        env = plan.record(plan.start([to_torch(A)]))
    seed = to_torch(B)
    h = propagate(plan, env, {plan.outputs[0]: seed}, plan.inputs)[plan.inputs[0]]
    slope = {"Mul": 2 * to_torch(A), "Add": 2.0, "Sum": 2.0, "Mean": 1.0}[name]
    torch.testing.assert_close(h, slope**2 * seed)


def test_power_of_a_negative_base_has_no_gradient_in_the_exponent_instead_of_nan():
    base, exponent = np.float32([-2, 3]), np.float32([2])
    mirror = Mirror(case("Pow", 15, base, exponent, weights=(1,)).model())
    x = to_torch(base).requires_grad_()
    mirror(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor([-4.0, 6.0]))
    torch.testing.assert_close(mirror.weights["in1"].grad, torch.tensor([9 * np.log(3.0)], dtype=torch.float32))
