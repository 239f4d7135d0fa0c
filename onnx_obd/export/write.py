"""Writing a model file, with external data beside it, so that it appears whole or not at all."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import secrets
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import BinaryIO

import onnx
from google.protobuf.message import EncodeError

from onnx_obd.errors import ExportError
from onnx_obd.graph.external_data import move_to_external_data
from onnx_obd.graph.tensors import stored_tensors

PROTOBUF_LIMIT = 2**31 - 1
"""Bytes of the largest protobuf message; a larger model needs external data."""

_EXTERNAL_THRESHOLD = 1024  # bytes; smaller tensors stay in the protobuf message, as ONNX's own writer does


def write_model(
    proto: onnx.ModelProto, destination: Path, external: Collection[str], verify: Callable[[Path], None]
) -> tuple[Path, ...]:
    """Writes ``proto`` to ``destination``; returns the files written, the model first.

    The model is written beside ``destination`` under a temporary name, synced, handed to ``verify`` and only then
    renamed. External data go to a new file (``model.onnx.data``, or ``model.onnx.1.data`` if that exists, ...): one
    that another model may refer to is never touched. Whatever fails, KeyboardInterrupt included, leaves neither.

    Args:
        proto: its tensors in ``external``, or all large ones if it exceeds 2 GiB, are moved out: it is changed.
        destination: the file; its folder exists.
        external: keys (:func:`~onnx_obd.graph.tensors.stored_tensors`) of the tensors to store as external data.
        verify: raises if the file given to it is not right.

    Raises:
        ExportError: the folder is not writable, the disk is full, or the model is too large.
    """
    try:
        with _removed_on_failure() as files:
            if _size(proto) > PROTOBUF_LIMIT:
                external = {*external, *_large_tensors(proto)}
            if external:
                with _create_data_file(destination, files) as file:
                    move_to_external_data(proto, external, file, files[0].name)
                    _sync(file)
            data = proto.SerializeToString()
            temporary = destination.with_name(f".{destination.name}.{secrets.token_hex(4)}.tmp")
            files.append(temporary)
            with temporary.open("xb") as file:
                file.write(data)
                _sync(file)
            verify(temporary)
            os.replace(temporary, destination)
            written = (destination, *files[:-1])
            files.clear()
    except OSError as error:
        raise ExportError(f"{destination}: cannot be written: {error.strerror or error}") from error
    except EncodeError as error:
        raise ExportError(f"{destination}: exceeds the 2 GiB of a protobuf message even with external data") from error
    _sync_folder(destination.parent)
    return written


@contextlib.contextmanager
def _removed_on_failure() -> Iterator[list[Path]]:
    files: list[Path] = []
    try:
        yield files
    except BaseException:
        for file in files:
            with contextlib.suppress(OSError):
                file.unlink()
        raise


def _size(proto: onnx.ModelProto) -> float:
    try:
        return proto.ByteSize()
    except EncodeError:  # more than 2 GiB
        return math.inf


def _large_tensors(proto: onnx.ModelProto) -> set[str]:
    return {key for key, tensor in stored_tensors(proto) if len(tensor.raw_data) >= _EXTERNAL_THRESHOLD}


def _create_data_file(destination: Path, files: list[Path]) -> BinaryIO:
    """Opens a data file that did not exist before, and adds it to ``files``."""
    for number in itertools.count():
        path = destination.with_name(f"{destination.name}{f'.{number}' if number else ''}.data")
        with contextlib.suppress(FileExistsError):
            file = path.open("xb")
            files.append(path)
            return file
    raise AssertionError("unreachable")


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Makes the rename itself durable, where the system allows a folder to be synced."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
