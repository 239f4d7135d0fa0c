"""Networks over sequences: attention in every spelling, recurrent layers."""

from __future__ import annotations

import numpy as np
import onnx

from tests.surgery.graphs import Graph
from tests.surgery.networks import network

WIDTH, HEADS, SIZE = 10, 3, 4
"""Of the attention layers: model width, heads, size of a head. WIDTH is not HEADS * SIZE."""


def _sequence(g: Graph) -> str:
    return g.input("x", "batch", 6, WIDTH)


def _heads(g: Graph, x: str) -> str:
    return g.op("Transpose", g.op("Reshape", x, g.ints(0, 0, HEADS, SIZE)), perm=[0, 2, 1, 3])


def _attend(g: Graph, q: str, k: str, v: str) -> str:
    """softmax(q k^T / sqrt(size)) v by head, merged."""
    scores = g.op("Div", g.op("MatMul", q, g.op("Transpose", k, perm=[0, 1, 3, 2])), g.scalar(SIZE**0.5))
    y = g.op("MatMul", g.op("Softmax", scores, axis=-1), v)
    return g.op("Reshape", g.op("Transpose", y, perm=[0, 2, 1, 3]), g.ints(0, 0, HEADS * SIZE))


@network(head=[3], head_dimension=[4, 4])
def attention() -> onnx.ModelProto:
    """Heads go whole; beside that, a dimension of queries and keys or of values goes from all heads at once."""
    g = Graph()
    x = _sequence(g)
    q, k, v = (_heads(g, g.dense(x, WIDTH, HEADS * SIZE)) for _ in range(3))
    return g.model(g.dense(_attend(g, q, k, v), HEADS * SIZE, WIDTH))


@network(head=[3], head_dimension=[4])
def attention_from_one_product() -> onnx.ModelProto:
    """Queries, keys and values in one product [3, heads, size], picked by index: a dimension goes from all three."""
    g = Graph()
    packed = g.op("Reshape", g.dense(_sequence(g), WIDTH, 3 * HEADS * SIZE), g.ints(0, 0, 3, HEADS, SIZE))
    packed = g.op("Transpose", packed, perm=[2, 0, 3, 1, 4])
    q, k, v = (g.op("Gather", packed, g.tensor(np.int64(i)), axis=0) for i in range(3))
    return g.model(g.dense(_attend(g, q, k, v), HEADS * SIZE, WIDTH))


@network(head=[3], head_dimension=[4, 4])
def attention_with_computed_sizes() -> onnx.ModelProto:
    """As exported from PyTorch: the size of a head is the width divided by the number of heads."""
    g = Graph()
    x, heads = _sequence(g), g.constant(np.int64([HEADS]))

    def split(y: str) -> str:
        shape = g.op("Shape", y)
        width = g.op("Gather", shape, g.ints(-1), axis=0)
        target = g.op("Concat", g.op("Slice", shape, g.ints(0), g.ints(2)), heads, g.op("Div", width, heads), axis=0)
        return g.op("Transpose", g.op("Reshape", y, target), perm=[0, 2, 1, 3])

    q, k, v = (split(g.dense(x, WIDTH, HEADS * SIZE)) for _ in range(3))
    scores = g.op("Mul", g.op("MatMul", q, g.op("Transpose", k, perm=[0, 1, 3, 2])), g.scalar(0.4))
    y = g.op("Transpose", g.op("MatMul", g.op("Softmax", scores, axis=-1), v), perm=[0, 2, 1, 3])
    shape = g.op("Shape", y)
    width = g.op("Mul", g.op("Gather", shape, g.ints(2)), g.op("Gather", shape, g.ints(3)))
    merged = g.op("Reshape", y, g.op("Concat", g.op("Slice", shape, g.ints(0), g.ints(2)), width, axis=0))
    return g.model(g.dense(merged, HEADS * SIZE, WIDTH))


@network(head=[3], head_dimension=[4, 4])
def attention_with_heads_in_the_batch() -> onnx.ModelProto:
    """As torch.nn.MultiheadAttention: [length, batch, width] as [batch * heads, length, size]."""
    g = Graph()
    x = g.op("Transpose", g.input("x", 1, 6, WIDTH), perm=[1, 0, 2])

    def split(y: str) -> str:
        return g.op("Transpose", g.op("Reshape", y, g.ints(6, HEADS, SIZE)), perm=[1, 0, 2])

    q, k, v = (split(g.dense(x, WIDTH, HEADS * SIZE)) for _ in range(3))
    scores = g.op("MatMul", q, g.op("Transpose", k, perm=[0, 2, 1]))
    y = g.op("Transpose", g.op("MatMul", g.op("Softmax", scores, axis=-1), v), perm=[1, 0, 2])
    return g.model(g.dense(g.op("Reshape", y, g.ints(6, 1, HEADS * SIZE)), HEADS * SIZE, WIDTH))


