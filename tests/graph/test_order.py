from __future__ import annotations

import onnx.helper as oh
import pytest
from onnx import TensorProto

from onnx_obd.errors import ModelError
from onnx_obd.graph.order import run_order


def _if(output: str, reads: str):
    value = oh.make_tensor_value_info(output, TensorProto.FLOAT, None)
    branch = oh.make_graph([oh.make_node("Neg", [reads], [output])], "branch", [], [value])
    return oh.make_node("If", ["c"], [output], then_branch=branch, else_branch=branch)


def test_nodes_in_order_stay_as_they_are():
    nodes = [oh.make_node("Neg", ["x"], ["a"]), oh.make_node("Abs", ["x"], ["b"])]
    nodes.append(oh.make_node("Add", ["a", "b"], ["y"]))
    assert list(run_order(nodes)) == [0, 1, 2]


def test_a_node_comes_after_those_it_reads():
    nodes = [oh.make_node("Add", ["a", "b"], ["y"]), oh.make_node("Abs", ["a"], ["b"])]
    nodes += [oh.make_node("Neg", ["x"], ["a"])]
    assert list(run_order(nodes)) == [2, 1, 0]


def test_what_a_body_reads_comes_first():
    nodes = [_if("y", "a"), oh.make_node("Neg", ["x"], ["a"])]
    assert list(run_order(nodes)) == [1, 0]


def test_a_branch_may_name_its_output_as_its_node_does():
    assert list(run_order([oh.make_node("Neg", ["x"], ["a"]), _if("y", "a")])) == [0, 1]


def test_a_cycle_is_named():
    nodes = [oh.make_node("Neg", ["b"], ["a"], name="one"), oh.make_node("Abs", ["a"], ["b"], name="two")]
    with pytest.raises(ModelError, match="one"):
        run_order(nodes)
