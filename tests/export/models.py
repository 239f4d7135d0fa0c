"""Small models for the tests of graph, export and runtime. All shapes are asymmetric."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnx_obd.graph.weights import find_weights

FLOAT = TensorProto.FLOAT


def value(name: str, *shape: int | str, elem_type: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, elem_type, shape)


def normal(*shape: int, seed: int = 0, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    initializers: list[onnx.TensorProto] | None = None,
    *,
    ir_version: int = 8,
    opset: int = 13,
    functions: list[onnx.FunctionProto] | None = None,
    domains: tuple[str, ...] = (),
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "main", inputs, outputs, initializers or [])
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, ir_version=ir_version, opset_imports=imports, functions=functions or [])


def dense_net(
    *, ir_version: int = 8, opset: int = 13, weights_as_inputs: bool = False, elem_type: int = FLOAT
) -> onnx.ModelProto:
    """y = Relu(x W1 + b1) W2: x [N, 37], W1 [37, 23], b1 [23] in its typed field, W2 [23, 11]."""
    dtype = helper.tensor_dtype_to_np_dtype(elem_type)
    w1, b1, w2 = normal(37, 23).astype(dtype), normal(23).astype(dtype), normal(23, 11).astype(dtype)
    initializers = [
        numpy_helper.from_array(w1, "W1"),
        helper.make_tensor("b1", elem_type, b1.shape, b1),
        numpy_helper.from_array(w2, "W2"),
    ]
    inputs = [value("x", "N", 37, elem_type=elem_type)]
    if weights_as_inputs:
        inputs += [value(t.name, *t.dims, elem_type=elem_type) for t in initializers]
    nodes = [
        helper.make_node("MatMul", ["x", "W1"], ["h1"], name="first"),
        helper.make_node("Add", ["h1", "b1"], ["h2"]),
        helper.make_node("Relu", ["h2"], ["h3"]),
        helper.make_node("MatMul", ["h3", "W2"], ["y"], name="second"),
    ]
    outputs = [value("y", "N", 11, elem_type=elem_type)]
    return model(nodes, inputs, outputs, initializers, ir_version=ir_version, opset=opset)


def _branches() -> dict[str, onnx.GraphProto]:
    """Of the If of ``every_place``."""
    then_branch = helper.make_graph(
        [helper.make_node("MatMul", ["k", "T"], ["t"])],
        "then",
        [],
        [value("t", "N", 13)],
        [numpy_helper.from_array(normal(17, 13, seed=1), "T")],
    )
    else_branch = helper.make_graph(
        [
            helper.make_node("Constant", [], ["B"], value=numpy_helper.from_array(normal(13, 13, seed=5), "B")),
            helper.make_node("MatMul", ["k", "E"], ["e0"]),
            helper.make_node("MatMul", ["e0", "B"], ["e"]),
        ],
        "else",
        [],
        [value("e", "N", 13)],
        [numpy_helper.from_array(normal(17, 13, seed=2), "E")],
    )
    return {"then_branch": then_branch, "else_branch": else_branch}


def _project() -> onnx.FunctionProto:
    """A function of the model with a weight in its body."""
    return helper.make_function(
        "local",
        "Project",
        ["a"],
        ["b"],
        [
            helper.make_node("Constant", [], ["F"], value=numpy_helper.from_array(normal(13, 13, seed=3), "F_value")),
            helper.make_node("MatMul", ["a", "F"], ["b"]),
        ],
        [helper.make_opsetid("", 13)],
    )


def every_place() -> onnx.ModelProto:
    """A model with a float weight in every place ONNX has, and with all that must survive.

    Inputs x [N, 19] and flag, output y [N, 13].
    Weights: W [19, 31] raw, V [31, 29] in float_data, constant ``K`` [29, 17], ``T`` [17, 13] in the then branch and
    ``E`` [17, 13] in the else branch (which also has a Constant ``B`` [13, 13]), ``F`` [13, 13] in a function.
    """
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["w"], doc_string="a node's doc"),
        helper.make_node("MatMul", ["w", "V"], ["v"]),
        helper.make_node("Constant", [], ["K"], value=numpy_helper.from_array(normal(29, 17, seed=4), "K_value")),
        helper.make_node("MatMul", ["v", "K"], ["k"]),
        helper.make_node("If", ["flag"], ["i"], **_branches()),
        helper.make_node("Project", ["i"], ["p"], domain="local"),
        helper.make_node("Reshape", ["p", "shape"], ["y"]),
    ]
    weights = [
        numpy_helper.from_array(normal(19, 31), "W"),
        numpy_helper.from_array(np.array([-1, 13]), "shape"),
        helper.make_tensor("V", FLOAT, (31, 29), normal(31, 29)),
    ]
    inputs = [value("x", "N", 19), value("flag", elem_type=TensorProto.BOOL)]
    proto = model(
        nodes, inputs, [value("y", "M", 13)], weights, functions=[_project()], domains=("local", "some.unused.domain")
    )
    proto.graph.value_info.extend([value("w", "N", 31), value("W", 19, 31)])
    proto.graph.initializer[0].doc_string = "a tensor's doc"
    proto.graph.doc_string, proto.doc_string = "a graph's doc", "a model's doc"
    proto.producer_name, proto.producer_version, proto.domain, proto.model_version = "someone", "1.2", "org.some", 7
    proto.metadata_props.add(key="author", value="somebody")
    proto.metadata_props.add(key="classes", value='["a", "b"]')
    return proto


def save_external(proto: onnx.ModelProto, path, location: str = "weights.bin") -> None:
    """Saves every raw tensor of the main graph as external data."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    onnx.save(copy, path, save_as_external_data=True, location=location, size_threshold=0)


def thinned(array: np.ndarray, density: float = 0.1, seed: int = 0) -> np.ndarray:
    """``array`` with all but about ``density`` of its elements zero."""
    return np.where(np.random.default_rng(seed).random(array.shape) < density, array, np.zeros_like(array))


def thin_weights(proto: onnx.ModelProto, density: float = 0.1) -> dict[str, np.ndarray]:
    weights = {name: weight.read(proto) for name, weight in find_weights(proto).items()}
    return {name: thinned(array, density) for name, array in weights.items() if array.ndim > 1}


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
