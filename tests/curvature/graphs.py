"""Small graphs in which every kind of weight stands before a nonlinearity, for comparison with dense derivatives."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tests.curvature.networks import model

_RNG = np.random.default_rng(7)


def _w(*shape: int) -> np.ndarray:
    return (_RNG.normal(size=shape) * 0.7).astype(np.float32)


def _node(op_type: str, inputs: list[str], output: str | list[str], **attributes) -> onnx.NodeProto:
    outputs = [output] if isinstance(output, str) else output
    return helper.make_node(op_type, inputs, outputs, name=f"the_{op_type}_{outputs[-1]}", **attributes)


def _tail(value: str) -> list[onnx.NodeProto]:
    return [_node("Tanh", [value], "bent"), _node("Flatten", ["bent"], "flat"), _node("MatMul", ["flat", "last"], "y")]


def _graph(nodes, shape, weights, width, opset=17) -> onnx.ModelProto:
    """``nodes`` end in the value "z" with ``width`` elements per sample."""
    return model([*nodes, *_tail("z")], {"x": ["N", *shape]}, {"y": ["N", 3]}, weights | {"last": _w(width, 3)}, opset)


def conv():
    node = _node("Conv", ["x", "w", "b"], "z", pads=[1, 0, 0, 1], strides=[1, 2])
    return _graph([node], (2, 4, 5), {"w": _w(3, 2, 2, 3), "b": _w(3)}, 3 * 4 * 2)


def grouped_conv():
    node = _node("Conv", ["x", "w"], "z", group=2, dilations=[1, 2])
    return _graph([node], (4, 3, 5), {"w": _w(6, 2, 2, 2)}, 6 * 2 * 3)


def conv_1d():
    return _graph([_node("Conv", ["x", "w"], "z")], (2, 6), {"w": _w(3, 2, 3)}, 3 * 4)


def conv_transpose():
    node = _node("ConvTranspose", ["x", "w", "b"], "z", strides=[2, 1])
    return _graph([node], (3, 2, 3), {"w": _w(3, 2, 2, 2), "b": _w(2)}, 2 * 4 * 4)


def matmul():
    return _graph([_node("MatMul", ["x", "w"], "z")], (4,), {"w": _w(4, 5)}, 5)


def matmul_of_a_sequence():
    return _graph([_node("MatMul", ["x", "w"], "z")], (3, 4), {"w": _w(4, 2)}, 6)


def matmul_from_the_left():
    return _graph([_node("MatMul", ["w", "x"], "z")], (4, 2), {"w": _w(3, 4)}, 6)


def gemm():
    node = _node("Gemm", ["x", "w", "c"], "z", transB=1, alpha=0.5, beta=2.0)
    return _graph([node], (4,), {"w": _w(5, 4), "c": _w(5)}, 5)


def gemm_of_a_scalar_bias():
    return _graph([_node("Gemm", ["x", "w", "c"], "z")], (4,), {"w": _w(4, 5), "c": _w(1)}, 5)


def einsum():
    return _graph([_node("Einsum", ["x", "w"], "z", equation="nij,jk->nki")], (3, 4), {"w": _w(4, 2)}, 6)


def bias():
    return _graph([_node("Add", ["x", "c"], "z")], (3, 2), {"c": _w(3, 1)}, 6)


def embedding():
    """The first feature picks a row of the table by its sign."""
    nodes = [
        _node("Greater", ["x", "zero"], "positive"),
        _node("Cast", ["positive"], "index", to=onnx.TensorProto.INT64),
        _node("Gather", ["table", "index"], "z"),
    ]
    return _graph(nodes, (3,), {"zero": np.zeros(1), "table": _w(2, 4)}, 12)


def batch_normalization():
    nodes = [_node("BatchNormalization", ["x", "gamma", "beta", "mean", "var"], "z")]
    weights = {"gamma": _w(3), "beta": _w(3), "mean": _w(3), "var": np.abs(_w(3)) + 0.5}
    return _graph(nodes, (3, 2), weights, 6)


def layer_normalization():
    nodes = [_node("LayerNormalization", ["x", "gamma", "beta"], "z", axis=-1)]
    return _graph(nodes, (2, 4), {"gamma": _w(4), "beta": _w(4)}, 8)


def _recurrent(op_type: str, gates: int):
    nodes = [
        _node("Transpose", ["x"], "steps", perm=[1, 0, 2]),
        _node(op_type, ["steps", "w", "r", "b"], ["", "z0"], hidden_size=2),
        _node("Squeeze", ["z0", "axes"], "z"),
    ]
    weights = {"w": _w(1, gates * 2, 3), "r": _w(1, gates * 2, 2), "b": _w(1, 2 * gates * 2)}
    proto = _graph(nodes, (4, 3), weights, 2)
    proto.graph.initializer.append(numpy_helper.from_array(np.array([0]), "axes"))
    return proto


def rnn():
    return _recurrent("RNN", 1)


def gru():
    return _recurrent("GRU", 3)


def lstm():
    return _recurrent("LSTM", 4)


def attention():
    """One head, written out."""
    nodes = [
        *[_node("MatMul", ["x", f"w{part}"], part) for part in "qkv"],
        _node("Transpose", ["k"], "kt", perm=[0, 2, 1]),
        _node("MatMul", ["q", "kt"], "scores"),
        _node("Softmax", ["scores"], "weights", axis=-1),
        _node("MatMul", ["weights", "v"], "z"),
    ]
    return _graph(nodes, (3, 4), {f"w{part}": _w(4, 2) for part in "qkv"}, 6)


def shared():
    """One matrix three times, once of them transposed."""
    nodes = [
        _node("MatMul", ["x", "w"], "a"),
        _node("Tanh", ["a"], "b"),
        _node("MatMul", ["b", "w"], "c"),
        _node("Transpose", ["w"], "wt"),
        _node("MatMul", ["c", "wt"], "z"),
    ]
    return _graph(nodes, (3,), {"w": _w(3, 3)}, 3)


def residual():
    nodes = [
        _node("Conv", ["x", "w1"], "a", pads=[1, 1, 1, 1]),
        _node("Relu", ["a"], "b"),
        _node("Conv", ["b", "w2"], "c", pads=[1, 1, 1, 1]),
        _node("Add", ["x", "c"], "z"),
    ]
    return _graph(nodes, (2, 3, 2), {"w1": _w(3, 2, 3, 3), "w2": _w(2, 3, 3, 3)}, 12)


def class_token():
    """A weight that is expanded to the batch and joined to the data, as in vision transformers."""
    nodes = [
        _node("Shape", ["x"], "count", end=1),
        _node("Concat", ["count", "tail"], "size", axis=0),
        _node("Expand", ["token", "size"], "tokens"),
        _node("Concat", ["tokens", "x"], "joined", axis=1),
        _node("MatMul", ["joined", "w"], "z"),
    ]
    proto = _graph(nodes, (2, 4), {"token": _w(1, 1, 4), "w": _w(4, 3)}, 9)
    proto.graph.initializer.append(numpy_helper.from_array(np.array([1, 4]), "tail"))
    return proto


def branches():
    """A weight inside the branches of an If."""

    def body(op_type: str) -> onnx.GraphProto:
        inside = _node(op_type, ["p"], "q")
        value = helper.make_tensor_value_info("q", onnx.TensorProto.FLOAT, None)
        product = _node("MatMul", ["x", "w"], "p")
        return helper.make_graph([product, inside], f"body_{op_type}", [], [value])

    nodes = [_node("If", ["which"], "z", then_branch=body("Tanh"), else_branch=body("Neg"))]
    proto = _graph(nodes, (4,), {"w": _w(4, 3)}, 3)
    proto.graph.initializer.append(numpy_helper.from_array(np.array(True), "which"))
    return proto


def loop():
    """A weight inside a Loop of three turns: h <- tanh(h w)."""
    float_, int_, bool_ = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, onnx.TensorProto.BOOL
    info = helper.make_tensor_value_info
    nodes = [_node("MatMul", ["h", "w"], "p"), _node("Tanh", ["p"], "h_out"), _node("Identity", ["go"], "go_out")]
    body = helper.make_graph(
        nodes,
        "body",
        [info("i", int_, []), info("go", bool_, []), info("h", float_, None)],
        [info("go_out", bool_, []), info("h_out", float_, None)],
    )
    proto = _graph([_node("Loop", ["turns", "yes", "x"], "z", body=body)], (3,), {"w": _w(3, 3)}, 3)
    for name, value in (("turns", np.array(3)), ("yes", np.array(True))):
        proto.graph.initializer.append(numpy_helper.from_array(value, name))
    return proto


def conv_3d():
    return _graph([_node("Conv", ["x", "w"], "z")], (2, 3, 2, 3), {"w": _w(2, 2, 2, 2, 2)}, 2 * 2 * 1 * 2)


def dilated_conv_transpose():
    node = _node("ConvTranspose", ["x", "w"], "z", group=2, dilations=[2], pads=[1, 0])
    return _graph([node], (4, 3), {"w": _w(4, 2, 2)}, 4 * 4)


def matmul_of_stacked_matrices():
    return _graph([_node("MatMul", ["x", "w"], "z")], (3, 2, 4), {"w": _w(3, 4, 2)}, 3 * 2 * 2)


def pooled_and_resized():
    """A convolution, then an average pool, a maximum and a bilinear resize behind it."""
    nodes = [
        _node("Conv", ["x", "w"], "a"),
        _node("AveragePool", ["a"], "b", kernel_shape=[2, 2]),
        _node("Resize", ["b", "", "scales"], "c", mode="linear"),
        _node("MaxPool", ["c"], "z", kernel_shape=[2, 1]),
    ]
    proto = _graph(nodes, (2, 5, 4), {"w": _w(2, 2, 2, 2)}, 2 * 5 * 4)
    proto.graph.initializer.append(numpy_helper.from_array(np.float32([1, 1, 2, 2]), "scales"))
    return proto


def group_normalization():
    nodes = [_node("InstanceNormalization", ["x", "gamma", "beta"], "z")]
    return _graph(nodes, (3, 4), {"gamma": _w(3), "beta": _w(3)}, 12)


def scan():
    """A weight inside a Scan over the second axis: h <- tanh(x_t w + h)."""
    info, float_ = helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    nodes = [
        _node("MatMul", ["step", "w"], "p"), _node("Add", ["p", "h"], "q"), _node("Tanh", ["q"], "h_out"),
    ]  # fmt: skip
    body = helper.make_graph(
        nodes, "body", [info("h", float_, None), info("step", float_, None)], [info("h_out", float_, None)]
    )
    before = [_node("ReduceSum", ["x", "one"], "start", keepdims=0), _node("Slice", ["start", "0", "2", "1"], "short")]
    over = _node("Scan", ["short", "x"], "z", body=body, num_scan_inputs=1, scan_input_axes=[1])
    proto = _graph([*before, over], (3, 4), {"w": _w(4, 2)}, 2)
    for name, value in (("one", [1]), ("0", [0]), ("2", [2]), ("1", [1])):
        proto.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    return proto


def quantised():
    """Weights stored as integers."""
    nodes = [_node("DequantizeLinear", ["stored", "step"], "w"), _node("MatMul", ["x", "w"], "z")]
    proto = _graph(nodes, (3,), {}, 4)
    stored = _RNG.integers(-100, 100, (3, 4)).astype(np.int8)
    for name, value in (("stored", stored), ("step", np.float32(0.01))):
        proto.graph.initializer.append(numpy_helper.from_array(value, name))
    return proto


def fused_attention():
    """onnxruntime's node: two heads, one matrix for queries, keys and values."""
    node = helper.make_node("Attention", ["x", "w", "b"], ["z"], domain="com.microsoft", name="fused", num_heads=2)
    proto = _graph([node], (3, 4), {"w": _w(4, 12), "b": _w(12)}, 12)
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return proto


GRAPHS = {
    function.__name__: function
    for function in (
        conv, grouped_conv, conv_1d, conv_transpose, matmul, matmul_of_a_sequence, matmul_from_the_left, gemm,
        gemm_of_a_scalar_bias, einsum, bias, embedding, batch_normalization, layer_normalization, rnn, gru, lstm,
        attention, shared, residual, class_token, branches, loop, conv_3d, dilated_conv_transpose,
        matmul_of_stacked_matrices, pooled_and_resized, group_normalization, scan, quantised, fused_attention,
    )
}  # fmt: skip
