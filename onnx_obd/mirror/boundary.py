"""A node the registry lacks: onnxruntime runs it, no gradient passes, and the report says so."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx
import onnxruntime as ort

from onnx_obd.errors import ModelError, UnsupportedNodeError
from onnx_obd.graph.weights import Path
from onnx_obd.mirror.registry import Operator
from onnx_obd.mirror.values import TORCH_DTYPE, Precision, elem_type_of, is_float, to_numpy, to_torch

_UNKNOWN = ("not a registered function/op", "No opset import", "No Op registered", "Unrecognized attribute")
"""What onnxruntime says of an operator it does not have."""


def boundary(
    node: onnx.NodeProto,
    label: str,
    opsets: Mapping[str, int],
    ir_version: int,
    names: Sequence[str],
    elem_types: Sequence[int],
    precision: Precision,
) -> Operator:
    """An operator that runs ``node`` in onnxruntime as a constant of the mirror.

    Args:
        names: of the values it is called with: the inputs of the node, then what its graphs take from outside.
        elem_types: of these values in the model, 0 where unknown. The node runs in the precision it was written for,
            whatever the mirror's.

    Raises:
        UnsupportedNodeError: onnxruntime does not know the operator either.
    """
    run = _OrtNode(node, label, opsets, ir_version, names, elem_types, precision)
    run.check_known()
    return Operator(
        node.domain, node.op_type, (opsets.get(node.domain, 1),), run, differentiable=False, data_dependent_shape=True
    )


def open_graphs(node: onnx.NodeProto, path: Path, is_weight: Callable[[Path], bool]) -> dict[str, Path]:
    """Let the graphs in ``node`` take their weights from outside, so that these can be parameters of the mirror.

    Args:
        node: a copy; its graphs are changed in place.
        path: where the node is stored.
        is_weight: tells whether a weight is stored at a path.

    Returns:
        The name under which the graphs now take each weight, and where it is stored.
    """
    opened: dict[str, Path] = {}
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            opened |= _open(attribute.g, (*path, attribute.name), is_weight)
    return opened


def _open(graph: onnx.GraphProto, path: Path, is_weight: Callable[[Path], bool]) -> dict[str, Path]:
    opened: dict[str, Path] = {}

    def taken(stored: Path, name: str) -> onnx.NodeProto:
        outside = "/".join(map(str, stored))
        opened[outside] = stored
        return onnx.helper.make_node("Identity", [outside], [name])

    for index, node in enumerate(graph.node):
        at = (*path, "node", index)
        opened |= open_graphs(node, at, is_weight)
        stored = next(filter(is_weight, ((*at, attribute.name) for attribute in node.attribute)), None)
        if stored:
            node.CopyFrom(taken(stored, node.output[0]))
    for index in reversed(range(len(graph.initializer))):
        stored = (*path, "initializer", index)
        if is_weight(stored):
            graph.node.insert(0, taken(stored, graph.initializer.pop(index).name))
    return opened


class _OrtNode:
    def __init__(self, node, label, opsets, ir_version, names, elem_types, precision):
        self.node, self.label, self.opsets, self.ir_version = node, label, opsets, max(ir_version, 3)
        self.names, self.elem_types, self.precision = names, elem_types, precision
        self.sessions: dict[tuple, ort.InferenceSession] = {}

    def check_known(self) -> None:
        """Does onnxruntime have the operator? The element types may be guesses: only a missing operator counts."""
        try:
            self._session(tuple(t or onnx.TensorProto.FLOAT for t in self.elem_types))
        except ModelError as error:
            if any(text in str(error) for text in _UNKNOWN):
                raise UnsupportedNodeError(
                    f"node {self.label}: neither the mirror nor onnxruntime knows "
                    f"{self.node.domain or 'ai.onnx'}:{self.node.op_type}; replace or remove the node"
                ) from error

    def _session(self, elem_types: tuple[int, ...]) -> ort.InferenceSession:
        if elem_types not in self.sessions:
            typed = {name: elem_type for name, elem_type in zip(self.names, elem_types, strict=True) if name}
            inputs = [onnx.helper.make_tensor_value_info(name, elem_type, None) for name, elem_type in typed.items()]
            outputs = [onnx.ValueInfoProto(name=name) for name in self.node.output if name]
            graph = onnx.helper.make_graph([self.node], "boundary", inputs, outputs)
            domains = {self.node.domain: 1, **self.opsets}
            imports = [onnx.helper.make_opsetid(domain, version) for domain, version in domains.items()]
            model = onnx.helper.make_model(graph, opset_imports=imports, ir_version=self.ir_version)
            options = ort.SessionOptions()
            options.log_severity_level = 4
            options.intra_op_num_threads = 1
            try:
                self.sessions[elem_types] = ort.InferenceSession(
                    model.SerializeToString(), options, providers=["CPUExecutionProvider"]
                )
            except Exception as error:
                raise ModelError(f"node {self.label}: onnxruntime: {str(error).splitlines()[0]}") from error
        return self.sessions[elem_types]

    def __call__(self, *values: Any) -> Any:
        given = [self._native(*pair) for pair in zip(values, self.elem_types, strict=True)]
        session = self._session(tuple(elem_type_of(value) for value in given))
        feeds = {name: to_numpy(value) for name, value in zip(self.names, given, strict=True) if name}
        results = iter(session.run(None, feeds))
        outputs = [self.precision.value(to_torch(next(results))) if name else None for name in self.node.output]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def _native(self, value: Any, elem_type: int) -> Any:
        """A float as the model has it, where the mirror is in another precision."""
        return value.to(TORCH_DTYPE.get(elem_type) or self.precision.native(value.dtype)) if is_float(value) else value
