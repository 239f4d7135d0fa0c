"""Where tensors are stored, and in what form: all of it shrinks in place."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_obd.surgery.shrink import shrink
from tests.surgery.graphs import Graph, body
from tests.surgery.oracle import run, some_of_each, zero_consumers
from tests.surgery.test_shrink import check, sizes, units_of


def shrunk(model: onnx.ModelProto, expected: dict[str, list[int]], tolerance: float = 2e-5) -> onnx.ModelProto:
    units = units_of(model)
    assert sizes(units) == expected, units.frozen
    return check(model, some_of_each(units.units, 0.4), units, tolerance)


def test_constant_nodes() -> None:
    g = Graph()
    values = [0.5 * g.generator.standard_normal(shape).astype(np.float32) for shape in ((7, 9), (9,), (9, 3))]
    x = g.input("x", "batch", 7)
    bias = g.op("Constant", value_floats=values[1].tolist())
    y = g.op("Tanh", g.op("Add", g.op("MatMul", x, g.constant(values[0])), bias))
    smaller = shrunk(g.model(g.op("MatMul", y, g.constant(values[2]))), {"neuron": [9]})
    stored = [attribute for node in smaller.graph.node for attribute in node.attribute]
    assert [list(a.t.dims) or len(a.floats) for a in stored] == [5, [7, 5], [5, 3]]


@pytest.mark.parametrize("coordinates", [False, True])
def test_sparse_initializer(coordinates: bool) -> None:
    g = Graph()
    dense = g.generator.standard_normal((9, 3)).astype(np.float32)
    dense[g.generator.random((9, 3)) < 0.5] = 0
    flat = np.flatnonzero(dense)
    indices = np.stack(np.unravel_index(flat, dense.shape), 1) if coordinates else flat
    values = numpy_helper.from_array(dense.reshape(-1)[flat], "sparse")
    g.sparse.append(helper.make_sparse_tensor(values, numpy_helper.from_array(indices.astype(np.int64)), dense.shape))
    hidden = g.op("Tanh", g.dense(g.input("x", "batch", 7), 7, 9))
    model = g.model(g.op("MatMul", hidden, "sparse"), infer=False)
    smaller = shrunk(model, {"neuron": [9]})
    (tensor,) = smaller.graph.sparse_initializer
    assert list(tensor.dims) == [5, 3] and len(tensor.indices.dims) == 1 + coordinates
    assert tensor.values.name == "sparse"


def test_typed_fields_stay_typed() -> None:
    g = Graph()
    y = g.op("Tanh", g.dense(g.input("x", "batch", 7), 7, 9))
    model = g.model(g.dense(y, 9, 3))
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        tensor.CopyFrom(helper.make_tensor(tensor.name, tensor.data_type, array.shape, array.reshape(-1)))
        tensor.doc_string = "kept"
    for tensor in shrunk(model, {"neuron": [9]}).graph.initializer:
        assert tensor.float_data and not tensor.HasField("raw_data") and tensor.doc_string == "kept"


def test_one_table_for_embedding_and_output() -> None:
    """A tensor used twice, once transposed."""
    g = Graph()
    table = g.weight(3, 6)
    y = g.op("Gather", table, g.input("tokens", "batch", 5, elem_type=TensorProto.INT64))
    y = g.op("Add", y, g.dense(g.op("Tanh", g.dense(y, 6, 8)), 8, 6))
    shrunk(g.model(g.op("MatMul", y, g.op("Transpose", table))), {"embedding": [6], "neuron": [8]})


def test_initializers_that_are_also_inputs() -> None:
    """As files of IR version 3 list them: their declared shapes follow."""
    g = Graph(opset=8)
    y = g.op("Relu", g.op("Gemm", g.input("x", "batch", 7), g.weight(7, 9), g.weight(9)))
    y = g.op("Gemm", y, g.weight(9, 3), g.weight(3))
    for tensor in g.initializers:
        g.inputs.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    smaller = shrunk(g.model(y, ir_version=3), {"neuron": [9]})
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in smaller.graph.input}
    assert all(shapes[tensor.name] == list(tensor.dims) for tensor in smaller.graph.initializer)


def test_declared_shapes_follow() -> None:
    g = Graph()
    hidden = g.op("Relu", g.conv(g.input("x", "batch", 3, 8, 10), 3, 6))
    smaller = shrunk(g.model(g.pooled(hidden, 6)), {"channel": [6]})
    (info,) = (value for value in smaller.graph.value_info if value.name == hidden)
    dims = info.type.tensor_type.shape.dim
    assert dims[0].dim_param == "batch" and [d.dim_value for d in dims[1:]] == [4, 8, 10]


@pytest.mark.parametrize("dtype, tolerance", [(np.float16, 2e-2), (np.float64, 1e-10)])
def test_precision(dtype: type, tolerance: float) -> None:
    g = Graph(dtype=dtype)
    y = g.op("Tanh", g.dense(g.input("x", "batch", 7), 7, 9))
    shrunk(g.model(g.dense(y, 9, 3)), {"neuron": [9]}, tolerance)


def branching(then: Graph, otherwise: Graph, shape: list | None = None) -> dict[str, onnx.GraphProto]:
    """Two graphs as the bodies of an If whose condition is an input; each returns its last value."""
    bodies = [body(each.nodes, [each.nodes[-1].output[0]], each.initializers) for each in (then, otherwise)]
    for each in bodies if shape else ():
        each.output[0].CopyFrom(helper.make_tensor_value_info(each.output[0].name, TensorProto.FLOAT, shape))
    return {"then_branch": bodies[0], "else_branch": bodies[1]}


def check_both_ways(model: onnx.ModelProto, expected: dict[str, list[int]]) -> onnx.ModelProto:
    """Whichever way the condition goes."""
    units = units_of(model)
    assert sizes(units) == expected, units.frozen
    removed = some_of_each(units.units, 0.4)
    smaller, zeroed = shrink(model, units, removed), zero_consumers(model, removed)
    onnx.checker.check_model(smaller, full_check=True)
    x = np.random.default_rng(2).standard_normal((3, 7)).astype(np.float32)
    found = []
    for condition in (True, False):
        feeds = {"x": x, "condition": np.array(condition)}
        (ours,), (theirs,) = run(smaller, feeds), run(zeroed, feeds)
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)
        assert not np.allclose(theirs, run(model, feeds)[0], atol=1e-3)
        found.append(theirs)
    assert not np.allclose(*found, atol=1e-3)
    return smaller


def test_weights_in_both_branches() -> None:
    """Inside one, and outside where both read it; the branch that the sample does not take shrinks too."""
    g = Graph()
    condition, x = g.input("condition", elem_type=TensorProto.BOOL), g.input("x", "batch", 7)
    hidden = g.op("Tanh", g.dense(x, 7, 9))
    inner, other = Graph(seed=1, prefix="inner_"), Graph(seed=2, prefix="other_")
    inner.op("MatMul", inner.op("Tanh", inner.op("MatMul", hidden, inner.weight(9, 8))), inner.weight(8, 3))
    other.op("MatMul", other.op("Tanh", other.op("MatMul", hidden, other.weight(9, 6))), other.weight(6, 3))
    y = g.op("If", condition, **branching(inner, other))
    smaller = check_both_ways(g.model(y), {"neuron": [6, 8, 9]})
    dims = [list(t.dims) for a in smaller.graph.node[-1].attribute for t in a.g.initializer]
    assert sorted(dims) == [[4, 3], [5, 3], [5, 4], [5, 5]]


def test_units_that_a_branch_returns() -> None:
    """Both return them, of shapes that are declared."""
    g = Graph()
    condition, x = g.input("condition", elem_type=TensorProto.BOOL), g.input("x", "batch", 7)
    hidden = g.dense(x, 7, 9)
    inner, other = Graph(seed=1, prefix="inner_"), Graph(seed=2, prefix="other_")
    inner.op("Tanh", inner.op("Mul", hidden, inner.weight(9)))
    other.op("Relu", hidden)
    y = g.op("If", condition, **branching(inner, other, ["batch", 9]))
    check_both_ways(g.model(g.dense(y, 9, 3)), {"neuron": [9]})


def test_a_branch_that_does_not_run_on_the_sample() -> None:
    g = Graph()
    hidden = g.op("Tanh", g.dense(g.input("x", "batch", 7), 7, 9))
    inner, other = Graph(seed=1, prefix="inner_"), Graph(seed=2, prefix="other_")
    inner.op("MatMul", inner.op("Tanh", inner.op("MatMul", hidden, inner.weight(9, 8))), inner.weight(8, 3))
    other.op("MatMul", other.op("Reshape", hidden, other.ints(5, 9)), other.weight(9, 3))
    condition = g.tensor(np.array(True))
    model = g.model(g.op("If", condition, **branching(inner, other)))
    units = units_of(model)
    assert sizes(units) == {"neuron": [8]}
    assert "else_branch does not run on the sample" in units.frozen[0].reason
    check(model, some_of_each(units.units, 0.4), units)


def test_weights_in_a_loop() -> None:
    """Hidden neurons of the body; what the body carries on stays."""
    inner = Graph(seed=1, prefix="inner_")
    carried = inner.op("Add", "state", inner.dense(inner.op("Tanh", inner.dense("state", 7, 9)), 9, 7))
    inner.op("Identity", "go_on")
    inputs = ("turn", TensorProto.INT64, []), ("go_on", TensorProto.BOOL, []), ("state", TensorProto.FLOAT, None)
    declared = [helper.make_tensor_value_info(*each) for each in inputs]
    turns = helper.make_graph(inner.nodes, "turns", declared, [
        helper.make_tensor_value_info(inner.nodes[-1].output[0], TensorProto.BOOL, []),
        helper.make_tensor_value_info(carried, TensorProto.FLOAT, None)], inner.initializers)  # fmt: skip
    g = Graph()
    y = g.op("Loop", g.tensor(np.int64(3)), g.tensor(np.array(True)), g.input("x", "batch", 7), body=turns)
    shrunk(g.model(g.dense(y, 7, 3)), {"neuron": [9]})


def test_model_functions() -> None:
    """A function called twice with other weights each time; the weights are its inputs."""
    g = Graph()
    nodes = [
        helper.make_node("MatMul", ["a", "w"], ["product"]),
        helper.make_node("Tanh", ["product"], ["y"]),
    ]
    imports = [helper.make_opsetid("", 17)]
    g.functions.append(helper.make_function("local", "Layer", ["a", "w"], ["y"], nodes, imports))
    x = g.input("x", "batch", 7)
    for size_in, size in ((7, 9), (9, 6)):
        x = g.op("Layer", x, g.weight(size_in, size), domain="local")
    shrunk(g.model(g.dense(x, 6, 3), imports={"local": 1}, infer=False), {"neuron": [6, 9]})


def test_weights_inside_a_function() -> None:
    """Weights of the function itself, which both calls share, so that a unit goes from both."""
    g = Graph()
    own = Graph(seed=3)
    weights = [own.constant(0.5 * own.generator.standard_normal(s).astype(np.float32)) for s in ((7, 9), (9, 7))]
    hidden = helper.make_node("MatMul", ["a", weights[0]], ["hidden"])
    nodes = [*own.nodes, hidden, helper.make_node("Tanh", ["hidden"], ["bent"])]
    nodes.append(helper.make_node("MatMul", ["bent", weights[1]], ["y"]))
    g.functions.append(helper.make_function("local", "Block", ["a"], ["y"], nodes, [helper.make_opsetid("", 17)]))
    y = g.op("Block", g.op("Block", g.input("x", "batch", 7), domain="local"), domain="local")
    shrunk(g.model(y, imports={"local": 1}, infer=False), {"neuron": [9]})


# ---- quantised


def quantised(g: Graph, shape: tuple[int, ...], axis: int) -> str:
    """Weights as int8 with one scale and zero point for each index of an axis."""
    q = g.tensor(g.generator.integers(-60, 60, shape).astype(np.int8))
    scale = g.tensor((0.01 + 0.01 * g.generator.random(shape[axis])).astype(np.float32))
    return g.op("DequantizeLinear", q, scale, g.tensor(np.zeros(shape[axis], np.int8)), axis=axis)


def fake_quantised(g: Graph, x: str) -> str:
    parameters = g.tensor(np.float32(0.04)), g.tensor(np.uint8(128))
    return g.op("DequantizeLinear", g.op("QuantizeLinear", x, *parameters), *parameters)


def test_quantised_and_dequantised() -> None:
    """Scales and zero points for each channel shrink with the integers, int32 biases too."""
    g = Graph()
    x, channels_in = fake_quantised(g, g.input("x", "batch", 3, 8, 10)), 3
    for channels in (6, 5):
        scale = g.tensor(np.full(channels, 0.001, np.float32))
        bias = g.tensor(g.generator.integers(-300, 300, channels).astype(np.int32))
        bias = g.op("DequantizeLinear", bias, scale, axis=0)
        x = g.op("Conv", x, quantised(g, (channels, channels_in, 3, 3), 0), bias)
        x, channels_in = fake_quantised(g, g.op("Relu", x)), channels
    smaller = shrunk(g.model(g.pooled(x, 5)), {"channel": [5, 6]})
    types = {t.data_type for t in smaller.graph.initializer}
    assert {TensorProto.INT8, TensorProto.INT32, TensorProto.UINT8} <= types


@pytest.mark.parametrize("zero_point", [0, 3])
def test_products_of_integers(zero_point: int) -> None:
    """QLinearConv, whose zero is the zero point: left out of the sum where the trial leaves something out."""
    g = Graph()
    scale, middle = g.tensor(np.float32(0.05)), g.tensor(np.uint8(120))
    x, channels_in = g.op("QuantizeLinear", g.input("x", "batch", 3, 8, 10), scale, middle), 3
    for channels in (6, 5):
        w = g.tensor(g.generator.integers(-60, 60, (channels, channels_in, 3, 3)).astype(np.int8))
        w_scale = g.tensor((0.005 + 0.01 * g.generator.random(channels)).astype(np.float32))
        w_zero = g.tensor(np.full(channels, zero_point, np.int8))
        bias = g.tensor(g.generator.integers(-300, 300, channels).astype(np.int32))
        x = g.op("QLinearConv", x, scale, middle, w, w_scale, w_zero, scale, middle, bias)
        channels_in = channels
    model = g.model(g.pooled(g.op("DequantizeLinear", x, scale, middle), 5))
    if zero_point == 0:
        shrunk(model, {"channel": [5, 6]})
    else:
        units = units_of(model)
        assert sizes(units) == {"channel": [5, 6]}
        shrink(model, units, some_of_each(units.units, 0.4))
