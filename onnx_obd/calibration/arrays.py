"""Samples in .npz and .npy files.

The files are untrusted: nothing is unpickled, and no memory is set aside for an array before the size its header
declares has been held against the bytes that are really there.
"""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from onnx_obd.calibration.inputs import ModelInput, describe_inputs, stack_arrays
from onnx_obd.calibration.labels import LABEL_NAMES, as_labels
from onnx_obd.calibration.listing import ArrayGroup
from onnx_obd.errors import DataError

# A deflated entry may be far larger than its file (an array of zeros shrinks a thousandfold). Entries up to the first
# size are always read, larger ones only if they expand by no more than the second number.
_FREELY_EXPANDED_BYTES = 1 << 30
_MAX_EXPANSION = 100

_READ_ERRORS = (
    zipfile.BadZipFile,
    OSError,
    EOFError,
    ValueError,
    SyntaxError,
    tokenize.TokenError,  # numpy parses the header as Python literals
    RuntimeError,  # an encrypted entry
    NotImplementedError,  # a compression that zipfile lacks
    zlib.error,
)

# zipfile quotes damaged file names, which may be as long as the file.
_LONGEST_REASON = 160

# What numpy.savez calls the first array that is given without a name.
_UNNAMED = "arr_0"


@dataclass(frozen=True)
class StoredArray:
    """An array in a .npy file, or in an entry of an .npz file, of which only the header has been read."""

    path: Path
    entry: str | None
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def where(self) -> str:
        return str(self.path) if self.entry is None else f"{self.path}: '{self.entry.removesuffix('.npy')}'"

    def read(self) -> np.ndarray:
        """The array's values.

        Raises:
            DataError: the data is damaged.
        """
        with _reading(self.where):
            if self.entry is None:
                # Mapped rather than read, so that taking a few of many samples touches only those.
                return np.load(self.path, mmap_mode="r" if self.shape and 0 not in self.shape else None)
            with zipfile.ZipFile(self.path) as archive, archive.open(self.entry) as file:
                return np.lib.format.read_array(file, allow_pickle=False)


def npy_group(path: Path, inputs: Sequence[ModelInput]) -> ArrayGroup:
    """The samples of a .npy file, for a model with one input."""
    if len(inputs) != 1:
        raise DataError(
            f"{path}: a .npy file holds one array, but the model takes {describe_inputs(inputs)}; "
            "give an .npz file, or one .npy file named after each input"
        )
    return _group(str(path), path, {inputs[0].name: stored_npy(path)}, inputs)


def npy_per_input_group(folder: Path, paths: Sequence[Path], inputs: Sequence[ModelInput]) -> ArrayGroup:
    """The samples of a folder that has one .npy file named after each input of the model."""
    return _group(str(folder), folder, {path.stem: stored_npy(path) for path in paths}, inputs)


def npz_group(path: Path, inputs: Sequence[ModelInput], *, with_labels: bool = True) -> ArrayGroup:
    """The samples of an .npz file: input name -> array, and labels under one of ``LABEL_NAMES``."""
    stored = stored_npz(path)
    names = {model_input.name for model_input in inputs}
    label_name = next((name for name in LABEL_NAMES if name in stored and name not in names), None)
    labels = None
    if label_name is not None:
        array = stored.pop(label_name)
        labels = as_labels(array.read(), array.where) if with_labels else None
    if len(inputs) == 1 and list(stored) == [_UNNAMED]:
        stored = {inputs[0].name: stored[_UNNAMED]}
    return _group(str(path), path, stored, inputs, labels)


def stored_npy(path: Path) -> StoredArray:
    """Read the header of a .npy file.

    Raises:
        DataError: not a .npy file, pickled objects, or fewer bytes than the header declares.
    """
    with _reading(str(path)), open(path, "rb") as file:
        shape, dtype = _read_header(file)
        _check_size(shape, dtype, path.stat().st_size - file.tell())
    return StoredArray(path, None, shape, dtype)


def stored_npz(path: Path) -> dict[str, StoredArray]:
    """Read the headers of every array in an .npz file.

    Raises:
        DataError: not an .npz file, pickled objects, or an entry whose declared size cannot be meant.
    """
    stored = {}
    with _reading(str(path)), zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            where = f"array '{info.filename.removesuffix('.npy')}'"
            with archive.open(info) as file:
                shape, dtype = _read_header(file, where)
                _check_size(shape, dtype, info.file_size - file.tell(), where)
            if info.file_size > max(_FREELY_EXPANDED_BYTES, _MAX_EXPANSION * path.stat().st_size):
                raise ValueError(f"{where} expands from {path.stat().st_size} to {info.file_size} bytes")
            stored[info.filename.removesuffix(".npy")] = StoredArray(path, info.filename, shape, dtype)
    return stored


def _group(
    where: str,
    path: Path,
    stored: dict[str, StoredArray],
    inputs: Sequence[ModelInput],
    labels: np.ndarray | None = None,
) -> ArrayGroup:
    stackings = stack_arrays({name: array.shape for name, array in stored.items()}, inputs, where)
    return ArrayGroup(where, path, stackings, lambda: {name: array.read() for name, array in stored.items()}, labels)


@contextmanager
def _reading(where: str) -> Iterator[None]:
    """Turn everything numpy and zipfile raise on damaged files into one line."""
    try:
        yield
    except _READ_ERRORS as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"{where}: cannot be read: {reason[:_LONGEST_REASON]}") from None


def _read_header(file: BinaryIO, where: str = "the array") -> tuple[tuple[int, ...], np.dtype]:
    major, _ = np.lib.format.read_magic(file)
    if major not in (1, 2):  # version 3 differs only in the field names of structured arrays
        raise ValueError(f"{where} has .npy format version {major}, which no array of numbers needs")
    read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise ValueError(f"{where} holds pickled Python objects, which are refused; save arrays of one shape and dtype")
    return shape, dtype


def _check_size(shape: tuple[int, ...], dtype: np.dtype, available: int, where: str = "the array") -> None:
    declared = math.prod(shape) * dtype.itemsize
    if declared != available:
        raise ValueError(f"{where} declares {dtype} {shape}, {declared} bytes, but {available} are there")
