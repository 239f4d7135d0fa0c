"""Every stored tensor of a model, whatever holds it, and whether its data fit its declaration."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator

import onnx
from onnx import AttributeProto, GraphProto, NodeProto, SparseTensorProto, TensorProto

MAX_RANK = 64
"""NumPy's; it also bounds the product of dimensions that a damaged file can declare."""

_BITS = {TensorProto.FLOAT: 32, TensorProto.DOUBLE: 64, TensorProto.BOOL: 8} | {
    value: int(match[0]) for name, value in TensorProto.DataType.items() if (match := re.search(r"\d+", name))
}
"""Bits per element in ``raw_data``. ONNX's type names say it (BFLOAT16, INT4), so types added later are known too."""

_UNSETTLED_BITS = {6}  # writers differ on whether six-bit floats are packed: not checked


def stored_tensors(proto: onnx.ModelProto) -> Iterator[tuple[str, TensorProto]]:
    """Every TensorProto of the model with its key, in file order.

    Initializers, both halves of sparse tensors, and tensors in node attributes; of the main graph, subgraphs,
    functions and training graphs. The key is made of names, not positions, so it still fits after other nodes
    are removed: ``W`` for an initializer, ``W.indices`` for the indices of a sparse one, ``y.value`` for the
    tensor in attribute ``value`` (or ``sparse_value``) of the node whose first output is ``y``, ``y.then_branch/W``
    inside that node's subgraph, ``domain::f/...`` in a function.
    """
    yield from _graph_tensors("", proto.graph)
    for function in proto.functions:
        yield from _node_tensors(f"{function.domain}::{function.name}/", function.node)
    for index, info in enumerate(proto.training_info):
        yield from _graph_tensors(f"training{index}.initialization/", info.initialization)
        yield from _graph_tensors(f"training{index}.algorithm/", info.algorithm)


def _graph_tensors(prefix: str, graph: GraphProto) -> Iterator[tuple[str, TensorProto]]:
    for tensor in graph.initializer:
        yield prefix + tensor.name, tensor
    for sparse in graph.sparse_initializer:
        yield from _both_halves(prefix + sparse.values.name, sparse)
    yield from _node_tensors(prefix, graph.node)


def _node_tensors(prefix: str, nodes: Iterable[NodeProto]) -> Iterator[tuple[str, TensorProto]]:
    for index, node in enumerate(nodes):
        node_key = next(filter(None, node.output), f"{node.op_type}_{index}")
        for attribute in node.attribute:
            yield from _attribute_tensors(f"{prefix}{node_key}.{attribute.name.removeprefix('sparse_')}", attribute)


def _attribute_tensors(key: str, attribute: AttributeProto) -> Iterator[tuple[str, TensorProto]]:
    if attribute.HasField("t"):
        yield key, attribute.t
    if attribute.HasField("sparse_tensor"):
        yield from _both_halves(key, attribute.sparse_tensor)
    if attribute.HasField("g"):
        yield from _graph_tensors(f"{key}/", attribute.g)
    for index, tensor in enumerate(attribute.tensors):
        yield f"{key}[{index}]", tensor
    for index, sparse in enumerate(attribute.sparse_tensors):
        yield from _both_halves(f"{key}[{index}]", sparse)
    for index, graph in enumerate(attribute.graphs):
        yield from _graph_tensors(f"{key}[{index}]/", graph)


def _both_halves(key: str, sparse: SparseTensorProto) -> Iterator[tuple[str, TensorProto]]:
    yield key, sparse.values
    yield f"{key}.indices", sparse.indices


def sparse_tensors(proto: onnx.ModelProto) -> Iterator[SparseTensorProto]:
    """Every SparseTensorProto of the model: sparse initializers and attributes, in all graphs and functions."""
    pending: list[GraphProto | onnx.FunctionProto] = [proto.graph, *proto.functions]
    while pending:
        scope = pending.pop()
        if isinstance(scope, GraphProto):
            yield from scope.sparse_initializer
        for node in scope.node:
            for attribute in node.attribute:
                if attribute.HasField("sparse_tensor"):
                    yield attribute.sparse_tensor
                yield from attribute.sparse_tensors
                pending += [attribute.g] if attribute.HasField("g") else []
                pending += attribute.graphs


def is_external(tensor: TensorProto) -> bool:
    return tensor.data_location == TensorProto.EXTERNAL


def raw_size(tensor: TensorProto) -> int | None:
    """Bytes that the declared shape and type take in ``raw_data``; None where the type does not say.

    Python integers, so a product of large dimensions does not wrap round.
    """
    bits = _BITS.get(tensor.data_type)
    return None if bits is None or bits in _UNSETTLED_BITS else (math.prod(tensor.dims) * bits + 7) // 8


def bad_declaration(tensor: TensorProto) -> str | None:
    """What is impossible in the declared shape or type of ``tensor``, as a phrase; None if nothing is."""
    if len(tensor.dims) > MAX_RANK:
        return f"it declares {len(tensor.dims)} dimensions"
    if any(dim < 0 for dim in tensor.dims):
        return f"it declares the shape {list(tensor.dims)}"
    if tensor.data_type not in TensorProto.DataType.values() or tensor.data_type == TensorProto.UNDEFINED:
        return f"it declares the unknown element type {tensor.data_type}"
    return None


def size_mismatch(tensor: TensorProto) -> str | None:
    """How the data inside ``tensor`` contradict its declared shape and type, as a phrase; None if they agree."""
    if reason := bad_declaration(tensor):
        return reason
    bits = _BITS.get(tensor.data_type)
    declared = f"shape {list(tensor.dims)} of {TensorProto.DataType.Name(tensor.data_type).lower()}"
    if bits in _UNSETTLED_BITS:
        return None
    if tensor.HasField("raw_data") and bits is not None:
        needed, held = raw_size(tensor), len(tensor.raw_data)
        return None if held == needed else f"{declared} needs {needed} bytes, {held} are stored"
    needed = math.prod(tensor.dims)
    held = len(getattr(tensor, onnx.helper.tensor_dtype_to_field(tensor.data_type)))
    if tensor.data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128):
        needed *= 2  # real and imaginary parts are separate numbers
    packed = raw_size(tensor) if bits is not None and bits < 8 else needed
    return None if held in (needed, packed) else f"{declared} needs {needed} elements, {held} are stored"
