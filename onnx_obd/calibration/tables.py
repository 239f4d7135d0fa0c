"""Samples in a .csv file: one per row, for inputs that are flat or can be flattened."""

from __future__ import annotations

import csv
import math
import reprlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from onnx_obd.calibration.inputs import ModelInput, describe_inputs
from onnx_obd.calibration.labels import LABEL_NAMES, as_labels, as_number, read_rows, whole_numbers_as_int
from onnx_obd.calibration.listing import ArrayGroup, group_of
from onnx_obd.errors import DataError


def csv_group(
    path: Path, inputs: Sequence[ModelInput], classes: int | None = None, *, with_labels: bool = True
) -> ArrayGroup:
    """The samples of a .csv file, one per row.

    For a model with one input a row holds the flattened sample, for a model with several inputs of one number each the
    header names the inputs. A header row is otherwise optional. Labels stand in a column with one of ``LABEL_NAMES``;
    without a header, in the first or last column if there is one more than the input has and it is clear which.

    Args:
        classes: how many the model has, if it says so.

    Raises:
        DataError: a cell is not a number, or the number of columns does not fit.
    """
    header, table = _read_table(path)
    label_column = _find_label_column(header, table, inputs, classes, path)
    labels = None
    if label_column is not None and with_labels:
        labels = as_labels(whole_numbers_as_int(table[:, label_column]), str(path))
    columns = [column for column in range(table.shape[1]) if column != label_column]
    if len(inputs) == 1:
        arrays = {inputs[0].name: _unflatten(table[:, columns], inputs[0], path)}
    else:
        arrays = _columns_by_name(header, table, columns, inputs, path)
    return group_of(arrays, inputs, str(path), labels, path)


def _read_table(path: Path) -> tuple[list[str] | None, np.ndarray]:
    """(the header row or None, the numbers [rows, columns] as float64)."""
    skip = 0
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            filled = ((number, line) for number, line in enumerate(file) if line.strip())
            number, first = next(filled, (0, ""))
            cells = [cell.strip() for cell in next(csv.reader([first]), [])]
            header = cells if _is_header(cells) else None
            skip = number + 1 if header else 0
            if not first or (header and next(filled, None) is None):
                raise DataError(f"{path}: no rows of numbers")
        table = np.loadtxt(
            path, delimiter=",", quotechar='"', comments=None, skiprows=skip, ndmin=2, encoding="utf-8-sig"
        )
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as comma-separated text: {error}") from None
    except ValueError as error:
        raise DataError(f"{path}: {_bad_cell(path, skip) or str(error).splitlines()[0]}") from None
    if header is not None and len(header) != table.shape[1]:
        raise DataError(f"{path}: the header names {len(header)} columns, the rows have {table.shape[1]}")
    if header is not None and len(set(header)) != len(header):
        raise DataError(f"{path}: two columns of the header have the same name")
    return header, table


def _is_header(cells: Sequence[str]) -> bool:
    """Not merely a row with a bad cell: all names, or a name that says what the column is ("0,1,2,label")."""
    return not any(as_number(cell) is not None for cell in cells) or any(cell.lower() in LABEL_NAMES for cell in cells)


def _bad_cell(path: Path, skip: int) -> str | None:
    """Where a table that numpy refused goes wrong, in the words of someone who has the file open in an editor."""
    width = None
    for line, row in read_rows(path):
        if line <= skip:
            continue
        width = width or len(row)
        if len(row) != width:
            return f"line {line} has {len(row)} columns, the lines before have {width}"
        for column, cell in enumerate(row):
            if as_number(cell) is None:
                return f"line {line}, column {column + 1}: {reprlib.repr(cell)} is not a number"
    return None


def _find_label_column(
    header: list[str] | None, table: np.ndarray, inputs: Sequence[ModelInput], classes: int | None, path: Path
) -> int | None:
    if header is not None:
        names = {model_input.name for model_input in inputs}
        lower = [None if name in names else name.lower() for name in header]
        return next((lower.index(name) for name in LABEL_NAMES if name in lower), None)
    width = _flat_width(inputs[0]) if len(inputs) == 1 else None
    if width is None or table.shape[1] != width + 1:
        return None
    # One column too many and nothing names it: class indices may stand first or last, float targets stand last.
    possible = [column for column in (0, width) if _may_be_classes(table[:, column], classes)]
    if classes is None and 0 not in possible:
        return width
    if classes is None or len(possible) != 1:
        raise DataError(
            f"{path}: {width + 1} columns for an input of {width}, and it is not clear whether the first or the last "
            "holds the labels; add a header row that names the column 'label'"
        )
    return possible[0]


def _may_be_classes(column: np.ndarray, classes: int | None) -> bool:
    whole = (column == np.floor(column)).all() and (column >= 0).all()
    return bool(whole and (classes is None or (column < classes).all()))


def _flat_width(model_input: ModelInput) -> int | None:
    shape = model_input.sample_shape
    return None if shape is None or None in shape else math.prod(shape)


def _unflatten(rows: np.ndarray, model_input: ModelInput, path: Path) -> np.ndarray:
    """[N, columns] as [N, *shape of a sample]; one open axis takes what the others leave."""
    shape = model_input.sample_shape
    if shape is None:
        return _whole_where_integer(rows, model_input, path)
    known = math.prod(dim for dim in shape if dim is not None)
    unknown = shape.count(None)
    width = rows.shape[1]
    if unknown > 1 or (width != known if unknown == 0 else known == 0 or width % known):
        needs = f"{known} columns" if unknown == 0 else f"a multiple of {known} columns and one open axis"
        raise DataError(
            f"{path}: {width} columns of data, but input {model_input.describe()} needs {needs} "
            "(a column of labels is to be named 'label')"
        )
    unflattened = rows.reshape(len(rows), *(width // known if dim is None else dim for dim in shape))
    return _whole_where_integer(unflattened, model_input, path)


def _columns_by_name(
    header: list[str] | None,
    table: np.ndarray,
    columns: Sequence[int],
    inputs: Sequence[ModelInput],
    path: Path,
) -> dict[str, np.ndarray]:
    if header is None or any(_flat_width(model_input) != 1 for model_input in inputs):
        raise DataError(
            f"{path}: a .csv file serves a model with several inputs only where each is one number and the header "
            f"row names them; the model takes {describe_inputs(inputs)}"
        )
    by_name = {model_input.name: model_input for model_input in inputs}
    return {
        header[column]: _unflatten(table[:, [column]], by_name[header[column]], path)
        if header[column] in by_name
        else table[:, column]
        for column in columns
    }


def _whole_where_integer(values: np.ndarray, model_input: ModelInput, path: Path) -> np.ndarray:
    """Text has no dtype: for an integer input, whole numbers are integers."""
    if model_input.dtype.kind not in "iub":
        return values
    whole = whole_numbers_as_int(values)
    if whole.dtype.kind == "f":
        raise DataError(f"{path}: input {model_input.describe()} takes integers, but the file holds other numbers")
    if model_input.dtype.kind == "b" and np.isin(whole, (0, 1)).all():
        return whole.astype(bool)
    return whole