@network(head=[3], head_dimension=[4, 4])
def attention_by_einsum() -> onnx.ModelProto:
    """Weights [width, heads, size] of their own shape."""
    g = Graph()
    x = _sequence(g)
    q, k, v = (g.op("Einsum", x, g.weight(WIDTH, HEADS, SIZE), equation="btc,chd->bthd") for _ in range(3))
    scores = g.op("Softmax", g.op("Einsum", q, k, equation="bthd,bshd->bhts"), axis=-1)
    y = g.op("Einsum", scores, v, equation="bhts,bshd->bthd")
    return g.model(g.op("Einsum", y, g.weight(HEADS, SIZE, WIDTH), equation="bthd,hdc->btc"))


@network(head=[3])
def attention_of_onnxruntime() -> onnx.ModelProto:
    g = Graph()
    width = HEADS * SIZE
    y = g.op("Attention", _sequence(g), g.weight(WIDTH, 3 * width), g.weight(3 * width), domain="com.microsoft",
             num_heads=HEADS)  # fmt: skip
    return g.model(g.dense(y, width, WIDTH), imports={"com.microsoft": 1}, infer=False)


@network(head=[3])
def attention_of_onnxruntime_with_sizes() -> onnx.ModelProto:
    g = Graph()
    sizes = [HEADS * 2, HEADS * 2, HEADS * 5]
    y = g.op("Attention", _sequence(g), g.weight(WIDTH, sum(sizes)), g.weight(sum(sizes)), domain="com.microsoft",
             num_heads=HEADS, qkv_hidden_sizes=sizes)  # fmt: skip
    return g.model(g.dense(y, HEADS * 5, WIDTH), imports={"com.microsoft": 1}, infer=False)


@network(head=[3])
def multi_head_attention_of_onnxruntime() -> onnx.ModelProto:
    g = Graph()
    x, width = _sequence(g), HEADS * SIZE
    q, k, v = (g.op("MatMul", x, g.weight(WIDTH, width)) for _ in range(3))
    y = g.op("MultiHeadAttention", q, k, v, g.weight(3 * width), domain="com.microsoft", num_heads=HEADS)
    return g.model(g.dense(y, width, WIDTH), imports={"com.microsoft": 1}, infer=False)


@network(head=[2, 3])
def attention_with_shared_keys() -> onnx.ModelProto:
    """Two key heads, three query heads to each: a key head goes with its query heads, or one query head of each."""
    g = Graph(opset=23)
    x = _sequence(g)
    q, k, v = g.dense(x, WIDTH, 6 * SIZE), g.dense(x, WIDTH, 2 * SIZE), g.dense(x, WIDTH, 2 * SIZE)
    y = g.op("Attention", q, k, v, q_num_heads=6, kv_num_heads=2)
    return g.model(g.dense(y, 6 * SIZE, WIDTH))


# ---- recurrent layers


def _recurrent(op_type: str, gates: int, directions: int, **attributes) -> onnx.ModelProto:
    """Two layers of 5 and 4 hidden units, the states of the first made for the batch at hand."""
    g = Graph()
    x, size_in = g.op("Transpose", g.input("x", "batch", 6, 7), perm=[1, 0, 2]), 7
    for size in (5, 4):
        weights = g.weight(directions, gates * size, size_in), g.weight(directions, gates * size, size)
        bias = g.weight(directions, 2 * gates * size)
        batch = g.op("Gather", g.op("Shape", x), g.ints(1))
        states = []
        if size == 5:
            zeros = g.op("ConstantOfShape", g.op("Concat", g.ints(directions), batch, g.ints(size), axis=0))
            states = ["", zeros] + [zeros] * (op_type == "LSTM")
        y = g.op(op_type, x, *weights, bias, *states, hidden_size=size, **attributes)
        x = g.op("Reshape", g.op("Transpose", y, perm=[0, 2, 1, 3]), g.ints(0, 0, -1))
        size_in = directions * size
    last = g.op("Squeeze", g.op("Slice", x, g.ints(-1), g.ints(99), g.ints(0)), g.ints(0))
    return g.model(g.dense(last, size_in, 3))


@network(hidden_size=[5, 4])
def rnn() -> onnx.ModelProto:
    return _recurrent("RNN", 1, 1)


@network(hidden_size=[5, 4])
def gru() -> onnx.ModelProto:
    return _recurrent("GRU", 3, 1, linear_before_reset=1)


@network(hidden_size=[5, 4])
def lstm() -> onnx.ModelProto:
    return _recurrent("LSTM", 4, 1)


@network(hidden_size=[5, 4])
def bidirectional_lstm() -> onnx.ModelProto:
    """Both directions have one size, so a unit goes from both."""
    return _recurrent("LSTM", 4, 2, direction="bidirectional")


@network(hidden_size=[5], neuron=[6])
def lstm_with_peepholes() -> onnx.ModelProto:
    g = Graph()
    x = g.op("Transpose", g.op("Relu", g.dense(g.input("x", "batch", 6, 7), 7, 6)), perm=[1, 0, 2])
    weights = g.weight(1, 20, 6), g.weight(1, 20, 5), g.weight(1, 40)
    *_, state = g.op("LSTM", x, *weights, "", "", "", g.weight(1, 15), outputs=3, hidden_size=5)
    return g.model(g.dense(g.op("Squeeze", state, g.ints(0)), 5, 3))
