"""Writing over operands changes no result, no input and no weight."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.helper as oh
import pytest
import torch
from onnx import TensorProto

from onnx_obd.mirror.mirror import Mirror
from onnx_obd.mirror.reuse import run_watched


def _mirror(nodes, outputs=("y",), weights=None) -> Mirror:
    values = [oh.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", *outputs)]
    tensors = [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in (weights or {}).items()]
    graph = oh.make_graph(nodes, "g", values[:1], values[1:], tensors)
    return Mirror(oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8))


def _overwriting(mirror: Mirror, x: torch.Tensor) -> list[str]:
    """The nodes that write over an operand under ``no_grad``."""
    plan = mirror.plan([x])
    with torch.no_grad():
        calls, _ = run_watched(plan, plan.start([x]), lambda *told: None)
    pairs = zip(plan.steps, calls, strict=True)
    return [step.operator.name for step, call in pairs if call is not step.call]


def _check(mirror: Mirror, x: torch.Tensor) -> None:
    kept, weights = x.clone(), {name: w.detach().clone() for name, w in mirror.weights.items()}
    expected = mirror.evaluate([x])
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(mirror.evaluate([x]), expected, rtol=0, atol=0)
    assert torch.equal(x, kept)
    assert all(torch.equal(w, weights[name]) for name, w in mirror.weights.items())


W = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
X = torch.linspace(-2, 2, 6).reshape(2, 3)
node = oh.make_node


def test_a_chain_needs_one_buffer():
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("Relu", ["a"], ["b"]), node("Tanh", ["b"], ["c"])]
    mirror = _mirror([*nodes, node("Add", ["c", "c"], ["y"])], weights={"w": W})
    _check(mirror, X)
    assert _overwriting(mirror, X) == ["Relu", "Tanh", "Add"]


@pytest.mark.parametrize(
    "nodes",
    [
        [node("Relu", ["x"], ["y"])],
        [node("Identity", ["x"], ["a"]), node("Relu", ["a"], ["y"])],
        [node("Transpose", ["x"], ["a"], perm=[1, 0]), node("Relu", ["a"], ["y"])],
        [node("Transpose", ["w"], ["a"], perm=[1, 0]), node("Relu", ["a"], ["b"]), node("MatMul", ["x", "w"], ["y"])],
        [node("MatMul", ["x", "w"], ["a"]), node("Relu", ["a"], ["b"]), node("Sub", ["b", "a"], ["y"])],
        [
            node("MatMul", ["x", "w"], ["a"]), node("Identity", ["a"], ["v"]), node("Relu", ["a"], ["b"]),
            node("Sub", ["b", "v"], ["y"]),
        ],
    ],
    ids=["input", "alias of input", "view of input", "view of weight", "read later", "alias read later"],
)  # fmt: skip
def test_what_somebody_still_reads_is_left_alone(nodes):
    mirror = _mirror(nodes, weights={"w": W})
    _check(mirror, X)
    assert "Relu" not in _overwriting(mirror, X)


def test_graph_outputs_are_left_alone():
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("Relu", ["a"], ["b"]), node("Mul", ["b", "b"], ["y"])]
    mirror = _mirror(nodes, outputs=("a", "y"), weights={"w": W})
    _check(mirror, X)
    assert _overwriting(mirror, X) == ["Mul"]


def test_a_smaller_operand_cannot_hold_the_result():
    nodes = [node("ReduceMax", ["x"], ["a"], axes=[1]), node("Add", ["a", "x"], ["y"])]
    mirror = _mirror(nodes)
    _check(mirror, X)
    assert _overwriting(mirror, X) == []


@pytest.mark.parametrize("op_type", ["Add", "Sub", "Mul", "Div"])
def test_the_second_operand_may_hold_the_result(op_type):
    nodes = [node("MatMul", ["x", "w"], ["a"]), node(op_type, ["c", "a"], ["y"])]
    mirror = _mirror(nodes, weights={"w": W, "c": np.full((2, 1), 3, np.float32)})
    _check(mirror, X)
    assert _overwriting(mirror, X) == [op_type]


def test_an_operand_that_lies_otherwise_than_the_result_is_left_alone():
    nodes = [
        node("MatMul", ["x", "w"], ["a"]), node("Exp", ["a"], ["b"]), node("Transpose", ["v"], ["u"], perm=[1, 0]),
        node("Exp", ["u"], ["c"]), node("Sub", ["a", "c"], ["d"]), node("Add", ["b", "d"], ["y"]),
    ]  # fmt: skip
    mirror = _mirror(nodes, outputs=("a", "y"), weights={"w": W, "v": np.ones((4, 2), np.float32)})
    _check(mirror, X)
    assert _overwriting(mirror, X) == ["Add"]


def test_a_reshape_that_copies_for_some_strides_only():
    nodes = [node("Reshape", ["x", "s"], ["a"]), node("Relu", ["a"], ["y"])]
    mirror = _mirror(nodes, weights={"s": np.array([3, 2])})
    for x in (X.t().contiguous().t(), X):  # the same shape: first a copy, then a view of the input
        _check(mirror, x)


def test_what_comes_out_of_a_branch_may_be_anybodys():
    """One branch returns a value of its own, the other that of an outer node which is read again."""
    value = oh.make_tensor_value_info("r", TensorProto.FLOAT, None)
    fresh = oh.make_graph([node("Neg", ["a"], ["r"])], "fresh", [], [value])
    alias = oh.make_graph([node("Identity", ["a"], ["r"])], "alias", [], [value])
    nodes = [
        node("MatMul", ["x", "w"], ["a"]),
        node("ReduceMax", ["x"], ["m"], keepdims=0),
        node("Greater", ["m", "z"], ["c"]),
        node("If", ["c"], ["b"], then_branch=fresh, else_branch=alias),
        node("Relu", ["b"], ["d"]),
        node("Sub", ["d", "a"], ["y"]),
    ]
    mirror = _mirror(nodes, weights={"w": W, "z": np.float32(0)})
    for x in (X, -X.abs()):
        _check(mirror, x)
