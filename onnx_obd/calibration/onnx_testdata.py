"""Samples in the test data that ONNX models are published with: ``test_data_set_0/input_0.pb`` and so on."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from onnx_obd.calibration.inputs import ModelInput, Stacking, describe_inputs, is_batchable, stack_arrays
from onnx_obd.calibration.listing import ArrayGroup
from onnx_obd.errors import DataError

_SET_NAME = re.compile(r"test_data_set_(\d+)")
_INPUT_NAME = re.compile(r"input_(\d+)\.pb")


def find_test_data_sets(folder: Path) -> list[Path]:
    """The test_data_set_* folders in ``folder`` by number, or ``folder`` itself if it is one."""
    if any(_INPUT_NAME.fullmatch(entry.name) for entry in folder.iterdir()):
        return [folder]
    return _by_number(folder, _SET_NAME)


def read_test_data_set(folder: Path, inputs: Sequence[ModelInput]) -> ArrayGroup:
    """The feed in one test_data_set folder; its rows are separate samples where the model's batch is open.

    Tensors belong to the inputs of their names, or by number where they are not named so.

    Raises:
        DataError: a file is damaged, or the tensors are not those the model takes.
    """
    tensors = [read_tensor(path) for path in _by_number(folder, _INPUT_NAME)]
    names = [model_input.name for model_input in inputs]
    if len(tensors) != len(names):
        raise DataError(f"{folder}: {len(tensors)} input tensors, but the model takes {describe_inputs(inputs)}")
    own = [name for name, _ in tensors]
    arrays = dict(zip(own if set(own) == set(names) else names, (array for _, array in tensors), strict=True))
    stackings = stack_arrays({name: array.shape for name, array in arrays.items()}, inputs, str(folder))
    if not is_batchable(inputs):
        # A set is one feed, whatever its first axes are; only an open batch axis may be taken apart.
        stackings = {name: Stacking("whole", 1) for name in names}
    return ArrayGroup(str(folder), folder, stackings, lambda: arrays)


def read_tensor(path: Path) -> tuple[str, np.ndarray]:
    """(name, values) of a TensorProto in a file.

    Raises:
        DataError: not a tensor, or one whose declared shape its data does not fill.
    """
    tensor = onnx.TensorProto()
    try:
        tensor.ParseFromString(path.read_bytes())
    except (OSError, DecodeError) as error:
        raise DataError(f"{path}: cannot be read as an ONNX tensor: {error}") from None
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        raise DataError(f"{path}: keeps its data in another file, which test data may not")
    if any(dim < 0 for dim in tensor.dims) or tensor.data_type == onnx.TensorProto.UNDEFINED:
        raise DataError(f"{path}: not an ONNX tensor")
    try:
        array = onnx.numpy_helper.to_array(tensor)
    except (TypeError, ValueError, KeyError) as error:
        raise DataError(f"{path}: damaged tensor: {str(error).splitlines()[0]}") from None
    if array.size != math.prod(tensor.dims):
        raise DataError(f"{path}: {array.size} values for the shape {tuple(tensor.dims)}")
    if tensor.data_type == onnx.TensorProto.STRING:
        array = np.vectorize(lambda text: text.decode() if isinstance(text, bytes) else text, otypes=[object])(array)
    return tensor.name, array


def _by_number(folder: Path, pattern: re.Pattern[str]) -> list[Path]:
    numbered = [(int(found[1]), entry) for entry in folder.iterdir() if (found := pattern.fullmatch(entry.name))]
    return [entry for _, entry in sorted(numbered)]
