"""From a ModelProto to a program: names become slots, op types become operators of exact version.

A node is, in this order: a call of a model-local function, whose body is compiled in its place; a registered
operator; an operator that ONNX defines by a function body, compiled in its place; a boundary that onnxruntime runs.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import onnx
import torch
from onnx import AttributeProto

from onnx_obd.errors import ModelError
from onnx_obd.graph.load import graph_inputs
from onnx_obd.graph.order import reads, run_order
from onnx_obd.graph.weights import FLOAT_TYPES, Path, Weight, find_stored, holder, read_tensor
from onnx_obd.mirror.boundary import boundary, open_graphs
from onnx_obd.mirror.integer_weights import IntegerWeight, find_integer_weights
from onnx_obd.mirror.program import CallWithBodies, Program, Step
from onnx_obd.mirror.registry import Operator, lookup
from onnx_obd.mirror.rounding import mark_rounded
from onnx_obd.mirror.scope import Builder, Scope
from onnx_obd.mirror.values import TORCH_DTYPE, ElementType, Precision, from_tensor_proto, to_torch

_UNREACHABLE: Path = ("unreachable",)

MEMORY_HINTS = frozenset({"consumed_inputs"})
"""Attributes of opset 1 that say which buffers may be reused, and nothing about the result."""


@dataclass
class Compiled:
    """A compiled model: the root program and what stands in its template."""

    program: Program
    input_names: tuple[str, ...]
    parameters: dict[str, int]  # weight name -> slot
    constants: dict[int, Any]  # slot -> value
    names: dict[str, int]  # value name in the main graph -> slot
    weights: dict[str, Weight]
    boundaries: list[str] = field(default_factory=list)  # nodes run by onnxruntime
    stored: dict[int, Path] = field(default_factory=dict)  # slot of a parameter or constant -> where it is stored
    integers: dict[str, IntegerWeight] = field(default_factory=dict)  # the weights that are stored as integers


def compile_model(proto: onnx.ModelProto, precision: Precision, first: Collection[str] | None = None) -> Compiled:
    """Compile the main graph.

    Args:
        first: values of the main graph whose slots come first; None: all of them.

    Raises:
        ModelError: the graph is not in order (a value nobody makes, an attribute the operator does not have).
        UnsupportedNodeError: neither the registry nor onnxruntime can run a node.
    """
    return _Compiler(proto, precision, first).compile()


class _Compiler:
    def __init__(self, proto: onnx.ModelProto, precision: Precision, first: Collection[str] | None):
        self.proto, self.precision, self.first = proto, precision, first
        self.weights = find_stored(proto)
        self.weight_at = {weight.path: name for name, weight in self.weights.items()}
        self.functions = {(f.domain, f.name, getattr(f, "overload", "")): i for i, f in enumerate(proto.functions)}
        self.root = Builder()
        self.parameters: dict[str, int] = {}
        self.constants: dict[int, Any] = {}
        self.boundaries: list[str] = []
        self.stored: dict[int, Path] = {}
        self.constant_at: dict[Path, int] = {}
        self.integers: dict[str, IntegerWeight] = {}

    def compile(self) -> Compiled:
        graph = self.proto.graph
        scope = Scope(self.root, (), {o.domain: o.version for o in self.proto.opset_import})
        names = tuple(value.name for value in graph_inputs(self.proto))
        inputs = [self._declare(scope, name) for name in names]
        self._graph(scope, graph)
        outputs = [self._read(scope, value.name, "graph output") for value in graph.output]
        slot = self.root.with_those_behind()
        outputs = tuple(map(slot, outputs))
        self.parameters, scope.names = (
            {name: slot(number) for name, number in found.items()} for found in (self.parameters, scope.names)
        )
        self.constants, self.stored = (
            {slot(number): value for number, value in found.items()} for found in (self.constants, self.stored)
        )
        self._integer_weights(outputs)
        template = [None] * self.root.size
        program = Program(tuple(inputs), outputs, tuple(mark_rounded(self.root.steps)), template)
        weights = {name: self.weights[name] for name in self.parameters}
        return Compiled(
            program, names, self.parameters, self.constants, scope.names, weights, self.boundaries, self.stored,
            self.integers,
        )  # fmt: skip

    def _integer_weights(self, outputs: tuple[int, ...]) -> None:
        """Put parameters in the place of the constants that are weights stored as integers."""
        parameters = {
            slot: lambda name=name: to_torch(self.weights[name].read(self.proto))
            for name, slot in self.parameters.items()
        }
        stored = {
            slot: self.weights[self.weight_at[path]] for slot, path in self.stored.items() if slot in self.constants
        }
        steps = []
        for integers in find_integer_weights(self.root.steps, outputs, self.constants, parameters, stored):
            scale, zero_point = self.root.slot(), self.root.slot()
            self.constants |= {scale: integers.scale, zero_point: integers.zero_point}
            del self.constants[integers.slot]
            parameter = self.parameters[integers.weight.name] = self.root.slot()
            self.stored[parameter] = integers.weight.path
            steps.append(integers.step(parameter, scale, zero_point))
            self.integers[integers.weight.name] = integers
        self.root.steps[:0] = steps

    # ---- names

    def _declare(self, scope: Scope, name: str) -> int:
        last = scope.path == () and self.first is not None and name and name not in self.first
        slot = scope.builder.slot_behind() if last else scope.builder.slot()
        if name:
            scope.names[name] = slot
        return slot

    def _read(self, scope: Scope, name: str, where: str) -> int:
        if not name:
            return 0
        slot = scope.find(name)
        if slot is None:
            raise ModelError(f"{where}: reads '{name}', which no input, initializer or node before it provides")
        return slot

    # ---- graphs

    def _graph(self, scope: Scope, graph: onnx.GraphProto) -> None:
        for value in (*graph.input, *graph.value_info, *graph.output):
            if value.type.HasField("tensor_type"):
                scope.elem_types[value.name] = value.type.tensor_type.elem_type
        for kind in ("initializer", "sparse_initializer"):
            for index, tensor in enumerate(getattr(graph, kind)):
                name = tensor.name if kind == "initializer" else tensor.values.name
                scope.names[name] = self._stored(scope, (*scope.path, kind, index), tensor)
                scope.elem_types[name] = (tensor if kind == "initializer" else tensor.values).data_type
        self._nodes(scope, graph.node)

    def _stored(self, scope: Scope, path: Path, tensor: Any) -> int:
        """The slot of a stored tensor: a parameter if it is a weight of floats, otherwise a constant."""
        name = self.weight_at.get(path)
        if self._is_float_weight(path):
            return scope.builder.from_root(self._parameter_slot(name))
        if name is None or path not in self.constant_at:
            slot = self.constant_at[path] = self.root.slot_behind()
            self.constants[slot] = to_torch(read_tensor(tensor))
            if name is not None:
                self.stored[slot] = path
        return scope.builder.from_root(self.constant_at[path])

    def _parameter_slot(self, weight: str) -> int:
        if weight not in self.parameters:
            self.parameters[weight] = self.root.slot_behind()
            self.stored[self.parameters[weight]] = self.weights[weight].path
        return self.parameters[weight]

    def _nodes(self, scope: Scope, nodes: Any) -> None:
        for index in run_order(nodes):
            self._node(scope, nodes[index], index)

    def _node(self, scope: Scope, node: onnx.NodeProto, index: int) -> None:
        label = scope.label + (f"{node.op_type} '{node.name}'" if node.name else f"{node.op_type} #{index}")
        stored = self._stored_in(scope, node, index)
        if stored is not None:
            scope.names[node.output[0]] = self._stored(scope, stored, holder(self.proto, stored))
            scope.elem_types[node.output[0]] = self.weights[self.weight_at[stored]].elem_type
            return
        function = self.functions.get((node.domain, node.op_type, getattr(node, "overload", "")))
        if function is not None:
            self._inline(scope, node, label, self.proto.functions[function], ("function", function))
            return
        opset = scope.opsets.get(node.domain, scope.opsets.get("ai.onnx", 1) if not node.domain else 1)
        operator = lookup(node.domain, node.op_type, opset)
        if operator is not None:
            self._operator(scope, node, label, index, operator)
            return
        node = self._resolved(scope, node)
        body = _onnx_function(node, opset, scope)
        if body is not None:
            self._inline(scope, node, label, body, None)
            return
        self._boundary(scope, node, label, index)

    def _stored_in(self, scope: Scope, node: onnx.NodeProto, index: int) -> Path | None:
        """Where the tensor stored in a node's own attribute (a Constant) is."""
        if scope.path is None or node.input:
            return None
        paths = ((*scope.path, "node", index, attribute.name) for attribute in node.attribute)
        return next((path for path in paths if path in self.weight_at), None)

    # ---- nodes

    def _operator(self, scope: Scope, node: onnx.NodeProto, label: str, index: int, operator: Operator) -> None:
        inputs = tuple(self._read(scope, name, f"node {label}") for name in node.input)
        attributes, bodies = {}, {}
        for attribute in self._attributes(scope, node):
            if attribute.name in MEMORY_HINTS:
                continue
            if attribute.name not in operator.keywords:
                raise ModelError(f"node {label}: {operator.name}-{max(operator.since)} has no '{attribute.name}'")
            if attribute.type == AttributeProto.GRAPH:
                bodies[attribute.name] = self._body(scope, attribute, index, label)
            else:
                attributes[attribute.name] = self._attribute(operator, attribute)
                if attribute.type == AttributeProto.TENSOR and not node.input:
                    scope.elem_types[node.output[0]] = attribute.t.data_type
        for name, default in operator.default_dtypes.items():
            attributes.setdefault(name, self.precision.dtype(default))
        if wanted := operator.keyword_of("output_count"):
            attributes[wanted] = len(node.output)
        if wanted := operator.keyword_of("elem_types"):
            attributes[wanted] = tuple(scope.elem_type(name) for name in node.input)
        if wanted := operator.keyword_of("like"):
            attributes[wanted] = self.precision.value(torch.empty(0))
        if wanted := operator.keyword_of("seed"):
            attributes.setdefault(wanted, zlib.crc32(label.encode()))
        call: Callable = partial(operator.function, **attributes) if attributes else operator.function
        if bodies:
            captured = {name: (program, len(outer)) for name, (program, outer) in bodies.items()}
            call = CallWithBodies(call, len(inputs), captured)
            inputs += tuple(slot for _, outer in bodies.values() for slot in outer)
        outputs = tuple(self._declare(scope, name) for name in node.output)
        path = None if scope.path in (None, _UNREACHABLE) else (*scope.path, "node", index)
        step = Step(label, operator, call, inputs, outputs, attributes, operator.host, tuple(bodies), path=path)
        scope.builder.steps.append(step)

    def _attributes(self, scope: Scope, node: onnx.NodeProto) -> list[AttributeProto]:
        """The node's attributes, those that refer to an attribute of the function around it replaced by its value."""
        found = []
        for attribute in node.attribute:
            if not attribute.ref_attr_name:
                found.append(attribute)
            elif attribute.ref_attr_name in scope.attributes:
                value = AttributeProto()
                value.CopyFrom(scope.attributes[attribute.ref_attr_name])
                value.name = attribute.name
                found.append(value)
        return found

    def _resolved(self, scope: Scope, node: onnx.NodeProto) -> onnx.NodeProto:
        """The node with no attribute that refers to the function around it."""
        own = onnx.NodeProto()
        own.CopyFrom(node)
        del own.attribute[:]
        own.attribute.extend(self._attributes(scope, node))
        return own

    def _attribute(self, operator: Operator, attribute: AttributeProto) -> Any:
        value = onnx.helper.get_attribute_value(attribute)
        match attribute.type:
            case AttributeProto.INT | AttributeProto.STRING if value and (kind := operator.type_kind(attribute.name)):
                if attribute.type == AttributeProto.STRING:  # how Cast-1 spelled a type
                    value = dict(onnx.TensorProto.DataType.items()).get(value.decode(errors="replace"), 0)
                if value not in TORCH_DTYPE:
                    raise ModelError(f"{operator.name}: element type {value} is not a tensor type the mirror has")
                dtype = self.precision.dtype(TORCH_DTYPE[value])
                return dtype if kind == "dtype" else ElementType(value, dtype)
            case AttributeProto.STRING:
                return value.decode(errors="replace")
            case AttributeProto.STRINGS:
                return tuple(item.decode(errors="replace") for item in value)
            case AttributeProto.INTS | AttributeProto.FLOATS:
                return tuple(value)
            case AttributeProto.TENSOR:
                return self.precision.value(from_tensor_proto(value))
            case AttributeProto.SPARSE_TENSOR:
                return self.precision.value(to_torch(read_tensor(value)))
        return value

    def _body(self, scope: Scope, attribute: AttributeProto, index: int, label: str) -> tuple[Program, list[int]]:
        """Compile a graph attribute; the program and the slots around it that it captures."""
        builder = Builder(scope.builder)
        path = None if scope.path is None else (*scope.path, "node", index, attribute.name)
        inner = Scope(builder, path, scope.opsets, {}, {}, scope.attributes, scope, f"{label}/{attribute.name}/")
        inputs = [self._declare(inner, value.name) for value in attribute.g.input]
        if path is None:
            inner.path = _UNREACHABLE  # constants of ONNX's own function bodies are nobody's weights
        self._graph(inner, attribute.g)
        outputs = tuple(self._read(inner, value.name, f"{label} {attribute.name}") for value in attribute.g.output)
        inputs += builder.captures.values()
        no_steps = tuple(self._no_steps(value) for value in attribute.g.output)
        program = Program(tuple(inputs), outputs, tuple(builder.steps), [None] * builder.size, no_steps)
        return program.with_release(), list(builder.captures)

    def _no_steps(self, value: onnx.ValueInfoProto) -> torch.Tensor | None:
        """An output of a body stacked over no iterations: shape [0, ...], unknown dimensions 0."""
        tensor = value.type.tensor_type
        if tensor.elem_type not in TORCH_DTYPE:
            return None
        shape = (0, *(dim.dim_value for dim in tensor.shape.dim))
        return self.precision.value(torch.empty(shape, dtype=TORCH_DTYPE[tensor.elem_type]))

    def _inline(self, scope: Scope, node: onnx.NodeProto, label: str, body: onnx.FunctionProto, path: Any) -> None:
        """Compile a function body in the place of the node that calls it."""
        given = {attribute.name: attribute for attribute in self._attributes(scope, node)}
        defaults = {attribute.name: attribute for attribute in body.attribute_proto}
        opsets = {**scope.opsets, **{o.domain: o.version for o in body.opset_import}}
        inner = Scope(scope.builder, path, opsets, {}, {}, {**defaults, **given}, None, f"{label}/")
        for position, name in enumerate(body.input):
            actual = node.input[position] if position < len(node.input) else ""
            inner.names[name] = self._read(scope, actual, f"node {label}")
            inner.elem_types[name] = scope.elem_type(actual)
        self._nodes(inner, body.node)
        for actual, name in zip(node.output, body.output, strict=False):
            if actual:
                scope.names[actual] = self._read(inner, name, f"function {body.name}")

    def _boundary(self, scope: Scope, node: onnx.NodeProto, label: str, index: int) -> None:
        path = None if scope.path is None else (*scope.path, "node", index)
        weights = {} if path is None else open_graphs(node, path, self._is_float_weight)
        names = tuple(reads(node))
        stored = {name: self.weights[self.weight_at[path]] for name, path in weights.items()}
        types = [stored[name].elem_type if name in stored else scope.elem_type(name) for name in names]
        slots = tuple(
            scope.builder.from_root(self._parameter_slot(stored[name].name)) if name in stored
            else self._read(scope, name, f"node {label}")
            for name in names
        )  # fmt: skip
        operator = boundary(node, label, scope.opsets, self.proto.ir_version, names, types, self.precision)
        outputs = tuple(self._declare(scope, name) for name in node.output)
        scope.builder.steps.append(Step(label, operator, operator.function, slots, outputs))
        self.boundaries.append(label)

    def _is_float_weight(self, path: Path) -> bool:
        return path in self.weight_at and self.weights[self.weight_at[path]].elem_type in FLOAT_TYPES


def _onnx_function(node: onnx.NodeProto, opset: int, scope: Scope) -> onnx.FunctionProto | None:
    """The body by which ONNX itself defines an operator, if it does."""
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    except onnx.defs.SchemaError:
        return None
    if schema.has_function:
        body = schema.function_body
    elif schema.has_context_dependent_function:
        types = []
        for name in node.input:
            value = onnx.TypeProto()
            if name:
                value.tensor_type.elem_type = scope.elem_type(name) or onnx.TensorProto.FLOAT
            types.append(value.SerializeToString())
        data = schema.get_context_dependent_function_with_opset_version(opset, node.SerializeToString(), types)
        if not data:
            return None
        body = onnx.FunctionProto.FromString(data)
    else:
        return None
    known = {attribute.name for attribute in body.attribute_proto}
    defaults = [attribute.default_value for name, attribute in schema.attributes.items() if name not in known]
    body.attribute_proto.extend(value for value in defaults if value.type)
    return body
