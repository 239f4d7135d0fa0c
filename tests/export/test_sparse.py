from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from onnx_obd.errors import ModelError
from onnx_obd.export.metadata import get_metadata, set_metadata
from onnx_obd.export.sparse import RECORD, apply_encodings, decode, encode, restore_dense, smaller_encodings
from onnx_obd.graph.session import open_session
from onnx_obd.graph.weights import find_weights, write_weights
from tests.export.models import dense_net, every_place, model, normal, thinned, value

FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)


def bits(array: np.ndarray) -> bytes:
    return array.tobytes()


def with_thin_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    weights = {name: weight for name, weight in find_weights(proto).items() if len(weight.shape) > 1}
    write_weights(proto, {name: thinned(weight.read(proto)) for name, weight in weights.items()})
    return proto


def to_sparse(proto: onnx.ModelProto) -> onnx.ModelProto:
    sparse = onnx.ModelProto()
    sparse.CopyFrom(proto)
    apply_encodings(sparse, smaller_encodings(sparse, find_weights(sparse)))
    return sparse


@pytest.mark.parametrize("elem_type", FLOATS, ids=TensorProto.DataType.Name)
@pytest.mark.parametrize("typed_field", [False, True])
def test_encoding_is_undone_bit_for_bit(elem_type, typed_field):
    array = thinned(normal(7, 5, 3)).astype(helper.tensor_dtype_to_np_dtype(elem_type))
    array[0, 0, 0], array[6, 4, 2] = -0.0, -0.0
    if typed_field:
        tensor = helper.make_tensor("W", elem_type, array.shape, array)
        assert not tensor.HasField("raw_data")
    else:
        tensor = numpy_helper.from_array(array, "W")
    tensor.doc_string = "kept"
    sparse = encode(tensor)
    onnx.checker.check_sparse_tensor(sparse)
    assert decode(sparse) == tensor
    assert bits(numpy_helper.to_array(decode(sparse))) == bits(array)
    stored = np.flatnonzero((array != 0) | np.signbit(array))
    np.testing.assert_array_equal(sparse.indices.int64_data, stored)
    assert sparse.values.HasField("raw_data") != typed_field


def test_all_zero_and_all_stored():
    for array in (np.zeros((7, 5), np.float32), normal(7, 5)):
        tensor = numpy_helper.from_array(array, "W")
        assert decode(encode(tensor)) == tensor


def test_indices_are_stored_as_varints():
    """At 90 % sparsity findings promise about a fifth of the dense size; 8-byte indices would take 0.3."""
    tensor = numpy_helper.from_array(thinned(normal(300, 400)), "W")
    ratio = encode(tensor).ByteSize() / tensor.ByteSize()
    assert 0.15 < ratio < 0.19


@pytest.mark.parametrize("elem_type", FLOATS[:3], ids=TensorProto.DataType.Name)
@pytest.mark.parametrize("ir_version, weights_as_inputs", [(3, True), (4, True), (8, False), (8, True)])
def test_onnxruntime_and_checker_accept_it(elem_type, ir_version, weights_as_inputs):
    opset = 7 if ir_version == 3 else 13
    dense = with_thin_weights(
        dense_net(ir_version=ir_version, opset=opset, weights_as_inputs=weights_as_inputs, elem_type=elem_type)
    )
    sparse = to_sparse(dense)
    assert {s.values.name for s in sparse.graph.sparse_initializer} == {"W1", "W2"}
    onnx.checker.check_model(sparse)
    a, b = open_session(dense), open_session(sparse)
    x = normal(3, 37).astype(helper.tensor_dtype_to_np_dtype(elem_type))
    np.testing.assert_array_equal(a.run(None, {"x": x})[0], b.run(None, {"x": x})[0])
    assert [i.name for i in a.get_inputs()] == [i.name for i in b.get_inputs()]
    overridable = [[i.name for i in session.get_overridable_initializers()] for session in (a, b)]
    assert sorted(overridable[0]) == sorted(overridable[1])
    if overridable[0]:
        other = np.ones((23, 11), x.dtype)
        np.testing.assert_array_equal(*(s.run(None, {"x": x, "W2": other})[0] for s in (a, b)))


@pytest.mark.parametrize("flag", [True, False])
def test_every_place(flag):
    dense = with_thin_weights(every_place())
    sparse = to_sparse(dense)
    assert not any(isinstance(w, TensorProto) for w in sparse.graph.initializer if w.name != "shape")
    assert sum(a.type == AttributeProto.SPARSE_TENSOR for n in sparse.graph.node for a in n.attribute) == 1
    assert list(sparse.functions) == list(dense.functions)  # onnxruntime crashes on sparse constants in functions
    onnx.checker.check_model(sparse)
    feed = {"x": normal(3, 19), "flag": np.array(flag)}
    results = [open_session(proto).run(None, feed)[0] for proto in (dense, sparse)]
    assert np.abs(results[0]).max() > 0
    np.testing.assert_array_equal(*results)
    assert sparse.ByteSize() < 0.5 * dense.ByteSize()


def test_restoring_gives_the_same_bytes():
    dense = with_thin_weights(every_place())
    sparse = to_sparse(dense)
    assert sparse != dense
    restore_dense(sparse)
    assert sparse.SerializeToString() == dense.SerializeToString()


def test_positions_among_other_initializers_are_restored():
    dense = dense_net()
    for index in range(9):
        tensor = numpy_helper.from_array(
            thinned(normal(40, 10), seed=index) if index % 3 else normal(4, 2), f"T{index}"
        )
        dense.graph.initializer.insert((5 * index) % (len(dense.graph.initializer) + 1), tensor)
    sparse = to_sparse(dense)
    assert len(sparse.graph.sparse_initializer) == 6
    shuffled = list(sparse.graph.sparse_initializer)[::-1]  # as another tool may leave them
    del sparse.graph.sparse_initializer[:]
    sparse.graph.sparse_initializer.extend(shuffled)
    restore_dense(sparse)
    assert sparse == dense


