from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from onnx_obd.graph.weights import find_weights, write_weights
from onnx_obd.runtime.subnormals import count_subnormals, flush_subnormals
from tests.export.models import dense_net

NORMAL_AND_NOT = {
    TensorProto.FLOAT: ([1e-39, -1e-45, 1.1e-38], [1.2e-38, 0.0, -0.0, np.inf, 1.0]),
    TensorProto.DOUBLE: ([1e-310, -5e-324], [1e-39, 0.0, 2.3e-308]),
    TensorProto.BFLOAT16: ([1e-39, -1e-40], [1.2e-38, 0.0]),
    TensorProto.FLOAT16: ([], [1e-7, -1e-6, 0.0]),  # computed as float32, where they are normal
}


def net_with(elem_type: int) -> tuple[onnx.ModelProto, int, np.ndarray]:
    proto = dense_net(elem_type=elem_type)
    subnormal, normal = NORMAL_AND_NOT[elem_type]
    array = find_weights(proto)["W2"].read(proto)
    array = np.where(np.abs(array.astype(np.float64)) < 1e-3, 1, array).astype(array.dtype)
    array.reshape(-1)[: len(subnormal) + len(normal)] = subnormal + normal
    write_weights(proto, {"W2": array})
    return proto, len(subnormal), array


@pytest.mark.parametrize("elem_type", NORMAL_AND_NOT, ids=TensorProto.DataType.Name)
def test_count_and_flush(elem_type):
    proto, count, array = net_with(elem_type)
    assert count_subnormals(proto) == ({"W2": count} if count else {})
    before = proto.SerializeToString()
    flushed = flush_subnormals(proto)
    assert proto.SerializeToString() == before
    assert count_subnormals(flushed) == {}
    expected = array.copy()
    expected.reshape(-1)[:count] = np.copysign(0, array.reshape(-1)[:count].astype(np.float64))
    assert find_weights(flushed)["W2"].read(flushed).tobytes() == expected.tobytes()
    if not count:
        assert flushed == proto


def test_typed_fields_and_other_weights_stay():
    proto = dense_net()
    bias = find_weights(proto)["b1"].read(proto).copy()
    bias[3] = 1e-40
    write_weights(proto, {"b1": bias})
    flushed = flush_subnormals(proto)
    assert flushed.graph.initializer[0] == proto.graph.initializer[0]
    assert not flushed.graph.initializer[1].HasField("raw_data")
    assert flushed.graph.initializer[1].float_data[3] == 0
    assert count_subnormals(proto) == {"b1": 1}
