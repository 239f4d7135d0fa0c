"""Networks as exporters, onnxruntime's optimiser and its quantiser spell them."""

from __future__ import annotations

import numpy as np
import onnx

from tests.surgery.graphs import Graph
from tests.surgery.networks import image, network

WIDTH, HEADS, SIZE = 10, 3, 4
MICROSOFT = {"com.microsoft": 1}


def _microsoft(g: Graph, y: str) -> onnx.ModelProto:
    return g.model(y, imports=MICROSOFT, infer=False)


# ---- fused attention


@network(head=[3])
def attention_of_keys_by_head() -> onnx.ModelProto:
    g = Graph()
    x = g.input("x", "batch", 6, WIDTH)

    def by_head() -> str:
        y = g.op("Reshape", g.dense(x, WIDTH, HEADS * SIZE), g.ints(0, 0, HEADS, SIZE))
        return g.op("Transpose", y, perm=[0, 2, 1, 3])

    q = g.dense(x, WIDTH, HEADS * SIZE)
    y = g.op("MultiHeadAttention", q, by_head(), by_head(), domain="com.microsoft", num_heads=HEADS)
    return _microsoft(g, g.dense(y, HEADS * SIZE, WIDTH))


def _grouped_query(packed: bool, size: int = 8) -> onnx.ModelProto:
    """Four query heads, two key heads; the cache is empty."""
    g, heads, key_heads = Graph(), 4, 2
    x = g.input("x", 1, 6, WIDTH)
    if packed:
        projected = g.op("MatMul", x, g.weight(WIDTH, (heads + 2 * key_heads) * size)), "", ""
    else:
        projected = tuple(g.op("MatMul", x, g.weight(WIDTH, n * size)) for n in (heads, key_heads, key_heads))
    lengths = g.tensor(np.array([[5]], np.int32)), g.tensor(np.array(6, np.int32))
    y = g.op("GroupQueryAttention", *projected, "", "", *lengths, domain="com.microsoft", num_heads=heads,
             kv_num_heads=key_heads)  # fmt: skip
    return _microsoft(g, g.dense(y, heads * size, WIDTH))


@network(head=[2, 2])
def grouped_query_attention() -> onnx.ModelProto:
    """A key head goes with its query heads, or one query head of every group."""
    return _grouped_query(packed=False)


@network(head=[2, 2])
def grouped_query_attention_of_one_input() -> onnx.ModelProto:
    return _grouped_query(packed=True)


@network(head=[3])
def attention_of_an_open_batch() -> onnx.ModelProto:
    """As PyTorch's first exporter writes nn.MultiheadAttention: the width of one projection is that of the input, which
    is packed threefold; batch and heads are one axis on the way; the scale is computed from shapes."""
    g, width, end = Graph(), HEADS * SIZE, 2**63 - 1
    x = g.input("x", 6, "batch", width)
    shape = g.op("Shape", x)
    length, batch, wide = (g.op("Gather", shape, g.constant(np.array(axis))) for axis in range(3))
    size = g.op("Cast", g.op("Div", wide, g.constant(np.array(HEADS))), to=7)

    def joined(*numbers: str | int) -> str:
        parts = [g.ints(n) if isinstance(n, int) else g.op("Unsqueeze", n, g.ints(0)) for n in numbers]
        return g.op("Concat", *parts, axis=0)

    packed = g.dense(x, width, 3 * width)
    kept = g.op("Slice", g.op("Shape", packed), g.ints(0), g.ints(2))
    target = g.op("Concat", kept, joined(3, wide), g.op("Slice", g.op("Shape", packed), g.ints(3), g.ints(end)), axis=0)
    y = g.op("Transpose", g.op("Unsqueeze", g.op("Reshape", packed, target), g.ints(0)), perm=[3, 1, 2, 0, 4])
    y = g.op("Squeeze", y, g.ints(3))
    by_head = joined(length, g.op("Mul", batch, g.constant(np.array(HEADS))), size)

    def heads(index: int) -> str:
        one = g.op("Reshape", g.op("Gather", y, g.constant(np.array(index)), axis=0), by_head)
        return g.op("Reshape", g.op("Transpose", one, perm=[1, 0, 2]), joined(batch, HEADS, length, size))

    q, k, v = map(heads, range(3))
    last = g.op("Cast", g.op("Slice", g.op("Shape", q), g.ints(-1), g.ints(end)), to=1)
    q = g.op("Div", q, g.op("Sqrt", last))
    y = g.op("MatMul", g.op("Softmax", g.op("MatMul", q, g.op("Transpose", k, perm=[0, 1, 3, 2])), axis=-1), v)
    y = g.op("Reshape", g.op("Transpose", y, perm=[2, 0, 1, 3]), joined(g.op("Mul", batch, length), wide))
    return g.model(g.op("Gemm", y, g.weight(width, 5), g.weight(5)))


