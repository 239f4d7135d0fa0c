from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from google.protobuf.message import EncodeError
from onnx import helper

from onnx_obd.errors import ModelError
from onnx_obd.graph.session import open_session
from tests.export.models import dense_net, model, normal, save_external, value


def test_file_bytes_and_proto_give_the_same(tmp_path):
    save_external(dense_net(), tmp_path / "m.onnx")
    x = normal(3, 37)
    expected = ort.InferenceSession(dense_net().SerializeToString()).run(None, {"x": x})[0]
    for source in (tmp_path / "m.onnx", str(tmp_path / "m.onnx"), dense_net(), dense_net().SerializeToString()):
        np.testing.assert_array_equal(open_session(source).run(None, {"x": x})[0], expected)


def test_options():
    options = open_session(dense_net(), threads=2, optimize=False).get_session_options()
    assert options.intra_op_num_threads == 2
    assert options.inter_op_num_threads == 1
    assert options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options = open_session(dense_net()).get_session_options()
    assert options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_ALL


def test_refusal_is_one_quiet_line(capfd):
    proto = model(
        [helper.make_node("Mystery", ["x"], ["y"], domain="org.custom")],
        [value("x", 3)],
        [value("y", 3)],
        domains=("org.custom",),
    )
    with pytest.raises(ModelError, match=r"onnxruntime refuses the model: .*Mystery") as caught:
        open_session(proto)
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match=r"none\.onnx: onnxruntime refuses"):
        open_session("none.onnx")
    with pytest.raises(ModelError):
        open_session(b"not a model")
    with pytest.raises(ModelError):  # a reason that is not UTF-8: onnxruntime would print and try again
        open_session(proto.SerializeToString().replace(b"Mystery", b"Myst\xffry"))
    assert capfd.readouterr() == ("", "")


def test_a_model_too_large_for_one_message_goes_through_a_file(monkeypatch):
    proto = dense_net()
    whole = onnx.ModelProto.SerializeToString

    def serialize(self):
        if any(len(tensor.raw_data) > 1024 for tensor in self.graph.initializer):
            raise EncodeError("over 2 GiB")
        return whole(self)

    monkeypatch.setattr(onnx.ModelProto, "SerializeToString", serialize)
    x = normal(3, 37)
    result = open_session(proto).run(None, {"x": x})[0]
    monkeypatch.undo()
    np.testing.assert_array_equal(result, open_session(proto).run(None, {"x": x})[0])
