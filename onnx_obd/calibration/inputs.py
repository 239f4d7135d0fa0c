"""What the model's inputs accept, and how an array of a given shape holds samples for one of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx

from onnx_obd.calibration.samples import Feed
from onnx_obd.errors import DataError
from onnx_obd.graph.declared import length
from onnx_obd.graph.load import graph_inputs

Shape = tuple[int, ...]

# How exporters name a symbolic axis. A batch axis may stand elsewhere than first ([layers, batch, features]), and a
# first axis may be time ([sequence, 1, features]): then it must not be taken for a stack of samples.
_BATCH_NAME = re.compile(r"batch", re.IGNORECASE)
_TIME_NAME = re.compile(r"seq|time|step|frame|length|token", re.IGNORECASE)

# A conversion may go up this order, never down: a float is not silently cut to an integer.
_KIND_ORDER = {"b": 0, "u": 1, "i": 1, "f": 2}


@dataclass(frozen=True)
class ModelInput:
    """One graph input that a sample must provide.

    Attributes:
        name: the value's name in the graph.
        dtype: of the array onnxruntime takes; ``object`` for strings.
        shape: per axis its length, its symbol, or None where nothing is declared; None if the rank is unknown.
        batch_axis: the axis that counts samples, or None if the input has none.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int | str | None, ...] | None
    batch_axis: int | None

    @property
    def has_open_batch(self) -> bool:
        """Whether the model leaves the length of the batch axis open."""
        return self.batch_axis is not None and (self.shape is None or not isinstance(self.shape[self.batch_axis], int))

    @property
    def sample_shape(self) -> tuple[int | None, ...] | None:
        """The shape of one sample: 1 on the batch axis, None where any length will do."""
        if self.shape is None:
            return None
        return tuple(
            1 if axis == self.batch_axis else dim if isinstance(dim, int) else None
            for axis, dim in enumerate(self.shape)
        )

    def describe(self) -> str:
        """For messages: ``'x': float32 (batch, 3, ?, ?)``."""
        shape = "of any shape" if self.shape is None else _shape_text(self.shape)
        return f"'{self.name}': {_dtype_name(self.dtype)} {shape}"


def read_inputs(proto: onnx.ModelProto) -> tuple[ModelInput, ...]:
    """The inputs of ``proto`` that are not weights, in graph order.

    Raises:
        DataError: the model has no input, or one that is not a tensor or of a type numpy cannot hold.
    """
    inputs = tuple(_read_input(value) for value in graph_inputs(proto))
    if not inputs:
        raise DataError("the model has no inputs, so no sample can be given to it")
    return inputs


def describe_inputs(inputs: Sequence[ModelInput]) -> str:
    """The inputs in words, for messages that must say what the model takes."""
    return "; ".join(model_input.describe() for model_input in inputs)


def is_batchable(inputs: Sequence[ModelInput]) -> bool:
    """Whether feeds may be concatenated on axis 0 of every input.

    Every input must have its batch axis first and of open length, and no symbol of a first axis may name another
    axis as well: with inputs [n, s] and [s], axis 0 of the second does not count samples.
    """
    if not all(model_input.batch_axis == 0 and model_input.has_open_batch for model_input in inputs):
        return False
    shapes = [model_input.shape for model_input in inputs if model_input.shape]
    first = {shape[0] for shape in shapes if shape[0] is not None}
    return not any(dim in first for shape in shapes for dim in shape[1:])


@dataclass(frozen=True)
class Stacking:
    """How one array holds ``count`` samples of an input.

    ``rows``: along the batch axis, which stays with length 1; ``stack``: along an extra first axis; ``bare``: one
    sample without its batch axis; ``whole``: one sample as it is.
    """

    form: Literal["rows", "stack", "bare", "whole"]
    count: int
    axis: int = 0

    def stacked(self, array: np.ndarray) -> np.ndarray:
        """A view of ``array`` as [count, *shape of a sample]."""
        if self.form == "rows":
            return np.expand_dims(np.moveaxis(array, self.axis, 0), self.axis + 1)
        if self.form == "bare":
            return np.expand_dims(array, self.axis)[np.newaxis]
        return array if self.form == "stack" else array[np.newaxis]


