"""A node the registry lacks: onnxruntime runs it, no gradient passes, and the report says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx
import onnxruntime as ort

from onnx_obd.errors import ModelError, UnsupportedNodeError
from onnx_obd.mirror.registry import Operator
from onnx_obd.mirror.values import elem_type_of, to_numpy, to_torch


def boundary(
    node: onnx.NodeProto, label: str, opsets: Mapping[str, int], ir_version: int, elem_types: Sequence[int]
) -> Operator:
    """An operator that runs ``node`` in onnxruntime as a constant of the mirror.

    Raises:
        UnsupportedNodeError: onnxruntime does not know the operator either.
    """
    run = _OrtNode(node, label, opsets, ir_version)
    run.check_known(elem_types)
    return Operator(
        node.domain, node.op_type, (opsets.get(node.domain, 1),), run, differentiable=False, data_dependent_shape=True
    )


class _OrtNode:
    def __init__(self, node: onnx.NodeProto, label: str, opsets: Mapping[str, int], ir_version: int):
        self.node, self.label, self.opsets, self.ir_version = node, label, opsets, max(ir_version, 3)
        self.sessions: dict[tuple, ort.InferenceSession] = {}

    def check_known(self, elem_types: Sequence[int]) -> None:
        """Does onnxruntime have the operator? The element types may be guesses: only a missing operator counts."""
        try:
            self._session(tuple(t or onnx.TensorProto.FLOAT for t in elem_types))
        except ModelError as error:
            reason = str(error)
            unknown = ("not a registered function/op", "No opset import", "No Op registered", "Unrecognized attribute")
            if any(text in reason for text in unknown):
                raise UnsupportedNodeError(
                    f"node {self.label}: neither the mirror nor onnxruntime knows "
                    f"{self.node.domain or 'ai.onnx'}:{self.node.op_type}; replace or remove the node"
                ) from error

    def _session(self, elem_types: tuple[int, ...]) -> ort.InferenceSession:
        key = elem_types
        if key not in self.sessions:
            inputs = [
                onnx.helper.make_tensor_value_info(name, elem_type, None)
                for name, elem_type in zip(self.node.input, elem_types, strict=False)
                if name
            ]
            unique = list({value.name: value for value in inputs}.values())
            outputs = [onnx.ValueInfoProto(name=name) for name in self.node.output if name]
            graph = onnx.helper.make_graph([self.node], "boundary", unique, outputs)
            domains = {**self.opsets}
            domains.setdefault(self.node.domain, 1)
            imports = [onnx.helper.make_opsetid(domain, version) for domain, version in domains.items()]
            model = onnx.helper.make_model(graph, opset_imports=imports, ir_version=self.ir_version)
            options = ort.SessionOptions()
            options.log_severity_level = 4
            options.intra_op_num_threads = 1
            try:
                self.sessions[key] = ort.InferenceSession(
                    model.SerializeToString(), options, providers=["CPUExecutionProvider"]
                )
            except Exception as error:
                raise ModelError(f"node {self.label}: onnxruntime: {str(error).splitlines()[0]}") from error
        return self.sessions[key]

    def __call__(self, *values: Any) -> Any:
        session = self._session(tuple(elem_type_of(value) for value in values))
        feeds = {name: to_numpy(value) for name, value in zip(self.node.input, values, strict=False) if name}
        device = next((value.device for value in values if hasattr(value, "device")), None)
        results = iter(session.run(None, feeds))
        outputs = [to_torch(next(results)) if name else None for name in self.node.output]
        outputs = [value.to(device) if device is not None and hasattr(value, "to") else value for value in outputs]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)
