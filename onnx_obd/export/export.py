"""The pruned weights back into the model they came from, as a file that is known to load."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx

from onnx_obd.errors import ExportError, ModelError, UsageError
from onnx_obd.export.metadata import get_metadata, set_metadata
from onnx_obd.export.sparse import (
    RECORD,
    Encoding,
    SparseTensor,
    apply_encodings,
    restore_dense,
    smaller_encodings,
    sparse_weights,
)
from onnx_obd.export.write import PROTOBUF_LIMIT, write_model
from onnx_obd.graph.external_data import data_path
from onnx_obd.graph.load import Model, checker_objection, load_model
from onnx_obd.graph.session import open_session
from onnx_obd.graph.tensors import stored_tensors
from onnx_obd.graph.weights import write_weights

Format = Literal["auto", "dense", "sparse"]

AUTO_SAVING = 0.1
"""``auto`` writes sparse tensors if that saves at least this fraction of all tensors' bytes: some tools drop them."""


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        path: the model.
        files: the model and its external data file, if it has one.
        bytes_before: of the model that came in, with its external data.
        bytes_after: of ``files`` together.
        sparse_tensors: the tensors written sparse, in graph order.
    """

    path: Path
    files: tuple[Path, ...]
    bytes_before: int
    bytes_after: int
    sparse_tensors: tuple[SparseTensor, ...]


def export_model(
    original: Model,
    weights: Mapping[str, np.ndarray],
    destination: str | Path,
    *,
    format: Format = "auto",
    provenance: Mapping[str, str] | None = None,
    overwrite_input: bool = False,
) -> ExportReport:
    """Writes ``original`` with new values for ``weights``; all else stays as it is, byte for byte.

    Data that were external stay so, in one new file beside the model. The file is reloaded, checked with
    ``onnx.checker`` and opened in onnxruntime before it gets its name.

    Args:
        original: the model that came in; it is not changed.
        weights: values by the names of :func:`~onnx_obd.graph.weights.find_weights`, in the model's shapes.
        destination: the file to write.
        format: ``dense``; ``sparse``: each of ``weights`` that is smaller so as a sparse tensor; ``auto``: the same if
            it saves :data:`AUTO_SAVING` of the tensors' bytes at least, dense otherwise.
        provenance: entries for the model's metadata, written under ``onnx_obd.`` + key.
        overwrite_input: allow ``destination`` to be the file that ``original`` came from.

    Raises:
        UsageError: ``destination`` is the input (``overwrite_input`` not given), its external data, or no file name.
        ModelError: a weight the model does not have, or of another shape.
        ExportError: it cannot be written, or what was written is not valid; nothing is left behind.
    """
    destination = Path(destination)
    check_destination(original.path, destination, overwrite_input=overwrite_input, external=original.external.values())
    proto, encodings = _encoded(original, weights, format, provenance)
    return _write(original, proto, destination, tuple(encoding.summary for encoding in encodings))


def exported_size(
    original: Model,
    weights: Mapping[str, np.ndarray],
    format: Format = "auto",
    provenance: Mapping[str, str] | None = None,
) -> int:
    """Bytes of the file that :func:`export_model` would write, external data included; nothing is written."""
    return _encoded(original, weights, format, provenance)[0].ByteSize()


def densify_model(
    source: str | Path | Model, destination: str | Path, *, overwrite_input: bool = False
) -> ExportReport:
    """Writes ``source`` with its sparse tensors dense.

    For a file that :func:`export_model` wrote, the result is the dense export, byte for byte. In any other model every
    sparse initializer and ``sparse_value`` becomes dense.

    Raises:
        ModelError: ``source`` cannot be read.
        UsageError, ExportError: as :func:`export_model`.
    """
    original = source if isinstance(source, Model) else load_model(source)
    destination = Path(destination)
    check_destination(original.path, destination, overwrite_input=overwrite_input, external=original.external.values())
    proto = onnx.ModelProto()
    proto.CopyFrom(original.proto)
    restore_dense(proto)
    return _write(original, proto, destination, ())


def check_destination(
    source: Path | None, destination: Path, *, overwrite_input: bool = False, external: Iterable[str] = ()
) -> None:
    """Whether the result of pruning ``source`` may go to ``destination``: asked before hours of work, not after.

    Args:
        source: the model that comes in; None for one made in memory.
        destination: the file to write.
        overwrite_input: allow it to be ``source``.
        external: locations of the external data of ``source``.

    Raises:
        UsageError: ``destination`` is the input, by whatever link, or its external data, or not a regular file.
        ExportError: its folder is missing or not writable.
    """
    if destination.name in ("", "..") or destination.is_dir():
        raise UsageError(f"{destination}: is a folder; name the file to write")
    if not destination.parent.is_dir():
        raise ExportError(f"{destination}: the folder '{destination.parent}' does not exist")
    if not os.access(destination.parent, os.W_OK | os.X_OK):
        raise ExportError(f"{destination}: the folder '{destination.parent}' is not writable")
    if not destination.exists():
        return
    if not destination.is_file():
        raise UsageError(f"{destination}: exists and is not a regular file")
    if source is None or not source.exists():
        return
    if destination.samefile(source) and not overwrite_input:
        raise UsageError(f"{destination}: is the input; choose another name for the output")
    for location in set(external):
        if destination.samefile(data_path(source, location)):
            raise UsageError(f"{destination}: holds the input's external data; choose another name for the output")


def _encoded(
    original: Model, weights: Mapping[str, np.ndarray], format: Format, provenance: Mapping[str, str] | None
) -> tuple[onnx.ModelProto, list[Encoding]]:
    """The model with the new values, sparse where the format says so, and what was made sparse."""
    proto = onnx.ModelProto()
    proto.CopyFrom(original.proto)
    names = set(weights)
    if get_metadata(proto, RECORD) is not None:  # an earlier export of ours: decide anew
        names |= sparse_weights(proto)
        restore_dense(proto)
    write_weights(proto, weights)
    for key, value in (provenance or {}).items():
        set_metadata(proto, key, value)
    encodings = _choose(proto, names, format)
    apply_encodings(proto, encodings)
    return proto, encodings


def _choose(proto: onnx.ModelProto, names: set[str], format: Format) -> list[Encoding]:
    if format not in ("auto", "dense", "sparse"):
        raise UsageError(f"unknown format '{format}': choose auto, dense or sparse")
    if format == "dense":
        return []
    encodings = smaller_encodings(proto, names)
    if format == "sparse":
        return encodings
    dense_bytes = sum(tensor.ByteSize() for _, tensor in stored_tensors(proto))
    saving = sum(encoding.saving for encoding in encodings)
    sparse_bytes = sum(encoding.summary.sparse_bytes for encoding in encodings)
    return encodings if saving >= AUTO_SAVING * dense_bytes and sparse_bytes < PROTOBUF_LIMIT else []


def _write(
    original: Model, proto: onnx.ModelProto, destination: Path, sparse: tuple[SparseTensor, ...]
) -> ExportReport:
    def verify(path: Path) -> None:
        try:
            load_model(path)
            objection = checker_objection(path)
            if objection is not None and checker_objection(original.proto) is None:
                raise ModelError(objection)
            open_session(path)
        except ModelError as error:
            reason = str(error).removeprefix(f"{path}: ").replace(str(path), str(destination))
            raise ExportError(
                f"{destination}: the model just written is not valid, and was removed: {reason}"
            ) from error

    files = write_model(proto, destination, original.external.keys(), verify)
    size = sum(file.stat().st_size for file in files)
    return ExportReport(destination, files, original.size, size, sparse)