def find_stacking(shape: Shape, model_input: ModelInput, where: str) -> Stacking:
    """How an array of ``shape`` holds samples of ``model_input``; open axes take any length.

    Raises:
        DataError: it fits neither one sample nor a stack of them.
    """
    dims, axis = model_input.shape, model_input.batch_axis
    if dims is None:
        # Rank unknown: by the convention nearly every model follows, the first axis counts samples.
        return Stacking("rows", shape[0]) if shape else Stacking("whole", 1)
    if len(shape) == len(dims) + 1 and _fits(shape[1:], dims):
        return Stacking("stack", shape[0])
    if axis is None and _fits(shape, dims):
        return Stacking("whole", 1)
    if axis is not None:
        rest = dims[:axis] + dims[axis + 1 :]
        if len(shape) == len(dims) and _fits(shape[:axis] + shape[axis + 1 :], rest):
            return Stacking("rows", shape[axis], axis)
        if _fits(shape, rest):
            return Stacking("bare", 1, axis)
    wanted = ("N", *dims) if axis is None else (*dims[:axis], "N", *dims[axis + 1 :])
    raise DataError(
        f"{where}: the array for input '{model_input.name}' has shape {_shape_text(shape)}, but the model takes "
        f"{_shape_text(dims)}; give {_shape_text(wanted)} for N samples"
    )


def stack_arrays(shapes: dict[str, Shape], inputs: Sequence[ModelInput], where: str) -> dict[str, Stacking]:
    """The stacking of every input's array in one file or feed; arrays of one sample are shared by all samples.

    Raises:
        DataError: an array has no such input, an input no array, or the numbers of samples disagree.
    """
    known = {model_input.name for model_input in inputs}
    unknown = [name for name in shapes if name not in known]
    if unknown:
        raise DataError(f"{where}: {unknown[0]!r} is not an input of the model, which takes {describe_inputs(inputs)}")
    missing = [model_input for model_input in inputs if model_input.name not in shapes]
    if missing:
        raise DataError(f"{where}: no array for input {missing[0].describe()}")
    stackings = {
        model_input.name: find_stacking(shapes[model_input.name], model_input, where) for model_input in inputs
    }
    count_samples(stackings, where)
    return stackings


def count_samples(stackings: dict[str, Stacking], where: str) -> int:
    """The number of samples that the arrays of one file hold together."""
    several = {name: stacking.count for name, stacking in stackings.items() if stacking.count != 1}
    if len(set(several.values())) > 1:
        counts = ", ".join(f"'{name}' {count}" for name, count in several.items())
        raise DataError(f"{where}: the inputs disagree on the number of samples: {counts}")
    return next(iter(several.values()), 1)


def take_feeds(
    arrays: dict[str, np.ndarray],
    stackings: dict[str, Stacking],
    inputs: Sequence[ModelInput],
    indices: np.ndarray,
    where: str,
) -> list[Feed]:
    """The feeds at ``indices`` (ascending) of the samples that ``arrays`` hold, converted and checked."""
    columns = {}
    for model_input in inputs:
        stacking = stackings[model_input.name]
        stacked = stacking.stacked(arrays[model_input.name])
        if stacking.count != 1:
            # A slice where all are wanted: no second copy of a large array.
            stacked = stacked if len(indices) == stacking.count else stacked[indices]
        columns[model_input.name] = convert(stacked, indices, model_input, where)
    return [
        {name: column[0 if stackings[name].count == 1 else row, ...] for name, column in columns.items()}
        for row in range(len(indices))
    ]


