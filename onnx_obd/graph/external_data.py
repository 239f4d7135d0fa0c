"""External data: tensors whose bytes lie in files beside the model (ONNX, ``docs/ExternalData.md``)."""

from __future__ import annotations

import os
import stat
from collections.abc import Container
from pathlib import Path
from typing import BinaryIO

import onnx
from onnx import TensorProto

from onnx_obd.errors import ModelError
from onnx_obd.graph.tensors import bad_declaration, is_external, raw_size, stored_tensors

ALIGNMENT = 4096
"""Tensors of at least so many bytes begin at a multiple of it, so that a runtime can map them into memory."""


def load_external_data(proto: onnx.ModelProto, model_path: Path) -> dict[str, str]:
    """Reads every external tensor of ``proto`` into its ``raw_data``, in place.

    Returns the location (as the model spells it) of each tensor that was external, by its key in
    :func:`~onnx_obd.graph.tensors.stored_tensors`.

    Raises:
        ModelError: a location outside the model's folder, a missing file, or one that is shorter than declared;
            nothing is allocated before the file is known to be long enough.
    """
    locations: dict[str, str] = {}
    for key, tensor in stored_tensors(proto):
        if not is_external(tensor):
            continue
        try:
            locations[key] = _read(tensor, model_path)
        except (ModelError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ModelError(f"{model_path}: external data of tensor '{key}': {reason}") from error
    return locations


def _read(tensor: TensorProto, model_path: Path) -> str:
    """Moves the bytes of one external tensor into ``raw_data``; returns the location they came from."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    if reason := bad_declaration(tensor):
        raise ModelError(reason)
    needed = raw_size(tensor)
    if needed is None:
        raise ModelError(f"{TensorProto.DataType.Name(tensor.data_type)} cannot be stored externally")
    offset = _count(entries, "offset", 0)
    length = _count(entries, "length", needed)
    if length != needed:
        raise ModelError(f"shape {list(tensor.dims)} needs {needed} bytes, {length} are declared in '{location}'")
    path = data_path(model_path, location)
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ModelError(f"'{location}' is not a regular file")
            if offset + needed > status.st_size:
                raise ModelError(f"'{location}' has {status.st_size} bytes, {offset + needed} are needed: truncated?")
            file.seek(offset)
            tensor.raw_data = file.read(needed)
    except FileNotFoundError as error:
        raise ModelError(f"the file '{location}' is missing: it belongs beside the model") from error
    tensor.ClearField("data_location")
    tensor.ClearField("external_data")
    return location


def _count(entries: dict[str, str], key: str, default: int) -> int:
    text = entries.get(key) or str(default)
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ModelError(f"{key} '{text[:40]}' is not a number of bytes")
    return int(text)


def data_path(model_path: Path, location: str) -> Path:
    """The file that ``location`` names, beside the model.

    A symbolic link is followed only to where the model itself is: the folder it stands in, or the folder it is a
    link into (download caches that store files by content link both the model and its data).

    Raises:
        ModelError: no path, an absolute one, or one that leaves the model's folder by ``..`` or by a link.
    """
    if not location or "\0" in location:
        raise ModelError("it names no file")
    if os.path.isabs(location) or "\\" in location or ".." in Path(location).parts:
        raise ModelError(f"'{location}' is not a path inside the model's folder")
    try:
        resolved = (model_path.parent / location).resolve()
        folders = (model_path.parent.resolve(), model_path.resolve().parent)
    except (OSError, RuntimeError) as error:  # a loop of links
        raise ModelError(f"'{location}' cannot be resolved") from error
    if not any(resolved.is_relative_to(folder) for folder in folders):
        raise ModelError(f"'{location}' leads out of the model's folder, to {resolved}")
    return resolved


def move_to_external_data(proto: onnx.ModelProto, keys: Container[str], file: BinaryIO, location: str) -> None:
    """Writes the ``raw_data`` of the tensors with those keys to ``file`` and refers to it as ``location``, in place.

    Keys are those of :func:`~onnx_obd.graph.tensors.stored_tensors`; tensors without ``raw_data`` stay as they are.
    """
    for key, tensor in stored_tensors(proto):
        if key not in keys or not tensor.HasField("raw_data"):
            continue
        if len(tensor.raw_data) >= ALIGNMENT:
            file.write(bytes(-file.tell() % ALIGNMENT))
        offset = file.tell()
        file.write(tensor.raw_data)
        length = len(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.ClearField("external_data")
        tensor.data_location = TensorProto.EXTERNAL
        for entry, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
            tensor.external_data.add(key=entry, value=value)
