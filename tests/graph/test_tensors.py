from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_obd.graph.tensors import size_mismatch, sparse_tensors, stored_tensors
from tests.export.models import dense_net, every_place, normal

ELEMENT_TYPES = [
    value
    for name, value in TensorProto.DataType.items()
    if name not in ("UNDEFINED", "STRING") and not name.startswith("FLOAT6")
]


def test_every_stored_tensor_has_a_key():
    tensors = dict(stored_tensors(every_place()))
    assert list(tensors) == [
        "W",
        "shape",
        "V",
        "K.value",
        *("i.else_branch/E", "i.else_branch/B.value", "i.then_branch/T"),
        "local::Project/F.value",
    ]
    assert len(tensors["i.else_branch/E"].raw_data) == 17 * 13 * 4


def test_keys_outlive_the_removal_of_other_nodes_and_initializers():
    proto = every_place()
    before = set(dict(stored_tensors(proto)))
    del proto.graph.node[2], proto.graph.initializer[0]
    assert set(dict(stored_tensors(proto))) == before - {"K.value", "W"}


def test_sparse_tensors_everywhere():
    proto = every_place()
    initializer, attribute = proto.graph.sparse_initializer.add(), proto.graph.node[2].attribute[0]
    initializer.values.name = "S"
    attribute.ClearField("t")
    attribute.name, attribute.sparse_tensor.values.name = "sparse_value", "K_value"
    inner = proto.graph.node[4].attribute[0].g.sparse_initializer.add()
    inner.values.name = "I"
    assert {sparse.values.name for sparse in sparse_tensors(proto)} == {"S", "K_value", "I"}
    keys = set(dict(stored_tensors(proto)))
    assert {"S", "S.indices", "K.value", "K.value.indices", "i.else_branch/I"} <= keys


def array_of(elem_type: int) -> np.ndarray:
    return np.array([1, 0, 1, 1, 0, 1, 1], dtype=helper.tensor_dtype_to_np_dtype(elem_type))


@pytest.mark.parametrize("elem_type", ELEMENT_TYPES, ids=TensorProto.DataType.Name)
@pytest.mark.parametrize("typed_field", [False, True])
def test_sizes_of_every_element_type(elem_type, typed_field):
    """ONNX's own writers are the reference; one element more or less must show."""
    array = array_of(elem_type)
    if typed_field:
        tensor = helper.make_tensor("t", elem_type, (7,), array)
    else:
        tensor = numpy_helper.from_array(array, "t")
        assert tensor.data_type == elem_type
        assert tensor.HasField("raw_data")
    assert size_mismatch(tensor) is None
    for wrong in (3, 14):
        tensor.dims[0] = wrong
        assert size_mismatch(tensor) is not None


def test_strings_scalars_and_empty_tensors():
    assert size_mismatch(helper.make_tensor("s", TensorProto.STRING, (2,), ["a", "b"])) is None
    assert "3" in size_mismatch(TensorProto(data_type=TensorProto.STRING, dims=[3], string_data=[b"a"]))
    assert size_mismatch(numpy_helper.from_array(np.float32(3))) is None
    assert size_mismatch(numpy_helper.from_array(normal(0, 5))) is None
    assert size_mismatch(TensorProto(data_type=TensorProto.FLOAT, dims=[2])) is not None


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (TensorProto(dims=[1]), "type 0"),
        (TensorProto(dims=[1], data_type=999), "type 999"),
        (TensorProto(dims=[-1, -1], data_type=1, raw_data=bytes(4)), "shape"),
        (TensorProto(dims=[2**62] * 10**5, data_type=1), "dimensions"),
    ],
)
def test_impossible_declarations(tensor, reason):
    assert reason in size_mismatch(tensor)


def test_dense_net_is_consistent():
    assert all(size_mismatch(tensor) is None for _, tensor in stored_tensors(dense_net()))