def convert(stacked: np.ndarray, indices: np.ndarray, model_input: ModelInput, where: str) -> np.ndarray:
    """A row-major copy of ``stacked`` in the input's dtype.

    Floats may be rounded to the model's precision; integers must fit; integers become floats, floats never integers.

    Args:
        stacked: [N, *shape of a sample].
        indices: the numbers of the N samples in their file, for messages.

    Raises:
        DataError: the dtype cannot be converted without loss, or a value is NaN, infinite or out of range.
    """
    what = f"{where}: the array for input '{model_input.name}'"
    source, target = stacked.dtype, model_input.dtype
    if target.kind == "O":
        return _as_strings(stacked, what)
    if source.kind not in _KIND_ORDER or _KIND_ORDER[source.kind] > _KIND_ORDER[target.kind]:
        held = "Python objects" if source.kind == "O" else _dtype_name(source)
        raise DataError(f"{what} is {held}, which is not safely converted to the model's {target}")
    if source.kind == "f":
        _check_finite(stacked, indices, what)
    if target.kind in "iu" and source.kind in "iu" and stacked.size:
        low, high, range_ = int(stacked.min()), int(stacked.max()), np.iinfo(target)
        if low < range_.min or high > range_.max:
            raise DataError(f"{what} is {source} with values {low} to {high}, which do not fit the model's {target}")
    with np.errstate(over="ignore"):
        converted = np.array(stacked, dtype=target, order="C")
    if target.kind == "f" and target != source and not np.isfinite(converted).all():
        raise DataError(f"{what} is {source} with values too large for the model's {target}")
    return converted


def _read_input(value: onnx.ValueInfoProto) -> ModelInput:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        found = kind.removesuffix("_type") if kind else "undeclared"
        raise DataError(f"input '{value.name}' is not a tensor (its type is {found}), so no sample can be given to it")
    elem_type = value.type.tensor_type.elem_type
    try:
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(elem_type))
    except (KeyError, TypeError, ValueError):
        raise DataError(f"input '{value.name}' has the unknown element type {elem_type}") from None
    if dtype.kind not in (*_KIND_ORDER, "O") or dtype.isbuiltin != 1:  # bfloat16 and smaller come from ml_dtypes
        name = onnx.TensorProto.DataType.Name(elem_type)
        raise DataError(f"input '{value.name}' is of type {name}, which cannot be given to onnxruntime from numpy")
    if not value.type.tensor_type.HasField("shape"):
        return ModelInput(value.name, dtype, None, 0)
    dims = value.type.tensor_type.shape.dim
    shape = tuple(map(length, dims))
    return ModelInput(value.name, dtype, shape, _batch_axis(shape, [dim.denotation for dim in dims]))


def _batch_axis(shape: tuple[int | str | None, ...], denotations: Sequence[str]) -> int | None:
    """The axis declared or named as the batch; else the first, if its length is open or 1 and it is not time."""
    for axis, (dim, denotation) in enumerate(zip(shape, denotations, strict=True)):
        if denotation == "DATA_BATCH" or (isinstance(dim, str) and _BATCH_NAME.search(dim) and not _is_time(dim)):
            return axis if not isinstance(dim, int) or dim == 1 else None
    if not shape or (isinstance(shape[0], int) and shape[0] != 1) or _is_time(shape[0]):
        return None
    return 0


def _is_time(dim: int | str | None) -> bool:
    return isinstance(dim, str) and _TIME_NAME.search(dim) is not None


def _fits(shape: Shape, dims: Sequence[int | str | None]) -> bool:
    return len(shape) == len(dims) and all(
        not isinstance(dim, int) or length == dim for length, dim in zip(shape, dims, strict=True)
    )


def _check_finite(stacked: np.ndarray, indices: np.ndarray, what: str) -> None:
    finite = np.isfinite(stacked)
    if not finite.all():
        first = tuple(int(index) for index in np.argwhere(~finite)[0])
        raise DataError(f"{what} holds {stacked[first]} in sample {indices[first[0]]}, counted from 0; remove it")


def _as_strings(stacked: np.ndarray, what: str) -> np.ndarray:
    if stacked.dtype.kind == "O" and all(isinstance(item, str) for item in stacked.flat):
        return stacked
    if stacked.dtype.kind == "U":
        return stacked.astype(object)
    raise DataError(f"{what} is {stacked.dtype}, but the model takes strings")


def _dtype_name(dtype: np.dtype) -> str:
    return "string" if dtype.kind in "OUS" else str(dtype)


def _shape_text(dims: Sequence[int | str | None]) -> str:
    return "(" + ", ".join("?" if dim is None else str(dim) for dim in dims) + ("," if len(dims) == 1 else "") + ")"
