"""onnxruntime's own blocked operators, one by one and as it writes them."""

from functools import partial

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from onnx_obd.graph.weights import write_weights
from onnx_obd.mirror.mirror import Mirror
from onnx_obd.mirror.ops.microsoft_nchwc import DOMAIN, block_size
from tests.mirror.harness import case, check, rand

blocked = partial(case, domain=DOMAIN)
B = block_size()
X, ONE = rand(2, 2 * B, 5, 4), rand(1, B, 2, 2)
large = partial(blocked, gradient=False)  # derivatives on one block are enough

CASES = [
    blocked("ReorderInput", 1, rand(1, 4, 2, 3)),
    large("ReorderInput", 1, rand(2, B + 4, 3, 5)),
    large("ReorderInput", 1, rand(2, 3, 5, B + 4), channels_last=1),
    large("ReorderOutput", 1, X, channels=B + 4),
    large("ReorderOutput", 1, X, channels=2 * B, channels_last=1),
    blocked("ReorderOutput", 1, rand(1, B, 1, 2), channels=3),
    large("Conv", 1, X, rand(3 * B, 2 * B, 3, 2), rand(3 * B), pads=[1, 0, 1, 1], kernel_shape=[3, 2]),
    large("Conv", 1, X, rand(B, 2 * B, 1, 1), rand(B), rand(2, B, 5, 4), activation="Relu", kernel_shape=[1, 1]),
    large("Conv", 1, X, rand(4 * B, B, 3, 3), None, group=2, strides=[2, 1], kernel_shape=[3, 3]),
    large("Conv", 1, X, rand(2 * B, 1, 3, 3), None, group=2 * B, kernel_shape=[3, 3], activation="LeakyRelu",
          activation_params=[0.2]),
    large("Conv", 1, rand(2, 3, 5, 4), rand(B, 3, 3, 2), rand(B), kernel_shape=[3, 2], dilations=[2, 1]),
    blocked("Conv", 1, rand(1, 1, 3, 2), rand(B, 1, 2, 2), rand(B), kernel_shape=[2, 2]),
    large("MaxPool", 1, X, kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 0]),
    large("AveragePool", 1, X, kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1]),
    large("AveragePool", 1, X, kernel_shape=[3, 2], pads=[1, 0, 1, 1], count_include_pad=1),
    blocked("MaxPool", 1, ONE, kernel_shape=[2, 1]),
    blocked("AveragePool", 1, ONE, kernel_shape=[1, 2]),
    blocked("GlobalAveragePool", 1, ONE),
    blocked("GlobalMaxPool", 1, ONE),
    blocked("Upsample", 1, ONE, scales=[1, 1, 1, 2]),
    large("GlobalAveragePool", 1, X),
    large("GlobalMaxPool", 1, X),
    large("Upsample", 1, X, scales=[1, 1, 2, 3]),
    large("Upsample", 1, X, scales=[1, 1, 2, 3], mode="linear", coordinate_transformation_mode="half_pixel"),
    large("Upsample", 1, X, scales=[1, 1, 3, 2], mode="linear", coordinate_transformation_mode="align_corners"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_operator(case):
    check(case)


def _network() -> onnx.ModelProto:
    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(rand(*shape), name)

    nodes = [
        helper.make_node("Conv", ["x", "first"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "depthwise"], ["c"], group=2 * B, pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["c", "pointwise", "bias"], ["d"]),
        helper.make_node("Add", ["b", "d"], ["e"]),
        helper.make_node("MaxPool", ["e"], ["f"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["f", "last"], ["g"]),
        helper.make_node("GlobalAveragePool", ["g"], ["y"]),
    ]
    weights = [
        weight("first", 2 * B, 3, 3, 3), weight("depthwise", 2 * B, 1, 3, 3), weight("pointwise", 2 * B, 2 * B, 1, 1),
        weight("bias", 2 * B), weight("last", 5, 2 * B, 3, 2),
    ]  # fmt: skip
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 6])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5, 1, 1])
    graph = helper.make_graph(nodes, "network", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_network_that_onnxruntime_blocked(tmp_path):
    options, path = ort.SessionOptions(), tmp_path / "blocked.onnx"
    options.optimized_model_filepath, options.log_severity_level = str(path), 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = ort.InferenceSession(_network().SerializeToString(), options, providers=["CPUExecutionProvider"])
    written = onnx.load(path)
    convolutions = [node for node in written.graph.node if (node.domain, node.op_type) == (DOMAIN, "Conv")]
    if not convolutions:
        pytest.skip("onnxruntime does not block convolutions on this processor")

    x = rand(2, 3, 8, 6)
    mirror = Mirror(written)
    assert not mirror.boundaries
    y = mirror(torch.from_numpy(x))
    expected = session.run(None, {"x": x})[0]
    assert np.abs(y.detach().numpy() - expected).max() < 1e-5 * np.abs(expected).max()
    y.square().sum().backward()
    kernels = [mirror.weights[node.input[1]] for node in convolutions]
    assert len(kernels) == 4
    assert all(kernel.grad.isfinite().all() and kernel.grad.any() for kernel in kernels)
    before = written.SerializeToString()
    write_weights(written, mirror.state())
    assert written.SerializeToString() == before
