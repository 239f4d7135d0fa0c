"""Nodes that onnxruntime runs for the mirror."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from onnx_obd.errors import UnsupportedNodeError
from onnx_obd.graph.session import open_session
from onnx_obd.graph.weights import write_weights
from onnx_obd.mirror.mirror import Mirror
from onnx_obd.mirror.values import to_numpy, to_torch

WORDS, WIDTH = 7, 4
_RNG = np.random.default_rng(5)


def _tensor(value, name: str) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(value), name)


def _decoder() -> onnx.GraphProto:
    """A language model with one head of one number: the next word by the last one alone."""
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["x"]),  # the table stands in the graph around
        helper.make_node("Constant", [], ["shift"], value=_tensor(_RNG.normal(size=WIDTH).astype(np.float32), "")),
        helper.make_node("Add", ["x", "shift"], ["shifted"]),
        helper.make_node("MatMul", ["shifted", "head"], ["logits"]),
        helper.make_node("Cast", ["attention_mask"], ["seen"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["seen", "present_shape"], ["kept"]),
        helper.make_node("Concat", ["kept", "kept"], ["present_0"], axis=0),
    ]
    info = helper.make_tensor_value_info
    ids = [info(name, TensorProto.INT32, ["b", "s"]) for name in ("input_ids", "position_ids", "attention_mask")]
    past, logits, present = ["2", "b", 1, "p", 1], ["b", "s", WORDS], [2, "b", 1, "t", 1]
    return helper.make_graph(
        nodes,
        "decoder",
        [*ids, info("past_0", TensorProto.FLOAT, [2, *past[1:]])],
        [info("logits", TensorProto.FLOAT, logits), info("present_0", TensorProto.FLOAT, present)],
        [
            _tensor(_RNG.normal(size=(WIDTH, WORDS)).astype(np.float32), "head"),
            _tensor(np.array([1, -1, 1, 0, 1])[[0, 1, 2, 4, 4]], "present_shape"),
        ],
    )


def _greedy() -> onnx.ModelProto:
    search = helper.make_node(
        "GreedySearch", ["ids", "longest", "shortest"], ["words"], "search", domain="com.microsoft",
        decoder=_decoder(), eos_token_id=WORDS + 1, pad_token_id=WORDS + 1, model_type=0,
    )  # fmt: skip
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [search],
        "greedy",
        [info("ids", TensorProto.INT32, [2, 3])],
        [info("words", TensorProto.INT32, None)],
        [
            _tensor(_RNG.normal(size=(WORDS, WIDTH)).astype(np.float32), "table"),
            _tensor(np.array([9], np.int32), "longest"),
            _tensor(np.array([1], np.int32), "shortest"),
        ],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def test_weights_in_the_graphs_of_a_node_are_parameters():
    model = _greedy()
    mirror, ids = Mirror(model), np.array([[1, 2, 3], [4, 5, 6]], np.int32)
    assert mirror.boundaries == ("GreedySearch 'search'",)
    assert {name: tuple(value.shape) for name, value in mirror.weights.items()} == {
        "table": (WORDS, WIDTH), "shift": (WIDTH,), "head": (WIDTH, WORDS),
    }  # fmt: skip
    before = open_session(model).run(None, {"ids": ids})[0]
    assert to_numpy(mirror(to_torch(ids))).tolist() == before.tolist()

    with torch.no_grad():
        mirror.weights["head"].copy_(torch.from_numpy(_RNG.normal(size=(WIDTH, WORDS))))
        mirror.weights["shift"].neg_()
        mirror.weights["table"].mul_(2)
    write_weights(model, mirror.state())
    after = open_session(model).run(None, {"ids": ids})[0]
    assert after.tolist() != before.tolist()
    assert to_numpy(mirror(to_torch(ids))).tolist() == after.tolist()


def test_the_file_is_bit_identical_if_nothing_changes():
    model = _greedy()
    before = model.SerializeToString()
    write_weights(model, Mirror(model).state())
    assert model.SerializeToString() == before


def _classifier(node: onnx.NodeProto, version: int = 1) -> onnx.ModelProto:
    """A MatMul before ``node``, which reads ``z``."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["z"]), node],
        "classifier",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [onnx.ValueInfoProto(name=name) for name in node.output],
        [_tensor(_RNG.normal(size=(3, 2)).astype(np.float32), "w")],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(node.domain, version)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def _hash() -> onnx.NodeProto:
    return helper.make_node("MurmurHash3", ["z"], ["y"], domain="com.microsoft", positive=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_node_runs_in_the_precision_it_was_written_for(dtype):
    model, x = _classifier(_hash()), np.array([[1, 2, 3], [0, 0, 0]], np.float32)  # a hash sees every bit
    mirror = Mirror(model).to(dtype)
    with torch.no_grad():
        mirror.weights["w"].copy_(torch.tensor([[1, 0], [0, 2], [-1, 0.5]]))
    write_weights(model, mirror.state())
    found = mirror(to_torch(x).to(dtype))
    assert to_numpy(found).tolist() == open_session(model).run(None, {"x": x})[0].tolist()
    assert not found.requires_grad


def test_an_operator_that_nobody_knows_stops_the_import_with_its_name():
    with pytest.raises(UnsupportedNodeError, match=r"'odd': neither the mirror nor onnxruntime knows my\.own:Odd"):
        Mirror(_classifier(helper.make_node("Odd", ["z"], ["y"], "odd", domain="my.own")))
