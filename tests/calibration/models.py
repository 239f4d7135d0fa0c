"""Small models whose inputs have the shapes and types a test needs, and that onnxruntime can run."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

FLOAT, INT64, INT32, UINT8 = TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT32, TensorProto.UINT8


def make_model(*inputs: tuple, classes: int | None = None) -> onnx.ModelProto:
    """A model with ``inputs`` (name, element type, shape); the first output has the shape [n, classes] if given."""
    values = [helper.make_tensor_value_info(*described) for described in inputs]
    nodes = [helper.make_node("Shape", [value.name], [f"shape of {value.name}"]) for value in values]
    outputs = [helper.make_tensor_value_info(node.output[0], INT64, [None]) for node in nodes]
    initializers = []
    if classes is not None:
        nodes.append(helper.make_node("Constant", [], ["scores"], value_floats=[0.5] * classes))
        nodes.append(helper.make_node("Unsqueeze", ["scores", "first"], ["y"]))
        initializers.append(helper.make_tensor("first", INT64, [1], [0]))
        outputs.insert(0, helper.make_tensor_value_info("y", FLOAT, [1, classes]))
    graph = helper.make_graph(nodes, "inputs", values, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def check_accepted(model: onnx.ModelProto, feeds) -> None:
    """onnxruntime takes every feed as it is."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    shapes = [output.name for output in session.get_outputs() if output.name.startswith("shape of ")]
    for feed in feeds:
        for name, shape in zip(shapes, session.run(shapes, feed), strict=True):
            assert tuple(shape) == feed[name.removeprefix("shape of ")].shape


def values(*shape: int) -> np.ndarray:
    """Distinct float32 numbers."""
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape) / 7
