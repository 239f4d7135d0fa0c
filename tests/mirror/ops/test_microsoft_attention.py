from dataclasses import replace
from functools import partial

import numpy as np
import onnx
import pytest
import torch
from onnx import parser

from tests.mirror.harness import case, check, rand, run_onnxruntime, second_of_weights

microsoft = partial(case, domain="com.microsoft", exact_second=False)

BATCH, LENGTH, HIDDEN, HEADS = 2, 3, 8, 2
SIZE = HIDDEN // HEADS


def ints(values) -> np.ndarray:
    return np.array(values, np.int32)


def self_attention(mask=None, *others, **attributes):
    inputs = [rand(BATCH, LENGTH, 5), rand(5, 3 * HIDDEN), rand(3 * HIDDEN), mask, *others]
    while inputs[-1] is None:
        inputs.pop()
    return microsoft("Attention", 1, *inputs, weights=(1, 2), num_heads=HEADS, **attributes)


def multi_head(*others, length=LENGTH, **attributes):
    inputs = [rand(BATCH, LENGTH, HIDDEN), rand(BATCH, length, HIDDEN), rand(BATCH, length, HIDDEN), *others]
    return microsoft("MultiHeadAttention", 1, *inputs, num_heads=HEADS, **attributes)


PAST = rand(2, BATCH, HEADS, 2, SIZE)
CASES = [
    self_attention(),
    self_attention(ints([[1, 1, 0], [1, 0, 0]])),
    self_attention(ints([[1, 1, 0], [0, 0, 0]]), mask_filter_value=-2.0),
    self_attention(ints(np.random.default_rng(2).integers(0, 2, (BATCH, LENGTH, LENGTH)))),
    self_attention(ints([2, 3])),
    self_attention(ints([3, 2, 1, 0])),
    self_attention(ints([[1, 1, 0], [0, 1, 1]]), unidirectional=1),
    self_attention(unidirectional=1, scale=0.3),
    self_attention(None, PAST, outputs=2),
    self_attention(ints(np.ones((BATCH, LENGTH + 2))), PAST, outputs=2, unidirectional=1),
    self_attention(None, None, rand(1, HEADS, LENGTH, LENGTH)),
    microsoft("Attention", 1, rand(BATCH, LENGTH, 5), rand(5, 2 * HIDDEN + 6), rand(2 * HIDDEN + 6), weights=(1,),
              num_heads=HEADS, qkv_hidden_sizes=[HIDDEN, HIDDEN, 6]),
    multi_head(),
    multi_head(rand(3 * HIDDEN), length=4, weights=(3,)),
    multi_head(None, ints([[1, 1, 0, 1], [1, 0, 0, 0]]), length=4),
    multi_head(None, ints([1, 3]), rand(BATCH, 1, LENGTH, LENGTH)),
    multi_head(None, None, rand(1, HEADS, LENGTH, LENGTH + 2), PAST[0], PAST[1], outputs=3, unidirectional=1),
    multi_head(rand(3 * HIDDEN), scale=0.4),
    microsoft("MultiHeadAttention", 1, rand(BATCH, LENGTH, HIDDEN), rand(BATCH, HEADS, 4, SIZE),
              rand(BATCH, HEADS, 4, SIZE), num_heads=HEADS),
]  # fmt: skip
# queries, keys and values side by side for every head are not for the CPU: the same as apart
Q, K, V = (rand(BATCH, LENGTH, HIDDEN) for _ in range(3))
APART_CASE = microsoft("MultiHeadAttention", 1, Q, K, V, num_heads=HEADS)
SIDE_BY_SIDE = np.stack([value.reshape(BATCH, LENGTH, HEADS, SIZE) for value in (Q, K, V)], 3)
CASES += [
    replace(APART_CASE, inputs=inputs, expected=tuple(run_onnxruntime(APART_CASE)))
    for inputs in [(SIDE_BY_SIDE,), (Q, SIDE_BY_SIDE[:, :, :, 1:].copy())]
]
CASES.append(microsoft("RotaryEmbedding", 1, rand(BATCH, LENGTH, HIDDEN), np.array([2]), rand(6, 2), rand(6, 2)))
CASES += [
    microsoft("RotaryEmbedding", 1, rand(BATCH, HEADS, LENGTH, SIZE), np.array([[0, 1, 4], [2, 3, 5]]), rand(6, 2),
              rand(6, 2), interleaved=1),
    microsoft("RotaryEmbedding", 1, rand(BATCH, LENGTH, 12), np.array([[0, 1, 4], [2, 3, 5]]), rand(6, 2), rand(6, 2),
              num_heads=2, rotary_embedding_dim=4),
]  # fmt: skip


