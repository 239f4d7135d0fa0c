"""Networks of every kind that units are found in, each with the units that it has: kind -> sizes of its families."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx

from tests.surgery.graphs import Graph

Expected = dict[str, list[int]]
NETWORKS: dict[str, tuple[Callable[[], onnx.ModelProto], Expected]] = {}


def network(**expected: list[int]) -> Callable[[Callable[[], onnx.ModelProto]], Callable[[], onnx.ModelProto]]:
    def register(build: Callable[[], onnx.ModelProto]) -> Callable[[], onnx.ModelProto]:
        kinds = {kind.replace("_", " ") if kind != "hidden_size" else kind: sizes for kind, sizes in expected.items()}
        NETWORKS[build.__name__] = build, kinds
        return build

    return register


def image(g: Graph, channels: int = 3) -> str:
    return g.input("x", "batch", channels, 8, 10)


# ---- convolutions


@network(channel=[8, 6])
def conv_batchnorm_pool() -> onnx.ModelProto:
    g = Graph()
    y = g.conv(image(g), 3, 8)
    y = g.op("BatchNormalization", y, g.weight(8), g.weight(8), g.weight(8), g.weight(8, positive=True))
    y = g.op("MaxPool", g.op("Relu", y), kernel_shape=[2, 2], strides=[2, 2])
    y = g.op("PRelu", g.conv(y, 8, 6, bias=False), g.weight(6, 1, 1))
    return g.model(g.pooled(g.op("AveragePool", y, kernel_shape=[2, 2]), 6))


@network(channel=[4, 6], group=[2])
def grouped_conv() -> onnx.ModelProto:
    """Four input channels and six output channels for each of two groups, which also go as a whole."""
    g = Graph()
    y = g.conv(g.op("Relu", g.conv(image(g), 3, 8)), 8, 12, group=2)
    return g.model(g.pooled(g.op("Relu", y), 12))


@network(channel=[8])
def depthwise_conv() -> onnx.ModelProto:
    g = Graph()
    y = g.op("Clip", g.conv(image(g), 3, 8, kernel=1), g.scalar(0), g.scalar(6))
    return g.model(g.pooled(g.op("Relu", g.conv(y, 8, 8, group=8)), 8))


@network(channel=[2], group=[8])
def depthwise_conv_with_multiplier() -> onnx.ModelProto:
    g = Graph()
    return g.model(g.pooled(g.op("Relu", g.conv(g.op("Relu", g.conv(image(g), 3, 8)), 8, 16, group=8)), 16))


@network(channel=[3, 4, 5], group=[2])
def transposed_conv() -> onnx.ModelProto:
    g = Graph()
    y = g.op("Relu", g.conv(image(g), 3, 6))
    y = g.op("ConvTranspose", y, g.weight(6, 4, 3, 3), g.weight(8), strides=[2, 2], group=2)
    y = g.op("ConvTranspose", g.op("Relu", y), g.weight(8, 5, 2, 2), g.weight(5))
    return g.model(g.pooled(y, 5))


@network(channel=[6])
def residual() -> onnx.ModelProto:
    """What is added and multiplied goes together, through two blocks and a scale for each channel."""
    g = Graph()
    x = g.op("Relu", g.conv(image(g), 3, 6))
    y = g.op("Add", x, g.op("Relu", g.conv(x, 6, 6)))
    y = g.op("Mul", y, g.conv(x, 6, 6, kernel=1))
    return g.model(g.pooled(g.op("Sum", y, g.op("Mul", x, g.weight(6, 1, 1))), 6))


@network(channel=[4, 2, 2, 7])
def concat_split_slice() -> onnx.ModelProto:
    """Two branches side by side, then parted elsewhere, so that of the second 2, 1 and 2 fare alike."""
    g = Graph()
    x = image(g)
    y = g.op("Concat", g.conv(x, 3, 4), g.conv(x, 3, 5), axis=1)
    a, b = g.op("Split", y, g.ints(6, 3), axis=1, outputs=2)
    c = g.op("Slice", y, g.ints(-2), g.ints(99), g.ints(1))
    y = g.op("Concat", g.op("Relu", a), g.op("Tanh", b), g.op("Relu", c), axis=1)
    return g.model(g.pooled(g.op("Relu", g.conv(y, 11, 7)), 7))


@network(channel=[4, 5])
def padded_channels() -> onnx.ModelProto:
    """A shortcut filled up with zeros, as in the first residual networks: 2 before, 3 after."""
    g = Graph()
    x = g.op("Relu", g.conv(image(g), 3, 4))
    shortcut = g.op("Pad", x, g.ints(0, 2, 0, 0, 0, 3, 0, 0))
    y = g.op("Conv", g.op("Pad", x, g.ints(0, 0, 1, 1, 0, 0, 1, 1)), g.weight(9, 4, 3, 3))
    y = g.op("Relu", g.op("Add", y, g.conv(x, 4, 9, kernel=5)))
    return g.model(g.pooled(g.op("Add", y, g.op("Slice", shortcut, g.ints(0), g.ints(9), g.ints(1))), 9))


@network(channel=[6, 8])
def resized() -> onnx.ModelProto:
    g = Graph()
    y = g.op("Resize", g.op("Relu", g.conv(image(g), 3, 6)), "", g.tensor(np.float32([1, 1, 2, 2])), mode="nearest")
    y = g.op("Relu", g.conv(y, 6, 8))
    batch = g.op("Slice", g.op("Shape", y), g.ints(0), g.ints(1))
    y = g.op("Resize", y, "", "", g.op("Concat", batch, g.ints(8, 5, 7), axis=0), mode="linear")
    return g.model(g.pooled(y, 8))


@network(channel=[3, 5], neuron=[6])
def depth_to_space() -> onnx.ModelProto:
    """Four input channels become one: they go together."""
    g = Graph()
    y = g.op("DepthToSpace", g.op("Relu", g.conv(image(g), 3, 12)), blocksize=2, mode="DCR")
    y = g.op("DepthToSpace", g.op("Relu", g.conv(y, 3, 20)), blocksize=2, mode="CRD")
    y = g.op("GlobalAveragePool", g.op("SpaceToDepth", y, blocksize=2))
    return g.model(g.dense(g.op("Sigmoid", g.dense(g.op("Flatten", y), 20, 6)), 6, 4))


@network(group=[4])
def group_normalization() -> onnx.ModelProto:
    """A channel cannot leave its group: the statistics would change."""
    g = Graph(opset=21)
    y = g.op("GroupNormalization", g.conv(image(g), 3, 12), g.weight(12), g.weight(12), num_groups=4)
    return g.model(g.pooled(g.op("Relu", y), 12))


@network(channel=[4])
def group_normalization_written_out() -> onnx.ModelProto:
    g = Graph()
    y = g.op("Reshape", g.conv(image(g), 3, 12), g.ints(0, 4, -1))
    y = g.op("InstanceNormalization", y, g.tensor(np.ones(4, np.float32)), g.tensor(np.zeros(4, np.float32)))
    y = g.op("Reshape", y, g.ints(0, 12, 8, 10))
    return g.model(g.pooled(g.op("Add", g.op("Mul", y, g.weight(12, 1, 1)), g.weight(12, 1, 1)), 12))


@network(channel=[3, 5, 4])
def channel_shuffle() -> onnx.ModelProto:
    """Three groups of five channels dealt out: a channel goes from every group at once, or a group as a whole."""
    g = Graph()
    y = g.op("Relu", g.conv(image(g), 3, 15))
    y = g.op("Reshape", y, g.ints(0, 3, 5, 8, 10))
    y = g.op("Reshape", g.op("Transpose", y, perm=[0, 2, 1, 3, 4]), g.ints(0, 15, 8, 10))
    return g.model(g.pooled(g.op("Relu", g.conv(y, 15, 4)), 4))


@network(channel=[8, 3])
def squeeze_and_excite() -> onnx.ModelProto:
    g = Graph()
    x = g.op("Relu", g.conv(image(g), 3, 8))
    gate = g.op("Relu", g.conv(g.op("GlobalAveragePool", x), 8, 3, kernel=1))
    return g.model(g.pooled(g.op("Mul", x, g.op("Sigmoid", g.conv(gate, 3, 8, kernel=1))), 8))


@network(channel=[6, 7])
def channels_last() -> onnx.ModelProto:
    """As tf2onnx writes it: every Conv between two Transposes, biases at the end of the shape."""
    g = Graph()
    x = g.input("x", "batch", 8, 10, 3)
    for channels_in, channels in ((3, 6), (6, 7)):
        x = g.conv(g.op("Transpose", x, perm=[0, 3, 1, 2]), channels_in, channels, bias=False)
        x = g.op("Relu", g.op("Add", g.op("Transpose", x, perm=[0, 2, 3, 1]), g.weight(channels)))
    x = g.op("ReduceMean", x, axes=[1, 2], keepdims=0)
    return g.model(g.dense(x, 7, 4))


@network(channel=[5], neuron=[9])
def flattened() -> onnx.ModelProto:
    """A channel is six rows of the dense weights behind it."""
    g = Graph()
    y = g.op("MaxPool", g.op("Relu", g.conv(image(g), 3, 5)), kernel_shape=[4, 3], strides=[4, 3])
    y = g.op("Reshape", g.op("Unsqueeze", y, g.ints(0)), g.constant(np.int64([-1, 30])))
    y = g.op("Squeeze", g.op("Unsqueeze", y, g.ints(2)), g.ints(2))
    return g.model(g.dense(g.op("Relu", g.op("Gemm", y, g.weight(9, 30), g.weight(9), transB=1)), 9, 4))


@network(channel=[6, 4])
def gathered_channels() -> onnx.ModelProto:
    """Channels in another order, one of them twice, by constant indices."""
    g = Graph()
    y = g.op("Gather", g.op("Relu", g.conv(image(g), 3, 6)), g.ints(3, 0, -1, 1, 3, 2, 4), axis=1)
    return g.model(g.pooled(g.op("Relu", g.conv(y, 7, 4)), 4))


# ---- dense


@network(neuron=[16, 12])
def mlp() -> onnx.ModelProto:
    g = Graph()
    y = g.op("Relu", g.op("Gemm", g.input("x", "batch", 7), g.weight(7, 16), g.weight(16)))
    return g.model(g.dense(g.op("Tanh", g.dense(y, 16, 12)), 12, 3))


@network(neuron=[11])
def gated_mlp() -> onnx.ModelProto:
    g = Graph()
    x = g.input("x", "batch", 5, 7)
    gate = g.op("MatMul", x, g.weight(7, 11))
    y = g.op("Mul", g.op("Mul", gate, g.op("Sigmoid", gate)), g.op("MatMul", x, g.weight(7, 11)))
    return g.model(g.op("MatMul", y, g.weight(11, 7)))


@network(neuron=[11])
def gated_mlp_in_one_product() -> onnx.ModelProto:
    """Both halves of one product; the Split has no sizes and stays without."""
    g = Graph(opset=13)
    gate, y = g.op("Split", g.op("MatMul", g.input("x", "batch", 5, 7), g.weight(7, 22)), axis=-1, outputs=2)
    return g.model(g.op("MatMul", g.op("Mul", g.op("Sigmoid", gate), y), g.weight(11, 7)))


@network(neuron=[6, 6])
def halves_of_one_product() -> onnx.ModelProto:
    """The halves go on apart: a Split of equal parts gets sizes."""
    g = Graph(opset=18)
    a, b = g.op("Split", g.dense(g.input("x", "batch", 7), 7, 12), axis=1, outputs=2, num_outputs=2)
    return g.model(g.op("Add", g.dense(g.op("Relu", a), 6, 3), g.dense(g.op("Tanh", b), 6, 3)))


@network(embedding=[6], neuron=[10])
def embedding() -> onnx.ModelProto:
    g = Graph()
    y = g.op("Gather", g.weight(3, 6), g.input("tokens", "batch", 5, elem_type=onnx.TensorProto.INT64))
    return g.model(g.dense(g.op("Relu", g.dense(y, 6, 10)), 10, 3))


@network(neuron=[8])
def expanded_token() -> onnx.ModelProto:
    """A learned token repeated for the batch before the data, as in vision transformers, and a table of positions."""
    g = Graph()
    x = g.input("x", "batch", 5, 7)
    first = g.op("Gather", g.op("Shape", x), g.ints(0))
    token = g.op("Expand", g.weight(1, 1, 8), g.op("Concat", first, g.ints(1, 8), axis=0))
    y = g.op("Add", g.op("Concat", token, g.dense(x, 7, 8), axis=1), g.weight(1, 6, 8))
    return g.model(g.dense(g.op("Relu", y), 8, 3))


@network(head=[3, 3], head_dimension=[4] * 4)
def one_shape_for_all_layers() -> onnx.ModelProto:
    """As PyTorch's second exporter writes sizes of an open batch and length: once for all nodes that need them."""
    g, size, width = Graph(), 4, 12
    y = x = g.input("x", "batch", 6, width)
    batch, length = (g.op("Shape", x, start=axis, end=axis + 1) for axis in range(2))
    by_head, packed = (g.op("Concat", batch, length, g.ints(*own), axis=0) for own in ((-1, size), (width,)))
    for _ in range(2):
        q, k, v = (
            g.op("Transpose", g.op("Reshape", g.dense(y, width, width), by_head), perm=[0, 2, 1, 3]) for _ in range(3)
        )
        y = g.op("MatMul", g.op("Softmax", g.op("MatMul", q, g.op("Transpose", k, perm=[0, 1, 3, 2])), axis=-1), v)
        y = g.op("Reshape", g.op("Transpose", y, perm=[0, 2, 1, 3]), packed)
        y = g.op("Add", g.dense(y, width, width), x)
    return g.model(g.dense(g.op("LayerNormalization", y, g.weight(width)), width, 5))