@network(head=[3])
def attention_by_rank() -> onnx.ModelProto:
    """Attention-23 of [B, N, S, D], as PyTorch's exporter writes scaled_dot_product_attention from opset 23."""
    g = Graph(opset=23)
    x = g.input("x", "batch", 6, WIDTH)

    def split(y: str) -> str:
        return g.op("Transpose", g.op("Reshape", y, g.ints(0, 6, HEADS, SIZE)), perm=[0, 2, 1, 3])

    y = g.op("Attention", *(split(g.dense(x, WIDTH, HEADS * SIZE)) for _ in range(3)), is_causal=1)
    y = g.op("Reshape", g.op("Transpose", y, perm=[0, 2, 1, 3]), g.ints(0, 6, HEADS * SIZE))
    return g.model(g.dense(y, HEADS * SIZE, WIDTH))


@network(head=[2, 2], head_dimension=[4, 4])
def repeated_key_heads() -> onnx.ModelProto:
    """Keys and values repeated by Unsqueeze, Expand and Reshape for the query heads that share them, as in Llama."""
    g, heads, key_heads = Graph(), 4, 2
    x = g.input("x", 1, 6, WIDTH)

    def split(y: str, count: int) -> str:
        return g.op("Transpose", g.op("Reshape", y, g.ints(1, 6, count, SIZE)), perm=[0, 2, 1, 3])

    def repeated(y: str) -> str:
        y = g.op("Unsqueeze", split(y, key_heads), g.ints(2))
        y = g.op("Expand", y, g.ints(1, key_heads, heads // key_heads, 6, SIZE))
        return g.op("Reshape", y, g.ints(1, heads, 6, SIZE))

    q = split(g.op("MatMul", x, g.weight(WIDTH, heads * SIZE)), heads)
    k, v = (repeated(g.op("MatMul", x, g.weight(WIDTH, key_heads * SIZE))) for _ in range(2))
    scores = g.op("Softmax", g.op("MatMul", q, g.op("Transpose", k, perm=[0, 1, 3, 2])), axis=-1)
    y = g.op("Reshape", g.op("Transpose", g.op("MatMul", scores, v), perm=[0, 2, 1, 3]), g.ints(1, 6, heads * SIZE))
    return g.model(g.dense(y, heads * SIZE, WIDTH))


# ---- onnxruntime's optimiser


@network(channel=[6, 5])
def fused_conv() -> onnx.ModelProto:
    """FusedConv with what it adds as a fourth input."""
    g = Graph()
    x = g.op("FusedConv", image(g), g.weight(6, 3, 3, 3), g.weight(6), domain="com.microsoft", activation="Relu",
             pads=[1] * 4)  # fmt: skip
    y = g.op("FusedConv", x, g.weight(6, 6, 3, 3), g.weight(6), x, domain="com.microsoft", activation="Relu",
             pads=[1] * 4)  # fmt: skip
    y = g.op("FusedConv", y, g.weight(5, 6, 1, 1), g.weight(5), domain="com.microsoft", activation="LeakyRelu",
             activation_params=[0.1])  # fmt: skip
    return _microsoft(g, g.pooled(y, 5))


@network(neuron=[9, 8])
def fused_dense() -> onnx.ModelProto:
    """FusedGemm, BiasGelu, SkipLayerNormalization over a width that stays."""
    g = Graph()
    x = g.input("x", "batch", 7)
    y = g.op("FusedGemm", x, g.weight(9, 7), g.weight(9), domain="com.microsoft", transB=1, activation="Relu")
    y = g.op("SkipLayerNormalization", g.op("MatMul", y, g.weight(9, 7)), x, g.weight(7), g.weight(7), g.weight(7),
             domain="com.microsoft")  # fmt: skip
    y = g.op("BiasGelu", g.op("MatMul", y, g.weight(7, 8)), g.weight(8), domain="com.microsoft")
    return _microsoft(g, g.dense(y, 8, 3))


# ---- layouts and moves


@network(channel=[6, 6])
def channels_last_all_the_way() -> onnx.ModelProto:
    """Transposed once at the start and once at the end, with a Pad in between, as tf2onnx and PaddlePaddle write it."""
    g = Graph()
    x = g.op("Transpose", g.input("x", "batch", 8, 10, 3), perm=[0, 3, 1, 2])
    x = g.op("Conv", x, g.weight(6, 3, 3, 3), g.weight(6), strides=[2, 2], auto_pad="SAME_UPPER")
    x = g.op("Conv", g.op("Pad", g.op("Relu", x), g.ints(0, 0, 0, 0, 0, 0, 1, 1)), g.weight(6, 1, 3, 3), group=6)
    x = g.op("Clip", g.conv(g.op("HardSigmoid", x), 6, 6, kernel=1), g.scalar(0), g.scalar(6))
    x = g.op("Reshape", g.op("Transpose", x, perm=[0, 2, 3, 1]), g.ints(-1, 3 * 4 * 6))
    return g.model(g.dense(x, 3 * 4 * 6, 4))


@network(channel=[4, 4, 4])
def shuffled_halves() -> onnx.ModelProto:
    """ShuffleNet V2: half of the channels pass by, then both halves are dealt out, so that they go in pairs."""
    g = Graph()
    x = g.op("Relu", g.conv(image(g), 3, 8))
    kept, worked = g.op("Split", x, g.ints(4, 4), axis=1, outputs=2)
    worked = g.op("Relu", g.conv(g.op("Relu", g.conv(worked, 4, 4)), 4, 4, kernel=1))
    y = g.op("Reshape", g.op("Concat", kept, worked, axis=1), g.ints(0, 2, 4, 8, 10))
    y = g.op("Reshape", g.op("Transpose", y, perm=[0, 2, 1, 3, 4]), g.ints(0, 8, 8, 10))
    return g.model(g.pooled(y, 8))


@network(neuron=[5])
def rows_put_together() -> onnx.ModelProto:
    """ScatterND of rows, GatherND of rows: as PyTorch writes x[:, i] = y and indexing by tensors."""
    g = Graph()
    y = g.op("Tanh", g.dense(g.input("x", "batch", 4, 7), 7, 5))
    first = g.op("Transpose", y, perm=[1, 0, 2])
    rows = g.op("GatherND", first, g.tensor(np.int64([[1], [3]])))
    changed = g.op("ScatterND", first, g.tensor(np.int64([[2], [0]])), rows)
    return g.model(g.dense(changed, 5, 3))


@network(channel=[4, 2])
def quantised_concatenation() -> onnx.ModelProto:
    """QLinearConcat, QLinearGlobalAveragePool: what the quantiser writes without QuantizeLinear in between."""
    g = Graph()
    scale, middle = g.tensor(np.float32(0.05)), g.tensor(np.uint8(120))
    x = g.op("QuantizeLinear", image(g), scale, middle)

    def conv(channels: int) -> str:
        w = g.tensor(g.generator.integers(-60, 60, (channels, 3, 3, 3)).astype(np.int8))
        w_scale = g.tensor((0.005 + 0.01 * g.generator.random(channels)).astype(np.float32))
        zeros = g.tensor(np.zeros(channels, np.int8))
        return g.op("QLinearConv", x, scale, middle, w, w_scale, zeros, scale, middle, pads=[1] * 4)

    y = g.op("QLinearConcat", scale, middle, conv(4), scale, middle, conv(2), scale, middle, domain="com.microsoft",
             axis=1)  # fmt: skip
    y = g.op("QLinearGlobalAveragePool", y, scale, middle, scale, middle, domain="com.microsoft")
    y = g.op("Flatten", g.op("DequantizeLinear", y, scale, middle))
    return _microsoft(g, g.dense(y, 6, 4))


# ---- what PyTorch, Keras and scikit-learn write


@network(neuron=[9, 6])
def dense_with_batch_normalization() -> onnx.ModelProto:
    g = Graph()
    y = g.op("Gemm", g.input("x", "batch", 7), g.weight(9, 7), g.weight(9), transB=1)
    y = g.op("BatchNormalization", y, g.weight(9), g.weight(9), g.weight(9), g.weight(9, positive=True))
    y = g.op("Dropout", g.op("Relu", y))
    y = g.op("MatMul", y, g.op("Transpose", g.weight(6, 9), perm=[1, 0]))
    return g.model(g.dense(g.op("Selu", g.op("Add", g.weight(6), y)), 6, 3))


@network(hidden_size=[5], neuron=[6])
def lstm_with_learned_states() -> onnx.ModelProto:
    """First states that are weights, repeated for the batch; lengths of the sequences."""
    g = Graph()
    x = g.op("Transpose", g.op("Relu", g.dense(g.input("x", "batch", 4, 7), 7, 6)), perm=[1, 0, 2])
    batch = g.op("Slice", g.op("Shape", x), g.ints(1), g.ints(2))
    shape = g.op("Concat", g.ints(1), batch, g.ints(5), axis=0)
    states = [g.op("Expand", g.weight(1, 1, 5), shape) for _ in range(2)]
    lengths = g.op("Expand", g.tensor(np.array([3], np.int32)), batch)
    y, _, _ = g.op("LSTM", x, g.weight(1, 20, 6), g.weight(1, 20, 5), g.weight(1, 40), lengths, *states, outputs=3,
                   hidden_size=5)  # fmt: skip
    y = g.op("ReduceSum", g.op("Squeeze", y, g.ints(1)), g.ints(0), keepdims=0)
    return g.model(g.dense(y, 5, 3))


@network(head=[3], head_dimension=[4], neuron=[11])
def windows_with_relative_positions() -> onnx.ModelProto:
    """Swin: attention in windows of 2 x 2, with a table of biases for each head that is picked from by place."""
    g, side = Graph(), 4
    x = g.input("x", 1, side, side, WIDTH)
    y = g.op("Reshape", x, g.ints(1, 2, 2, 2, 2, WIDTH))
    y = g.op("Reshape", g.op("Transpose", y, perm=[0, 1, 3, 2, 4, 5]), g.ints(4, 4, WIDTH))
    packed = g.op("Reshape", g.dense(y, WIDTH, 3 * HEADS * SIZE), g.ints(4, 4, 3, HEADS, SIZE))
    packed = g.op("Transpose", packed, perm=[2, 0, 3, 1, 4])
    q, k, v = (g.op("Squeeze", part, g.ints(0)) for part in g.op("Split", packed, axis=0, outputs=3))
    places = g.tensor(np.random.default_rng(0).integers(0, 9, 16))
    bias = g.op("Reshape", g.op("Gather", g.weight(9, HEADS), places), g.ints(4, 4, HEADS))
    bias = g.op("Unsqueeze", g.op("Transpose", bias, perm=[2, 0, 1]), g.ints(0))
    scores = g.op("MatMul", g.op("Mul", q, g.scalar(0.5)), g.op("Transpose", k, perm=[0, 1, 3, 2]))
    y = g.op("MatMul", g.op("Softmax", g.op("Add", scores, bias), axis=-1), v)
    y = g.op("Reshape", g.op("Transpose", y, perm=[0, 2, 1, 3]), g.ints(4, 4, HEADS * SIZE))
    y = g.op("Reshape", g.dense(y, HEADS * SIZE, WIDTH), g.ints(1, 2, 2, 2, 2, WIDTH))
    y = g.op("Add", x, g.op("Reshape", g.op("Transpose", y, perm=[0, 1, 3, 2, 4, 5]), g.ints(1, side, side, WIDTH)))
    hidden = g.dense(g.op("LayerNormalization", y, g.weight(WIDTH), g.weight(WIDTH)), WIDTH, 11)
    return g.model(g.op("Add", y, g.dense(g.op("Erf", hidden), 11, WIDTH)))


@network(channel=[6, 5], neuron=[8])
def one_dimensional_through_two() -> onnx.ModelProto:
    """Keras' Conv1D as tf2onnx writes it: an axis more before every Conv, one less after it."""
    g = Graph()
    x = g.input("x", "batch", 12, 3)
    for size_in, size in ((3, 6), (6, 5)):
        x = g.op("Transpose", g.op("Unsqueeze", x, g.ints(1)), perm=[0, 3, 1, 2])
        x = g.op("Squeeze", g.op("Conv", x, g.weight(size, size_in, 1, 3)), g.ints(2))
        x = g.op("Relu", g.op("Add", g.op("Transpose", x, perm=[0, 2, 1]), g.weight(size)))
    pooled = g.op("Unsqueeze", g.op("Transpose", x, perm=[0, 2, 1]), g.ints(3))
    pooled = g.op("MaxPool", pooled, kernel_shape=[2, 1], strides=[2, 1])
    pooled = g.op("Transpose", g.op("Squeeze", pooled, g.ints(3)), perm=[0, 2, 1])
    batch = g.op("Slice", g.op("Shape", x), g.ints(0), g.ints(1))
    y = g.op("Reshape", pooled, g.op("Concat", batch, g.ints(20), axis=0))
    return g.model(g.dense(g.op("Relu", g.dense(y, 20, 8)), 8, 3))


@network(head=[4], head_dimension=[2], neuron=[2, 8])
def heads_counted_with_the_batch() -> onnx.ModelProto:
    """A table of keys repeated for as many heads as there are, divided by those of one sample: DeBERTa's positions."""
    g = Graph()

    def heads(x: str) -> str:
        by_head = g.op("Transpose", g.op("Reshape", x, g.ints(-1, 3, 4, 2)), perm=[0, 2, 1, 3])
        return g.op("Reshape", by_head, g.ints(-1, 3, 2))

    x = g.input("x", "batch", 3, 5)
    q, keys = heads(g.dense(x, 5, 8)), heads(g.dense(g.weight(1, 3, 6), 6, 8))
    times = g.op("Div", g.op("Slice", g.op("Shape", q), g.ints(0), g.ints(1)), g.ints(4))
    keys = g.op("Tile", keys, g.op("Concat", times, g.ints(1, 1), axis=0))
    weights = g.op("Softmax", g.op("MatMul", q, g.op("Transpose", keys, perm=[0, 2, 1])), axis=-1)
    y = g.op("Reshape", g.op("MatMul", weights, heads(g.dense(x, 5, 8))), g.ints(-1, 4, 3, 2))
    y = g.op("Reshape", g.op("Transpose", y, perm=[0, 2, 1, 3]), g.ints(0, 0, -1))
    return g.model(g.dense(g.op("Relu", g.dense(y, 8, 8)), 8, 3))


@network(head=[4], head_dimension=[4, 4])
def one_key_head_for_all_queries() -> onnx.ModelProto:
    """Keys and values of one head, tiled."""
    g = Graph()
    x = g.input("x", "batch", 6, WIDTH)

    def split(y: str, count: int) -> str:
        return g.op("Transpose", g.op("Reshape", y, g.ints(-1, 6, count, SIZE)), perm=[0, 2, 1, 3])

    q = split(g.dense(x, WIDTH, 4 * SIZE), 4)
    k, v = (g.op("Tile", split(g.dense(x, WIDTH, SIZE), 1), g.ints(1, 4, 1, 1)) for _ in range(2))
    scores = g.op("Softmax", g.op("MatMul", q, g.op("Transpose", k, perm=[0, 1, 3, 2])), axis=-1)
    y = g.op("Transpose", g.op("MatMul", scores, v), perm=[0, 2, 1, 3])
    return g.model(g.dense(g.op("Reshape", y, g.ints(-1, 6, 4 * SIZE)), 4 * SIZE, WIDTH))


@network(head=[4], head_dimension=[4, 4])
def biases_of_many_pairs() -> onnx.ModelProto:
    """A bias for every pair of positions, picked from a table by thousands of indices, as in LeViT and TinyViT."""
    g, length = Graph(), 70
    x = g.input("x", "batch", length, WIDTH)
    q, k, v = (g.op("Reshape", g.dense(x, WIDTH, 4 * SIZE), g.ints(0, 0, 4, SIZE)) for _ in range(3))
    q, k, v = (g.op("Transpose", y, perm=perm) for y, perm in ((q, [0, 2, 1, 3]), (k, [0, 2, 3, 1]), (v, [0, 2, 1, 3])))
    pairs = np.abs(np.subtract.outer(np.arange(length), np.arange(length)))
    biases = g.op("Gather", g.weight(4, length), g.tensor(pairs), axis=1)
    y = g.op("MatMul", g.op("Softmax", g.op("Add", g.op("MatMul", q, k), biases), axis=-1), v)
    y = g.op("Reshape", g.op("Transpose", y, perm=[0, 2, 1, 3]), g.ints(0, 0, -1))
    return g.model(g.dense(y, 4 * SIZE, WIDTH))


@network(neuron=[8])
def token_expanded_by_choice() -> onnx.ModelProto:
    """PyTorch's expand(batch, -1, -1): Where the size is -1, 1."""
    g = Graph()
    x = g.input("x", "batch", 5, 7)
    batch = g.op("Slice", g.op("Shape", x), g.ints(0), g.ints(1))
    asked, ones = g.op("Concat", batch, g.ints(-1), g.ints(8), axis=0), g.op("ConstantOfShape", g.ints(3), value=ONE)
    open_ = g.op("Equal", asked, g.op("Mul", ones, g.tensor(np.int64(-1))))
    token = g.op("Expand", g.weight(1, 1, 8), g.op("Where", open_, ones, asked))
    y = g.op("Concat", token, g.dense(x, 7, 8), axis=1)
    return g.model(g.dense(g.op("Relu", y), 8, 3))


ONE = onnx.helper.make_tensor("value", onnx.TensorProto.INT64, [1], [1])