GROUP_SIZE = 16  # onnxruntime wants a multiple of it


def group_query(queries: int, past: int, lengths, total: int, *others, batch=BATCH, packed=False, **attributes):
    q, k, v = (rand(batch, queries, heads * GROUP_SIZE) for heads in (4, 2, 2))
    inputs = [np.concatenate((q, k, v), 2), None, None] if packed else [q, k, v]
    inputs += [rand(batch, 2, past, GROUP_SIZE), rand(batch, 2, past, GROUP_SIZE)] if past else [None, None]
    inputs += [ints(lengths), ints(total), *others]
    attributes.setdefault("gradient", False)  # one with derivatives is enough: they are the same but for the masks
    return microsoft("GroupQueryAttention", 1, *inputs, num_heads=4, kv_num_heads=2, outputs=3, **attributes)


COS, SIN = rand(8, GROUP_SIZE // 2), rand(8, GROUP_SIZE // 2)
CASES += [
    group_query(3, 0, [2, 2], 3),
    group_query(3, 0, [1, 2], 3),
    group_query(3, 0, [2, 2], 3, COS, SIN, do_rotary=1, packed=True),
    group_query(1, 4, [4, 4], 5, COS, SIN, do_rotary=1, gradient=True),
    group_query(1, 6, [2, 4], 5, COS, SIN, do_rotary=1, rotary_interleaved=1),  # a cache with room, ragged
    group_query(3, 0, [2, 2], 3, local_window_size=2, scale=0.3),
    group_query(1, 4, [4, 4], 5, softcap=0.5, local_window_size=3),
    group_query(3, 0, [2, 2], 3, smooth_softmax=1, gradient=True),
    group_query(3, 0, [2, 2], 3, None, None, None, rand(1, 1, 3, 3), rand(4)),
    group_query(2, 3, [4], 5, batch=1),
    group_query(3, 0, [2, 2], 3, causal=0),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_operator(case):
    check(case)


FUSED = """m (float[2, 3, 8] x) => (float[2, 3, 8] y, float[2, 3, 8] z) {
    y = com.microsoft.Attention <num_heads = 2, unidirectional = 1> (x, w, b)
    projected = MatMul (x, w2)
    q, k, v = Split <axis = 2, num_outputs = 3> (projected)
    z = com.microsoft.MultiHeadAttention <num_heads = 2> (q, k, v, b)
}"""
APART = """m (float[2, 3, 8] x) => (float[2, 3, 8] y, float[2, 3, 8] z) {
    p1 = MatMul (x, w)
    a1 = Add (p1, b)
    q1, k1, v1 = Split <axis = 2, num_outputs = 3> (a1)
    y = Attention <q_num_heads = 2, kv_num_heads = 2, is_causal = 1> (q1, k1, v1)
    p2 = MatMul (x, w2)
    a2 = Add (p2, b)
    q2, k2, v2 = Split <axis = 2, num_outputs = 3> (a2)
    z = Attention <q_num_heads = 2, kv_num_heads = 2> (q2, k2, v2)
}"""


def test_second_derivatives_equal_those_of_the_nodes_they_are_fused_from():
    weights = {"w": rand(8, 24), "w2": rand(8, 24), "b": rand(24)}
    found = []
    for text in (FUSED, APART):
        model = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]> {text}')
        model.graph.initializer.extend(onnx.numpy_helper.from_array(v, k) for k, v in weights.items())
        found.append(second_of_weights(model, [np.linspace(-1, 1, 48, dtype=np.float32).reshape(2, 3, 8)]))
    for name in weights:
        torch.testing.assert_close(found[0][name], found[1][name])
