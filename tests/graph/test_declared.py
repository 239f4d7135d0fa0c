"""Which lengths are the same for every input."""

import numpy as np
from onnx import helper

from onnx_obd.graph.declared import declared_shapes
from tests.curvature.networks import model


def test_lengths_follow_from_what_is_declared_and_open_ones_stay_open():
    nodes = [helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0]), helper.make_node("MatMul", ["t", "w"], ["y"])]
    proto = model(nodes, {"x": [3, "N"]}, {"y": ["N", 5]}, {"w": np.zeros((3, 5))})
    shapes = declared_shapes(proto)
    assert shapes["x"] == (3, None) and shapes["t"] == (None, 3) and shapes["y"] == (None, 5)


def test_a_length_of_minus_one_is_open():
    """As some exporters write any length."""
    proto = model([helper.make_node("Relu", ["x"], ["y"])], {"x": [-1, 4]}, {"y": [-1, 4]}, {})
    shapes = declared_shapes(proto)
    assert shapes["x"] == shapes["y"] == (None, 4)
