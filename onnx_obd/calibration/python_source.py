"""Samples from a Python function, named ``module:function``."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import onnx

from onnx_obd.calibration.inputs import ModelInput
from onnx_obd.calibration.labels import as_labels
from onnx_obd.calibration.listing import ArrayGroup, Listing, group_of, list_groups
from onnx_obd.calibration.samples import spread_indices
from onnx_obd.errors import DataError, OnnxObdError

_SPEC = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def is_function_spec(spec: str) -> bool:
    """Whether ``spec`` has the form ``module:function``."""
    return _SPEC.fullmatch(spec) is not None


def list_function(
    spec: str, values: Sequence[onnx.ValueInfoProto], inputs: Sequence[ModelInput], limit: int | None
) -> Listing:
    """Call ``module:function`` with the model's inputs (a list of ValueInfoProto) and list what it gives.

    The function returns stacked arrays, or (stacked arrays, labels); or it returns or yields one item after another,
    each a feed or (feed, label). Arrays are a dict input name -> array, or one array for a model with one input. The
    module is looked for in the current directory first. Of a generator the first ``limit`` items are taken, for it
    does not tell its length; of a list, items spread evenly.

    Raises:
        DataError: the function cannot be found, fails, or gives something else.
    """
    function = find_function(spec)
    try:
        result = function(list(values))
        if _is_stack(result) or (isinstance(result, tuple) and len(result) == 2 and _is_stack(result[0])):
            groups = [_group(result, inputs, spec)]
        else:
            groups = [_group(item, inputs, f"{spec}, item {index}") for index, item in _items(result, spec, limit)]
    except OnnxObdError:
        raise
    except Exception as error:  # the user's own code may raise anything
        reason = str(error).splitlines()[0] if str(error) else ""
        raise DataError(f"{spec} failed with {type(error).__name__}: {reason}") from error
    if not groups:
        raise DataError(f"{spec}: gives no samples")
    return list_groups(groups, inputs, "function")


def find_function(spec: str) -> Callable[..., Any]:
    """The function named ``module:function``; the module is looked for in the current directory first.

    Raises:
        DataError: it cannot be imported, or is no function.
    """
    module_name, _, function_name = spec.partition(":")
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # importing runs the user's code
        raise DataError(f"{spec}: cannot import '{module_name}': {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(here)
    function = getattr(module, function_name, None)
    if not callable(function):
        raise DataError(f"{spec}: '{module_name}' has no function '{function_name}'")
    return function


def _is_stack(value: object) -> bool:
    return isinstance(value, Mapping) or (hasattr(value, "__array__") and not isinstance(value, np.generic))


def _items(result: object, spec: str, limit: int | None) -> Iterator[tuple[int, Any]]:
    if isinstance(result, (list, tuple)):
        return ((int(index), result[index]) for index in spread_indices(len(result), limit, None))
    if isinstance(result, Iterable) and not isinstance(result, (str, bytes)):
        return enumerate(islice(result, limit))
    raise DataError(f"{spec}: gives {type(result).__name__}; return or yield arrays, dicts of arrays or (feed, label)")


def _group(item: Any, inputs: Sequence[ModelInput], where: str) -> ArrayGroup:
    feed, label = item if isinstance(item, tuple) and len(item) == 2 else (item, None)
    if isinstance(feed, Mapping):
        # Copied now: a generator may fill the same buffer again for its next item.
        arrays = {str(name): np.asarray(array).copy() for name, array in feed.items()}
    elif len(inputs) == 1 and not isinstance(feed, (str, bytes, type(None))):
        arrays = {inputs[0].name: np.asarray(feed).copy()}
    else:
        raise DataError(f"{where}: {type(feed).__name__}, but a model with several inputs needs a dict by input name")
    labels = None if label is None else np.asarray(label)
    group = group_of(arrays, inputs, where)
    if labels is not None:
        one = group.count == 1 and (labels.ndim == 0 or len(labels) != 1)
        labels = as_labels(labels[np.newaxis] if one else labels, where)
    return group_of(arrays, inputs, where, labels)
