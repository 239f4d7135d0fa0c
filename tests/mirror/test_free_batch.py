"""Graphs fixed to a batch of one: freed of it they compute the same, sample by sample."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from onnx_obd.calibration.inputs import is_batchable, read_inputs
from onnx_obd.calibration.measure import mirror_batch_size, mirror_for_batches
from onnx_obd.calibration.samples import Samples
from onnx_obd.graph.session import open_session
from onnx_obd.mirror.free_batch import with_free_batch
from onnx_obd.mirror.mirror import Mirror

HEADS, LENGTH, WIDTH = 2, 3, 4


def model(nodes, opset=17, **stored):
    """x [1, 3, 8] to y; ``stored`` are the initializers."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, LENGTH, HEADS * WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def weight(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def flat(constant_node=False, opset=17):
    """Reshape to [1, -1] and a dense layer."""
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w"], ["y"]),
    ]
    shape = np.array([1, -1], np.int64)
    if constant_node:
        held = helper.make_node("Constant", [], ["shape"], value=numpy_helper.from_array(shape))
        return model([held, *nodes], opset, w=weight(LENGTH * HEADS * WIDTH, 5))
    return model(nodes, opset, shape=shape, w=weight(LENGTH * HEADS * WIDTH, 5))


def heads():
    """Split into heads and joined again, the weight reshaped too."""
    nodes = [
        helper.make_node("Reshape", ["x", "apart"], ["four"]),
        helper.make_node("Transpose", ["four"], ["turned"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["turned", "joined"], ["three"]),
        helper.make_node("Reshape", ["v", "matrix"], ["w"]),
        helper.make_node("MatMul", ["three", "w"], ["y"]),
    ]
    shapes = {"apart": [1, LENGTH, HEADS, WIDTH], "joined": [HEADS, LENGTH, WIDTH], "matrix": [WIDTH, 2]}
    return model(nodes, v=weight(WIDTH * 2), **{name: np.array(s, np.int64) for name, s in shapes.items()})


def samples_of(proto, count=3):
    inputs, rng = read_inputs(proto), np.random.default_rng(1)
    rows = [{"x": rng.standard_normal((1, LENGTH, HEADS * WIDTH)).astype(np.float32)} for _ in range(count)]
    return Samples.from_feeds(rows, source="random", batchable=is_batchable(inputs))


@pytest.mark.parametrize("proto", [flat(), flat(constant_node=True), flat(constant_node=True, opset=13), heads()])
def test_together_it_computes_what_onnxruntime_computes_one_by_one(proto):
    samples = samples_of(proto)
    plain = Mirror(proto)
    assert mirror_batch_size(plain, samples, 16) == 1
    mirror, size = mirror_for_batches(plain, samples, 16)
    assert size == 16 and mirror.proto is not proto
    assert list(mirror.weights) == list(plain.weights) and mirror.value_names == plain.value_names
    session = open_session(proto)
    apart = np.concatenate([session.run(None, feed)[0] for feed in samples.feeds])
    together = mirror(torch.cat([torch.from_numpy(feed["x"]) for feed in samples.feeds]))
    np.testing.assert_allclose(together.detach().numpy(), apart, rtol=1e-5, atol=1e-5)


def test_the_shape_attribute_of_the_first_reshape():
    nodes = [helper.make_node("Reshape", ["x"], ["y"], shape=[1, -1])]
    proto = model(nodes, opset=1)
    freed = with_free_batch(Mirror(proto), [torch.zeros(1, LENGTH, HEADS * WIDTH)])
    assert list(freed.graph.node[0].attribute[0].ints) == [-1, LENGTH * HEADS * WIDTH]
    assert list(proto.graph.node[0].attribute[0].ints) == [1, -1]


def test_samples_that_a_reshape_mixes_stay_alone():
    """Positions outermost: two samples together would be taken for one of twice the length."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["turned"], perm=[1, 0, 2]),
        helper.make_node("Reshape", ["turned", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["y"]),
    ]
    proto = model(nodes, shape=np.array([LENGTH, -1], np.int64), w=weight(HEADS * WIDTH, 2))
    plain = Mirror(proto)
    assert mirror_for_batches(plain, samples_of(proto), 16) == (plain, 1)


def test_a_shape_that_two_nodes_share_is_left_alone():
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["a"]),
        helper.make_node("Reshape", ["v", "shape"], ["b"]),
        helper.make_node("Concat", ["a", "b"], ["y"], axis=1),
    ]
    proto = model(nodes, shape=np.array([1, -1], np.int64), v=weight(2, 2))
    assert with_free_batch(Mirror(proto), [torch.zeros(1, LENGTH, HEADS * WIDTH)]) is None


def test_a_shape_that_is_read_elsewhere_too_is_left_alone():
    """As an output of the graph, or of a branch."""
    sample = [torch.zeros(1, LENGTH, HEADS * WIDTH)]
    proto = flat()
    proto.graph.output.append(helper.make_tensor_value_info("shape", TensorProto.INT64, [2]))
    assert with_free_batch(Mirror(proto), sample) is None
    proto = flat()
    branches = {}
    for name in ("then_branch", "else_branch"):
        value = helper.make_tensor_value_info(name, TensorProto.INT64, [2])
        branches[name] = helper.make_graph([helper.make_node("Identity", ["shape"], [name])], name, [], [value])
    proto.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    proto.graph.node.append(helper.make_node("If", ["yes"], ["z"], **branches))
    proto.graph.output.append(helper.make_tensor_value_info("z", TensorProto.INT64, [2]))
    assert with_free_batch(Mirror(proto), sample) is None


def test_the_model_is_not_touched():
    proto = flat()
    before = proto.SerializeToString(deterministic=True)
    assert with_free_batch(Mirror(proto), [torch.zeros(1, LENGTH, HEADS * WIDTH)]) is not None
    assert proto.SerializeToString(deterministic=True) == before
