"""Tensors as ``SparseTensorProto``, which onnxruntime expands when it loads them, and back to dense, bit for bit.

Element sparsity written this way makes the file smaller; it makes nothing faster. Indices are linear (1-D) INT64 in
the packed field ``int64_data``, where protobuf stores a varint of 1 to 5 bytes instead of 8.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import (
    AttributeProto,
    FunctionProto,
    GraphProto,
    NodeProto,
    SparseTensorProto,
    TensorProto,
    numpy_helper,
)

from onnx_obd.errors import ModelError
from onnx_obd.export.metadata import PREFIX, get_metadata, remove_metadata, set_metadata
from onnx_obd.graph.weights import Path, find_weights, holder, read_tensor, scopes

RECORD = "sparse"
"""Metadata key of the tensors that were encoded: ``[[path of the scope, {name: index among the initializers}], ...]``;
the index is null for a Constant node. It lets :func:`restore_dense` put every tensor back where it stood."""

_SPARSE_CONSTANT_OPSET = 11
_OVERHEAD = 64  # bytes that the record and the longer attribute name cost at most, besides the name


@dataclass(frozen=True)
class SparseTensor:
    """One tensor that was written sparse: its serialized bytes either way, and its share of stored elements."""

    name: str
    dense_bytes: int
    sparse_bytes: int
    density: float


@dataclass(frozen=True)
class Encoding:
    """A sparse form of one dense tensor, and the place of that tensor: ``index`` in ``field`` of the scope."""

    summary: SparseTensor
    scope_path: Path
    field: str  # "initializer" or "node" (a Constant)
    index: int
    sparse: SparseTensorProto

    @property
    def saving(self) -> int:
        return self.summary.dense_bytes - self.summary.sparse_bytes


def encode(tensor: TensorProto) -> SparseTensorProto:
    """The sparse form of ``tensor``; stored is every element whose bits are not all zero, so -0.0 comes back.

    Name, doc string, metadata and the field that held the data are those of ``tensor``.
    """
    flat = numpy_helper.to_array(tensor).reshape(-1)
    stored = np.flatnonzero(flat.view(f"u{flat.itemsize}"))
    sparse = SparseTensorProto(dims=tensor.dims)
    sparse.values.CopyFrom(_with_data(tensor, flat[stored]))
    sparse.indices.data_type = TensorProto.INT64
    sparse.indices.dims.append(len(stored))
    sparse.indices.int64_data.extend(stored.tolist())
    return sparse


def decode(sparse: SparseTensorProto) -> TensorProto:
    """The dense form of ``sparse``: the inverse of :func:`encode`."""
    return _with_data(sparse.values, read_tensor(sparse, sparse.values.name))


def _with_data(like: TensorProto, array: np.ndarray) -> TensorProto:
    """A tensor with the values of ``array`` and all else, the choice of data field included, as in ``like``."""
    tensor = TensorProto()
    tensor.CopyFrom(like)
    for field in ("dims", "raw_data", "float_data", "double_data", "int32_data"):
        tensor.ClearField(field)
    tensor.dims.extend(array.shape)
    if like.HasField("raw_data"):
        tensor.raw_data = numpy_helper.from_array(array).raw_data
    elif like.data_type == TensorProto.FLOAT:
        tensor.float_data.extend(array.reshape(-1).tolist())
    elif like.data_type == TensorProto.DOUBLE:
        tensor.double_data.extend(array.reshape(-1).tolist())
    else:  # 16-bit floats lie in int32_data by their bits
        tensor.int32_data.extend(array.reshape(-1).view(np.uint16).tolist())
    return tensor


def smaller_encodings(proto: onnx.ModelProto, names: Iterable[str]) -> list[Encoding]:
    """A sparse form for each of the named weights that is dense, may be sparse, and would be smaller.

    Kept dense are scalars (``onnx.checker`` wants rank 1 or more), Constant nodes before opset 11, initializers that
    are a graph output (onnxruntime fails on those that are a graph input as well), and everything inside functions
    (onnxruntime 1.31 crashes on many a model with a sparse Constant there).
    """
    names = set(names)
    scope_at = dict(scopes(proto))
    opset = max((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), default=0)
    encodings = []
    for name, weight in find_weights(proto).items():
        tensor = holder(proto, weight.path)
        if name not in names or not isinstance(tensor, TensorProto) or not weight.shape or not weight.size:
            continue
        match weight.path:
            case ("function", *_):
                continue
            case (*scope_path, "initializer" as field, index):
                allowed = tensor.name not in {output.name for output in scope_at[tuple(scope_path)].output}
            case (*scope_path, "node" as field, index, _):
                allowed = opset >= _SPARSE_CONSTANT_OPSET
        if not allowed:
            continue
        sparse = encode(tensor)
        density = sparse.values.dims[0] / weight.size
        summary = SparseTensor(name, tensor.ByteSize(), sparse.ByteSize(), density)
        if summary.sparse_bytes + _OVERHEAD + len(name) < summary.dense_bytes:
            encodings.append(Encoding(summary, tuple(scope_path), field, index, sparse))
    return encodings


def sparse_weights(proto: onnx.ModelProto) -> set[str]:
    """Names of the weights that are stored sparse."""
    weights = find_weights(proto).items()
    return {name for name, weight in weights if isinstance(holder(proto, weight.path), SparseTensorProto)}


def apply_encodings(proto: onnx.ModelProto, encodings: Iterable[Encoding]) -> None:
    """Puts the sparse forms in the place of the dense ones, in place, and records where those stood."""
    scope_at = dict(scopes(proto))
    record: dict[Path, dict[str, int | None]] = {}
    for encoding in encodings:
        scope = scope_at[encoding.scope_path]
        places = record.setdefault(encoding.scope_path, {})
        if encoding.field == "initializer":
            places[encoding.sparse.values.name] = encoding.index
            scope.sparse_initializer.append(encoding.sparse)
        else:
            node = scope.node[encoding.index]
            places[node.output[0]] = None
            _replace_value(node, "value", AttributeProto(name="sparse_value", sparse_tensor=encoding.sparse))
    for scope_path, places in record.items():
        for index in sorted((index for index in places.values() if index is not None), reverse=True):
            del scope_at[scope_path].initializer[index]
    if record:
        set_metadata(proto, RECORD, json.dumps([*map(list, record.items())], separators=(",", ":")))


def restore_dense(proto: onnx.ModelProto) -> None:
    """Undoes :func:`apply_encodings`, in place; without its record, makes every sparse tensor dense.

    With the record the model becomes what it was, byte for byte: tensors that were sparse before stay so. Without it
    initializers are appended in the order of the sparse ones.

    Raises:
        ModelError: the record is damaged, or a tensor is.
    """
    scope_at = dict(scopes(proto))
    for scope_path, places in _read_record(proto, scope_at).items():
        scope = scope_at[scope_path]
        if isinstance(scope, GraphProto):
            _restore_initializers(scope, {name: index for name, index in places.items() if index is not None})
        for node in scope.node:
            if node.op_type == "Constant" and node.output[0] in places:
                _restore_constant(node)
    remove_metadata(proto, RECORD)


def _read_record(
    proto: onnx.ModelProto, scope_at: dict[Path, GraphProto | FunctionProto]
) -> dict[Path, dict[str, int | None]]:
    text = get_metadata(proto, RECORD)
    if text is None:
        return {path: _all_places(scope) for path, scope in scope_at.items()}
    try:
        record = {tuple(path): dict(places) for path, places in json.loads(text)}
    except (ValueError, TypeError, RecursionError) as error:
        raise ModelError(f"the metadata '{PREFIX}{RECORD}' are damaged; remove them to proceed without") from error
    known = all(path in scope_at for path in record)
    if not known or not all(i is None or type(i) is int for places in record.values() for i in places.values()):
        raise ModelError(f"the metadata '{PREFIX}{RECORD}' do not fit this graph; remove them to proceed without")
    return record


def _all_places(scope: GraphProto | FunctionProto) -> dict[str, int | None]:
    places: dict[str, int | None] = {node.output[0]: None for node in scope.node if node.op_type == "Constant"}
    if isinstance(scope, GraphProto):
        end = len(scope.initializer)
        places |= {sparse.values.name: end + i for i, sparse in enumerate(scope.sparse_initializer)}
    return places


def _restore_initializers(graph: GraphProto, places: dict[str, int]) -> None:
    found = {sparse.values.name: decode(sparse) for sparse in graph.sparse_initializer if sparse.values.name in places}
    for index in reversed(range(len(graph.sparse_initializer))):
        if graph.sparse_initializer[index].values.name in found:
            del graph.sparse_initializer[index]
    for name in sorted(found, key=places.__getitem__):  # ascending, so that each index counts those before it
        graph.initializer.insert(places[name], found[name])


def _restore_constant(node: NodeProto) -> None:
    for attribute in node.attribute:
        if attribute.type == AttributeProto.SPARSE_TENSOR:
            _replace_value(node, attribute.name, AttributeProto(name="value", t=decode(attribute.sparse_tensor)))


def _replace_value(node: NodeProto, name: str, new: AttributeProto) -> None:
    """Replaces the attribute ``name`` of a Constant by ``new``, in the same position, its doc string kept."""
    old = next(attribute for attribute in node.attribute if attribute.name == name)
    new.type = AttributeProto.TENSOR if new.HasField("t") else AttributeProto.SPARSE_TENSOR
    for field in ("doc_string", "ref_attr_name"):
        if old.HasField(field):
            setattr(new, field, getattr(old, field))
    old.CopyFrom(new)