def test_only_named_and_only_smaller_tensors_are_encoded():
    dense = with_thin_weights(dense_net())
    write_weights(dense, {"W2": normal(23, 11)})
    assert [e.summary.name for e in smaller_encodings(dense, {"W1", "W2", "b1"})] == ["W1"]
    assert smaller_encodings(dense, {"W2"}) == []
    encoding = smaller_encodings(dense, {"W1"})[0]
    sparse = to_sparse(dense)
    assert encoding.summary.dense_bytes == dense.graph.initializer[0].ByteSize()
    assert encoding.summary.sparse_bytes == sparse.graph.sparse_initializer[0].ByteSize()
    assert encoding.summary.density == pytest.approx(
        np.count_nonzero(numpy_helper.to_array(dense.graph.initializer[0])) / (37 * 23)
    )
    assert dense.ByteSize() - sparse.ByteSize() > 0


def test_encoding_always_makes_the_file_smaller():
    """At the density where the gain is smallest, the record and the framing must not eat it."""
    encoded: set[float] = set()
    for density in np.linspace(0.3, 0.8, 26):
        dense = dense_net()
        write_weights(dense, {"W2": thinned(normal(23, 11), density)})
        sparse = to_sparse(dense)
        if sparse.graph.sparse_initializer:
            assert sparse.ByteSize() < dense.ByteSize()
            encoded.add(float(density))
    assert 0 < len(encoded) < 26


def test_what_must_stay_dense():
    scalar = numpy_helper.from_array(np.float32(0), "s")
    empty = numpy_helper.from_array(np.zeros((0, 5), np.float32), "e")
    shown = numpy_helper.from_array(np.zeros((40, 30), np.float32), "shown")
    integers = numpy_helper.from_array(np.zeros((40, 30), np.int64), "i")
    proto = model(
        [helper.make_node("Add", ["x", "s"], ["y"])],
        [value("x", 3)],
        [value("y", 3), value("shown", 40, 30)],
        [scalar, empty, shown, integers],
    )
    assert smaller_encodings(proto, find_weights(proto)) == []


def constant_net(opset: int) -> onnx.ModelProto:
    tensor = numpy_helper.from_array(thinned(normal(37, 23)), "K_value")
    nodes = [
        helper.make_node("Constant", [], ["K"], value=tensor),
        helper.make_node("MatMul", ["x", "K"], ["y"]),
    ]
    return model(nodes, [value("x", 3, 37)], [value("y", 3, 23)], opset=opset, ir_version=4)


def test_constants_before_opset_11_stay_dense():
    assert smaller_encodings(constant_net(10), {"K"}) == []
    sparse = to_sparse(constant_net(11))
    assert sparse.graph.node[0].attribute[0].name == "sparse_value"
    x = normal(3, 37)
    results = [open_session(proto).run(None, {"x": x})[0] for proto in (constant_net(11), sparse)]
    np.testing.assert_array_equal(*results)


def two_dimensional(array: np.ndarray, name: str) -> onnx.SparseTensorProto:
    coordinates = np.stack(np.nonzero(array), axis=1)
    values = numpy_helper.from_array(array[array != 0], name)
    return helper.make_sparse_tensor(values, numpy_helper.from_array(coordinates), array.shape)


def test_sparse_tensors_of_other_writers_become_dense_without_a_record():
    proto = model(
        [
            helper.make_node("Constant", [], ["K"], sparse_value=two_dimensional(thinned(normal(11, 5)), "K")),
            helper.make_node("MatMul", ["x", "S"], ["h"]),
            helper.make_node("MatMul", ["h", "K"], ["y"]),
        ],
        [value("x", 3, 7)],
        [value("y", 3, 5)],
    )
    proto.graph.sparse_initializer.append(two_dimensional(thinned(normal(7, 11), 0.4), "S"))
    x = normal(3, 7)
    before = open_session(proto).run(None, {"x": x})[0]
    restore_dense(proto)
    assert not proto.graph.sparse_initializer
    np.testing.assert_array_equal(numpy_helper.to_array(proto.graph.initializer[0]), thinned(normal(7, 11), 0.4))
    assert proto.graph.node[0].attribute[0].t.dims == [11, 5]
    onnx.checker.check_model(proto, full_check=True)
    np.testing.assert_array_equal(open_session(proto).run(None, {"x": x})[0], before)


def test_with_a_record_tensors_that_were_sparse_before_stay_so():
    dense = with_thin_weights(dense_net())
    dense.graph.sparse_initializer.append(two_dimensional(np.eye(3, 4, dtype=np.float32), "S"))
    sparse = to_sparse(dense)
    assert [s.values.name for s in sparse.graph.sparse_initializer] == ["S", "W1", "W2"]
    restore_dense(sparse)
    assert sparse == dense


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", '[[["node", 99], {}]]', '[[[], {"W1": "x"}]]', "[[[], 3]]", "[[[{}], {}]]"]
)
def test_a_damaged_record_is_one_line(text):
    proto = to_sparse(with_thin_weights(dense_net()))
    set_metadata(proto, RECORD, text)
    with pytest.raises(ModelError, match=r"onnx_obd\.sparse"):
        restore_dense(proto)


def test_tensors_that_another_tool_removed_are_skipped():
    dense = with_thin_weights(dense_net())
    sparse = to_sparse(dense)
    del sparse.graph.sparse_initializer[0]
    restore_dense(sparse)
    assert [tensor.name for tensor in sparse.graph.initializer] == ["b1", "W2"]
    assert get_metadata(sparse, RECORD) is None
