"""Small graphs, written node by node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class Graph:
    """Collects nodes and initializers; every call returns the name of the value it makes."""

    def __init__(self, opset: int = 17, seed: int = 0, dtype: type = np.float32, prefix: str = ""):
        self.opset, self.generator, self.dtype = opset, np.random.default_rng(seed), dtype
        self.prefix = prefix
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.functions: list[onnx.FunctionProto] = []
        self.sparse: list[onnx.SparseTensorProto] = []

    def _name(self, prefix: str) -> str:
        return f"{self.prefix}{prefix}{len(self.nodes)}_{len(self.initializers)}"

    def input(self, name: str, *shape: int | str, elem_type: int = 0) -> str:
        elem_type = elem_type or helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))
        self.inputs.append(helper.make_tensor_value_info(name, elem_type, shape))
        return name

    def weight(self, *shape: int, positive: bool = False) -> str:
        values = 0.5 * self.generator.standard_normal(shape)
        return self.tensor((np.abs(values) + 0.5 if positive else values).astype(self.dtype))

    def tensor(self, values: Any, name: str = "") -> str:
        tensor = numpy_helper.from_array(np.asarray(values), name or self._name("w"))
        self.initializers.append(tensor)
        return tensor.name

    def ints(self, *values: int) -> str:
        return self.tensor(np.array(values, np.int64))

    def scalar(self, value: float) -> str:
        return self.tensor(np.array(value, self.dtype))

    def op(self, op_type: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes: Any) -> Any:
        made = [f"{self._name('v')}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op_type, inputs, made, domain=domain, **attributes))
        return made[0] if outputs == 1 else made

    def constant(self, values: Any) -> str:
        return self.op("Constant", value=numpy_helper.from_array(np.asarray(values)))

    # ---- what many networks need

    def conv(
        self, x: str, channels_in: int, channels: int, kernel: int = 3, bias: bool = True, **attributes: Any
    ) -> str:
        group = attributes.get("group", 1)
        weights = [self.weight(channels, channels_in // group, kernel, kernel)]
        weights += [self.weight(channels)] if bias else []
        return self.op("Conv", x, *weights, pads=[kernel // 2] * 4, **attributes)

    def dense(self, x: str, size_in: int, size: int) -> str:
        return self.op("Add", self.op("MatMul", x, self.weight(size_in, size)), self.weight(size))

    def pooled(self, x: str, channels: int, classes: int = 4) -> str:
        """A head that ends the network: pooled over the image, then dense."""
        flat = self.op("Flatten", self.op("GlobalAveragePool", x))
        return self.op("Gemm", flat, self.weight(channels, classes), self.weight(classes))

    def model(self, *outputs: str, elem_type: int = 0, imports: Mapping[str, int] | None = None, infer: bool = True,
              ir_version: int = 10) -> onnx.ModelProto:  # fmt: skip
        elem_type = elem_type or helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))
        declared = [helper.make_tensor_value_info(name, elem_type, None) for name in outputs]
        graph = helper.make_graph(self.nodes, "graph", self.inputs, declared, self.initializers)
        graph.sparse_initializer.extend(self.sparse)
        opsets = [helper.make_opsetid(d, v) for d, v in {"": self.opset, **(imports or {})}.items()]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=ir_version, functions=self.functions)
        return onnx.shape_inference.infer_shapes(model) if infer else model


def feeds_of(model: onnx.ModelProto, batch: int = 1, seed: int = 1) -> dict[str, np.ndarray]:
    """Inputs of the declared shapes; open axes are of length ``batch``; integers are 0, 1 or 2."""
    generator, found = np.random.default_rng(seed), {}
    stored = {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.input:
        if value.name not in stored:
            shape = [d.dim_value or batch for d in value.type.tensor_type.shape.dim]
            dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            integers = np.dtype(dtype).kind in "iu"
            values = generator.integers(0, 3, shape) if integers else generator.standard_normal(shape)
            found[value.name] = values.astype(dtype)
    return found


def body(nodes: Sequence[onnx.NodeProto], outputs: Sequence[str], initializers: Sequence[onnx.TensorProto] = ()):
    """A graph attribute without inputs."""
    declared = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    return helper.make_graph(nodes, "body", [], declared, initializers)
