"""Labels: their normal form, the tables they come in, and whether they can be classes of the model."""

from __future__ import annotations

import csv
import os
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import onnx

from onnx_obd.errors import DataError

# Under these names an array of an .npz file, or a column of a .csv file, holds labels (unless an input is called so).
LABEL_NAMES = ("labels", "label", "targets", "target", "classes", "class", "class_index", "y")
_FILE_NAMES = ("file", "filename", "file_name", "path", "image", "name")


def as_labels(array: np.ndarray, where: str) -> np.ndarray:
    """Integers as int64 class indices, floats as they are; [N, 1] becomes [N].

    Raises:
        DataError: another dtype, no axis to count samples, a negative class index, NaN or infinity.
    """
    if array.dtype.kind not in "buif":
        raise DataError(f"{where}: labels are {array.dtype}; give integers (class indices) or floats (targets)")
    if array.ndim == 0:
        raise DataError(f"{where}: the labels are a single number; give one per sample")
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise DataError(f"{where}: the labels hold NaN or infinity")
        return np.array(array)
    if array.ndim == 1 and array.size and array.min() < 0:
        raise DataError(f"{where}: label {array.min()} is negative; give class indices from 0, or floats for targets")
    if array.size and int(array.max()) > np.iinfo(np.int64).max:
        raise DataError(f"{where}: label {array.max()} does not fit int64")
    return array.astype(np.int64)


def whole_numbers_as_int(values: np.ndarray) -> np.ndarray:
    """Numbers read from text, as integers if every one is whole; text does not say whether 3 is a class or a float."""
    whole = np.isfinite(values).all() and (values == np.floor(values)).all() and (np.abs(values) < 2**53).all()
    return values.astype(np.int64) if whole else values


def class_count(proto: onnx.ModelProto) -> int | None:
    """The number of classes, where the model's one float output is declared [batch, classes] with classes > 1."""
    counts = []
    for value in proto.graph.output:
        tensor = value.type.tensor_type
        if tensor.elem_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE):
            dims = tensor.shape.dim
            counts.append(dims[1].dim_value if len(dims) == 2 else 0)
    return counts[0] if len(counts) == 1 and counts[0] > 1 else None


def check_classes(labels: np.ndarray, classes: int, where: str) -> None:
    """Refuse class indices [N] outside 0 .. classes - 1; other labels pass."""
    if labels.ndim == 1 and labels.dtype.kind == "i" and labels.size and int(labels.max()) >= classes:
        sample = int(np.flatnonzero(labels >= classes)[0])
        raise DataError(
            f"{where}: label {labels[sample]} of sample {sample}, counted from 0, is outside the model's "
            f"{classes} classes, 0 to {classes - 1}"
        )


@dataclass(frozen=True)
class LabelTable:
    """A labels.csv: one label per row, with the file it belongs to, or without one in the order of the samples."""

    path: Path
    labels: np.ndarray
    files: tuple[str, ...] | None

    def for_files(self, files: Sequence[Path], root: Path) -> np.ndarray:
        """The label of each of ``files``, which lie in the data folder ``root``.

        Names in the table are relative to ``root`` or to the table's own folder. Rows about files elsewhere in the
        table's folder are passed over: one table may serve several parts of a data set.

        Raises:
            DataError: a row names a file outside both folders or one that does not exist, two rows disagree, or a
                file has no row.
        """
        assert self.files is not None
        wanted = {os.path.abspath(file) for file in files}
        label_of: dict[str, int | float] = {}
        for row, name in enumerate(self.files):
            file = self._resolve(name, root, wanted)
            if file in label_of and label_of[file] != self.labels[row]:
                raise DataError(f"{self.path}: {name!r} stands there twice with different labels")
            label_of[file] = self.labels[row]
        bare = [file for file in files if os.path.abspath(file) not in label_of]
        if bare:
            count = len(set(bare))
            raise DataError(
                f"{self.path}: no label for {count} of {len(wanted)} files, '{bare[0]}' the first; "
                "add them, or give labels 'none'"
            )
        return np.array([label_of[os.path.abspath(file)] for file in files], dtype=self.labels.dtype)

    def _resolve(self, name: str, root: Path, wanted: set[str]) -> str:
        parts = PurePosixPath(name.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts:
            raise DataError(f"{self.path}: {name!r} lies outside the folder; names must be relative, without '..'")
        candidates = [os.path.abspath(folder / parts) for folder in (root, self.path.parent)]
        for candidate in candidates:
            if candidate in wanted:
                return candidate
        for candidate in candidates:
            if os.path.isfile(candidate):
                return candidate
        raise DataError(f"{self.path}: {name!r} does not exist in '{root}'")


def read_label_table(path: Path) -> LabelTable:
    """Read a .csv of labels: ``file,label`` rows or one label per row, with or without a header row.

    Raises:
        DataError: it cannot be read, has no rows, or a label is not a number.
    """
    rows = read_rows(path)
    if not rows:
        raise DataError(f"{path}: no rows")
    file_column, label_column, has_header = _find_columns(rows[0][1], path)
    names, values = [], []
    for line, row in rows[1:] if has_header else rows:
        if len(row) != len(rows[0][1]):
            raise DataError(f"{path}: line {line} has {len(row)} columns, the first line has {len(rows[0][1])}")
        value = as_number(row[label_column])
        if value is None:
            raise DataError(f"{path}: line {line}: the label {reprlib.repr(row[label_column])} is not a number")
        values.append(value)
        if file_column is not None:
            if not row[file_column]:
                raise DataError(f"{path}: line {line} names no file")
            names.append(row[file_column])
    labels = as_labels(whole_numbers_as_int(np.array(values, dtype=np.float64)), str(path))
    return LabelTable(path, labels, None if file_column is None else tuple(names))


def read_rows(path: Path) -> list[tuple[int, list[str]]]:
    """The rows of a .csv file that are not blank, each with its line number."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            return [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as comma-separated text: {error}") from None


def as_number(text: str) -> float | None:
    """The number in a cell, or None."""
    try:
        return float(text)
    except ValueError:
        return None


def _find_columns(first: list[str], path: Path) -> tuple[int | None, int, bool]:
    """(column of file names or None, column of labels, whether the first row is a header)."""
    lower = [cell.lower() for cell in first]
    if len(first) == 1:
        return None, 0, as_number(first[0]) is None
    label = next((lower.index(name) for name in LABEL_NAMES if name in lower), None)
    file = next((lower.index(name) for name in _FILE_NAMES if name in lower), None)
    if label is not None and file is not None:
        return file, label, True
    if len(first) == 2:
        return 0, 1, as_number(first[1]) is None
    raise DataError(f"{path}: {len(first)} columns; give a header row with the columns 'file' and 'label'")
