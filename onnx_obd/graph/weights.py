"""Where the float weights of an ONNX model are, how to read them and how to put them back.

A *weight* is a float tensor stored in the model: an initializer, a sparse initializer, or the value of a
``Constant`` node with more than one element, in the main graph, in the body of an If / Loop / Scan, or in a
model-local function. Each has one name and one path; reading and writing go through the path, so write-back
is to exactly where the tensor came from.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from onnx_obd.errors import ModelError

Path = tuple[str | int, ...]
"""Steps from the ModelProto down: ("function", 0), ("node", 3, "then_branch"), ("initializer", 7), ..."""

FLOAT_TYPES = frozenset({TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16})

MAX_DENSE_BYTES = 8 << 30
"""A sparse tensor that would expand to more than this is refused rather than allocated."""


@dataclass(frozen=True)
class Weight:
    """One float tensor of the model.

    ``name`` is the ONNX name (of the initializer, or of the Constant node's output), prefixed with where it
    stands if that alone is not unique. ``elem_type`` is a ``TensorProto.DataType``.
    """

    name: str
    path: Path
    shape: tuple[int, ...]
    elem_type: int

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def read(self, proto: onnx.ModelProto) -> np.ndarray:
        """The values, dense, in ONNX layout (bfloat16 as ml_dtypes.bfloat16)."""
        return read_tensor(holder(proto, self.path), self.name)


def scopes(proto: onnx.ModelProto) -> Iterator[tuple[Path, onnx.GraphProto | onnx.FunctionProto]]:
    """Every graph of the model with its path: the main graph, subgraphs depth first, then function bodies."""
    yield from _walk((), proto.graph)
    for index, function in enumerate(proto.functions):
        yield from _walk(("function", index), function)


def _walk(path: Path, scope: onnx.GraphProto | onnx.FunctionProto) -> Iterator[tuple[Path, onnx.GraphProto]]:
    yield path, scope
    for index, node in enumerate(scope.node):
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _walk((*path, "node", index, attribute.name), attribute.g)


def find_weights(proto: onnx.ModelProto) -> dict[str, Weight]:
    """All weights of the model by name, in graph order."""
    return {name: weight for name, weight in find_stored(proto).items() if weight.elem_type in FLOAT_TYPES}


def find_stored(proto: onnx.ModelProto) -> dict[str, Weight]:
    """The weights, and the tensors of other element types that stand where weights stand, by name, in graph order.

    An integer tensor among them may be a quantised weight; that depends on who reads it.
    """
    found: dict[str, Weight] = {}
    for scope_path, scope in scopes(proto):
        for path, name, shape, elem_type in _tensors(scope_path, scope):
            unique = name if name not in found else f"{_describe(proto, scope_path)}/{name}"
            while unique in found:
                unique += "'"
            found[unique] = Weight(unique, path, shape, elem_type)
    return found


def _tensors(scope_path: Path, scope) -> Iterator[tuple[Path, str, tuple[int, ...], int]]:
    if isinstance(scope, onnx.GraphProto):
        for index, tensor in enumerate(scope.initializer):
            yield (*scope_path, "initializer", index), tensor.name, tuple(tensor.dims), tensor.data_type
        for index, sparse in enumerate(scope.sparse_initializer):
            path = (*scope_path, "sparse_initializer", index)
            yield path, sparse.values.name, tuple(sparse.dims), sparse.values.data_type
    for index, node in enumerate(scope.node):
        if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
            continue
        for attribute in node.attribute:
            found = _constant_shape(attribute)
            if found and math.prod(found[0]) > 1:
                yield (*scope_path, "node", index, attribute.name), node.output[0], *found


def _constant_shape(attribute: onnx.AttributeProto) -> tuple[tuple[int, ...], int] | None:
    if attribute.type == onnx.AttributeProto.TENSOR:
        return tuple(attribute.t.dims), attribute.t.data_type
    if attribute.type == onnx.AttributeProto.SPARSE_TENSOR:
        return tuple(attribute.sparse_tensor.dims), attribute.sparse_tensor.values.data_type
    if attribute.type == onnx.AttributeProto.FLOATS:
        return (len(attribute.floats),), TensorProto.FLOAT
    return None


def _describe(proto: onnx.ModelProto, scope_path: Path) -> str:
    parts: list[str] = []
    scope = proto.graph
    steps = list(scope_path)
    while steps:
        if steps[0] == "function":
            scope = proto.functions[steps[1]]
            parts.append(scope.name)
            steps = steps[2:]
        else:
            node = scope.node[steps[1]]
            parts += [node.name or f"{node.op_type}_{steps[1]}", steps[2]]
            scope = _attribute(node, steps[2]).g
            steps = steps[3:]
    return "/".join(parts)


def _attribute(node: onnx.NodeProto, name: str) -> onnx.AttributeProto:
    return next(a for a in node.attribute if a.name == name)


def holder(proto: onnx.ModelProto, path: Path):
    """The message at ``path``: a TensorProto, a SparseTensorProto, or an AttributeProto with ``floats``."""
    scope = proto.graph
    steps = list(path)
    while True:
        match steps:
            case ["function", index, *rest]:
                scope, steps = proto.functions[index], rest
            case ["node", index, name, *rest]:
                attribute = _attribute(scope.node[index], name)
                if attribute.type != onnx.AttributeProto.GRAPH:
                    return _constant_value(attribute)
                scope, steps = attribute.g, rest
            case [field, index]:
                return getattr(scope, field)[index]
            case _:
                raise ValueError(f"not a path to a tensor: {path}")


def _constant_value(attribute: onnx.AttributeProto):
    if attribute.type == onnx.AttributeProto.TENSOR:
        return attribute.t
    if attribute.type == onnx.AttributeProto.SPARSE_TENSOR:
        return attribute.sparse_tensor
    return attribute


def read_tensor(tensor: TensorProto | onnx.SparseTensorProto | onnx.AttributeProto, name: str = "") -> np.ndarray:
    """The values of a stored tensor, dense.

    Raises:
        ModelError: the data do not match the declared shape, or a sparse tensor is too large to expand.
    """
    try:
        if isinstance(tensor, onnx.AttributeProto):
            return np.asarray(tensor.floats, dtype=np.float32)
        if isinstance(tensor, onnx.SparseTensorProto):
            return _densify(tensor)
        return numpy_helper.to_array(tensor)
    except (ValueError, TypeError, IndexError) as error:
        raise ModelError(f"tensor '{name}': {str(error).splitlines()[0]}; the file is damaged") from error


def _densify(sparse: onnx.SparseTensorProto) -> np.ndarray:
    values = numpy_helper.to_array(sparse.values)
    if math.prod(sparse.dims) * values.itemsize > MAX_DENSE_BYTES:
        raise ValueError(f"sparse tensor of shape {list(sparse.dims)} is too large to expand")
    indices = numpy_helper.to_array(sparse.indices)
    dense = np.zeros(tuple(sparse.dims), values.dtype)
    if indices.ndim == 2:
        indices = np.ravel_multi_index(tuple(indices.T), dense.shape) if indices.size else indices.reshape(-1)
    if indices.size and (indices.min() < 0 or indices.max() >= dense.size):
        raise ValueError("sparse indices outside the tensor")
    dense.reshape(-1)[indices] = values
    return dense


def write_weights(proto: onnx.ModelProto, arrays: Mapping[str, np.ndarray]) -> None:
    """Put new values where the weights of those names came from, in place; equal values touch nothing.

    A TensorProto keeps its name and the field (``raw_data``, ``float_data``, ...) that held it. A sparse
    tensor is rewritten with its own index form.

    Quantised weights are written as the integers they are stored as.

    Raises:
        ModelError: a name the model does not have, or an array of another shape.
    """
    weights = find_stored(proto)
    for name, array in arrays.items():
        if name not in weights:
            raise ModelError(f"the model has no weight '{name}'")
        weight = weights[name]
        if tuple(array.shape) != weight.shape:
            raise ModelError(f"weight '{name}' has shape {list(weight.shape)}, not {list(array.shape)}")
        target = holder(proto, weight.path)
        old = read_tensor(target, name)
        array = np.asarray(array).astype(old.dtype, copy=False)
        if array.tobytes() != old.tobytes():
            _store(target, array)


def _store(target, array: np.ndarray) -> None:
    if isinstance(target, onnx.AttributeProto):
        target.ClearField("floats")
        target.floats.extend(array.tolist())
        return
    if isinstance(target, onnx.SparseTensorProto):
        _store_sparse(target, array)
        return
    new = numpy_helper.from_array(array)
    if not target.HasField("raw_data"):
        new = onnx.helper.make_tensor("", target.data_type, array.shape, array.reshape(-1))
    for field in ("raw_data", "float_data", "double_data", "int32_data", "int64_data", "uint64_data"):
        target.ClearField(field)
        if field == "raw_data" and new.HasField(field):
            target.raw_data = new.raw_data
        elif field != "raw_data":
            getattr(target, field).extend(getattr(new, field))


def _store_sparse(target: onnx.SparseTensorProto, array: np.ndarray) -> None:
    flat = np.flatnonzero(array.reshape(-1).view(f"u{array.itemsize}"))  # bit patterns: -0.0 is kept
    coordinates = flat if len(target.indices.dims) == 1 else np.stack(np.unravel_index(flat, array.shape), 1)
    name = target.values.name
    target.values.CopyFrom(numpy_helper.from_array(array.reshape(-1)[flat], name))
    target.indices.CopyFrom(numpy_helper.from_array(coordinates.astype(np.int64)))
