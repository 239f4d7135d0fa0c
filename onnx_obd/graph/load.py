"""Reading a model file that nobody vouches for."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, EncodeError, Message

from onnx_obd.errors import ModelError
from onnx_obd.graph.external_data import data_path, load_external_data
from onnx_obd.graph.session import open_session
from onnx_obd.graph.tensors import bad_declaration, raw_size, size_mismatch, sparse_tensors, stored_tensors
from onnx_obd.graph.weights import MAX_DENSE_BYTES

_MAX_PROTOBUF_BYTES = 2**31 - 1


@dataclass(frozen=True)
class Model:
    """A valid model with all its data in memory.

    Attributes:
        proto: the model; what was external data is in ``raw_data``.
        path: the file it came from; None for a model made in memory.
        sha256: of the file's bytes, followed by those of its external data files in order of their locations.
        size: bytes on disk, external data included.
        external: location of each tensor that was external data, by its key in
            :func:`~onnx_obd.graph.tensors.stored_tensors`.
    """

    proto: onnx.ModelProto
    path: Path | None
    sha256: str
    size: int
    external: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_proto(cls, proto: onnx.ModelProto) -> Model:
        """A model made in memory, checked as a file would be; ``sha256`` and ``size`` are those of its bytes.

        Raises:
            ModelError: it is invalid, refers to external data, or is too large for one protobuf message.
        """
        try:
            data = proto.SerializeToString()
        except EncodeError as error:
            raise ModelError("the model exceeds 2 GiB: save it with external data and give its path") from error
        for key, tensor in stored_tensors(proto):
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                raise ModelError(f"tensor '{key}' is external data: give the path of the model's file")
        _check(proto, "the model", data)
        return cls(proto, None, hashlib.sha256(data).hexdigest(), len(data))


def load_model(path: str | Path) -> Model:
    """Reads an ONNX file, with its external data, and checks it.

    What onnxruntime loads is accepted even where ``onnx.checker`` objects (it does not know every domain).

    Raises:
        ModelError: the file is missing, not a regular file, empty, truncated or not ONNX; external data are missing,
            truncated or outside the model's folder; a tensor's data do not fit its declared shape; or neither
            ``onnx.checker`` nor onnxruntime accepts the model.
    """
    path = Path(path)
    data = _read_file(path)
    digest, size = hashlib.sha256(data), len(data)
    try:
        proto = onnx.ModelProto.FromString(data)
        if not proto.HasField("graph") or not (proto.graph.node or proto.graph.output):
            raise ModelError(f"{path}: not an ONNX model: it holds no graph")
        if not _is_text(proto):
            raise ModelError(f"{path}: not an ONNX model, or a damaged one: a name in it is not UTF-8 text")
        external = load_external_data(proto, path)
        _check(proto, str(path), None if external else data)
        del data
    except DecodeError as error:
        raise ModelError(f"{path}: not an ONNX model, or a truncated one") from error
    for location in sorted(set(external.values())):
        with data_path(path, location).open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
                size += len(block)
    return Model(proto, path, digest.hexdigest(), size, external)


def _is_text(message: Message) -> bool:
    """Whether every string in ``message`` is UTF-8: protobuf hands out what is not as ``bytes``, or raises."""
    try:
        for field_descriptor, value in message.ListFields():
            if field_descriptor.type == FieldDescriptor.TYPE_STRING:
                if not all(isinstance(text, str) for text in ([value] if isinstance(value, (str, bytes)) else value)):
                    return False
            elif field_descriptor.type == FieldDescriptor.TYPE_MESSAGE and not all(
                map(_is_text, [value] if isinstance(value, Message) else value)
            ):
                return False
    except UnicodeDecodeError:
        return False
    return True


def _read_file(path: Path) -> bytes:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise ModelError(f"{path}: is a folder; give the .onnx file")
        if not stat.S_ISREG(status.st_mode):
            raise ModelError(f"{path}: is not a regular file")
        if status.st_size == 0:
            raise ModelError(f"{path}: the file is empty")
        if status.st_size > _MAX_PROTOBUF_BYTES:
            raise ModelError(f"{path}: exceeds the 2 GiB of a protobuf message; large models need external data")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ModelError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        raise ModelError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _check(proto: onnx.ModelProto, source: str, data: bytes | None = None) -> None:
    """Raises ModelError, naming ``source``, unless sizes fit and the checker or onnxruntime accepts the model.

    ``data``: the model as bytes, which saves writing it anew for the checker.
    """
    for key, tensor in stored_tensors(proto):
        if reason := size_mismatch(tensor):
            raise ModelError(f"{source}: tensor '{key}': {reason}; the file is damaged")
    expanded = 0
    for sparse in sparse_tensors(proto):
        dense = onnx.TensorProto(dims=sparse.dims, data_type=sparse.values.data_type)
        reason = bad_declaration(dense)
        expanded += 0 if reason else raw_size(dense) or 0
        if expanded > MAX_DENSE_BYTES:
            reason = f"shape {list(sparse.dims)} is too large to expand"
        if reason:
            raise ModelError(f"{source}: sparse tensor '{sparse.values.name}': {reason}")
    objection = checker_objection(proto if data is None else data)
    if objection is None:
        return
    try:
        open_session(proto, optimize=False)
    except ModelError as error:
        raise ModelError(f"{source}: not a valid ONNX model: {objection}") from error


def checker_objection(model: onnx.ModelProto | bytes | Path) -> str | None:
    """What ``onnx.checker.check_model`` (plain, without shape inference) objects to, on one line; None if nothing.

    A ModelProto of more than 2 GiB cannot be handed to it and counts as accepted; give its path instead.
    """
    try:
        with _native_stdout_to_stderr():
            onnx.checker.check_model(str(model) if isinstance(model, Path) else model)
    except EncodeError:
        return None
    except Exception as error:  # ValidationError, and what its C++ side raises on damaged input
        return " ".join(str(error).split())[:300] or type(error).__name__
    return None


@contextlib.contextmanager
def _native_stdout_to_stderr() -> Iterator[None]:
    """The checker's C++ side prints warnings on standard output, which may be carrying JSON."""
    if sys.stdout is not None:
        sys.stdout.flush()
    try:
        stdout = os.dup(1)
        os.dup2(2, 1)
    except OSError:  # one of them is closed
        yield
        return
    try:
        yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)


def graph_inputs(proto: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs a caller must feed: ``graph.input`` without initializers, which IR 3 and older list there too."""
    stored = {tensor.name for tensor in proto.graph.initializer}
    stored |= {sparse.values.name for sparse in proto.graph.sparse_initializer}
    return [value for value in proto.graph.input if value.name not in stored]
