"""Networks of the kind that second-derivative libraries are timed on, with random weights."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper


class _Sequential:
    """Appends nodes to a chain; weights are He-initialised."""

    def __init__(self, shape: Sequence[int]):
        self.shape, self.value = tuple(shape), "x"
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.rng = np.random.default_rng(0)

    def add(self, op_type: str, *weights: np.ndarray, **attributes) -> None:
        name = f"{op_type.lower()}{len(self.nodes)}"
        names = [f"{name}.{i}" for i in range(len(weights))]
        self.weights += [numpy_helper.from_array(w.astype(np.float32), n) for w, n in zip(weights, names, strict=True)]
        self.nodes.append(helper.make_node(op_type, [self.value, *names], [f"{name}.y"], name=name, **attributes))
        self.value = f"{name}.y"

    def conv(self, channels_in: int, channels_out: int, kernel: int, pad: int = 0) -> None:
        w = self.rng.normal(size=(channels_out, channels_in, kernel, kernel)) * (2 / channels_in / kernel**2) ** 0.5
        self.add("Conv", w, np.zeros(channels_out), pads=[pad] * 4)
        self.add("Relu")

    def pool(self, kernel: int, stride: int) -> None:
        self.add("MaxPool", kernel_shape=[kernel] * 2, strides=[stride] * 2, auto_pad="SAME_UPPER")

    def dense(self, *sizes: int) -> None:
        self.add("Flatten")
        for position, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
            if position:
                self.add("Relu")
            self.add("Gemm", self.rng.normal(size=(fan_out, fan_in)) * (2 / fan_in) ** 0.5, np.zeros(fan_out), transB=1)

    def model(self) -> onnx.ModelProto:
        x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", *self.shape])
        y = helper.make_tensor_value_info(self.value, onnx.TensorProto.FLOAT, ["N", 10])
        graph = helper.make_graph(self.nodes, "network", [x], [y], self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def lenet() -> onnx.ModelProto:
    """LeNet-5 on 28 x 28: two convolutions, three dense nodes, 61,706 parameters."""
    net = _Sequential((1, 28, 28))
    net.conv(1, 6, 5, pad=2)
    net.pool(2, 2)
    net.conv(6, 16, 5)
    net.pool(2, 2)
    net.dense(400, 120, 84, 10)
    return net.model()


def conv3_dense3() -> onnx.ModelProto:
    """The 3c3d net of DeepOBS on 3 x 32 x 32: three convolutions, three dense nodes, 895,210 parameters."""
    net = _Sequential((3, 32, 32))
    net.conv(3, 64, 5)
    net.pool(3, 2)
    net.conv(64, 96, 3)
    net.pool(3, 2)
    net.conv(96, 128, 3, pad=1)
    net.pool(3, 2)
    net.dense(1152, 512, 256, 10)
    return net.model()


NETWORKS = {"lenet": lenet, "3c3d": conv3_dense3}
