"""Running samples through onnxruntime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort

from onnx_obd.errors import DataError
from onnx_obd.graph.session import open_session, refusal

if TYPE_CHECKING:
    from onnx_obd.calibration.samples import Samples

__all__ = ["open_session", "run_samples"]


def run_samples(session: ort.InferenceSession, samples: Samples, batch_size: int) -> list[np.ndarray]:
    """The outputs of the model for all samples: one array per graph output, samples along axis 0.

    An output [B, ...] of B samples becomes [N, ...]. Where that axis does not show in an output, all samples are run
    one by one, and outputs without a leading 1 are stacked to [N, ...]. Where their shapes differ between samples
    (lists of detections) the array is [N] of dtype object and holds one array per sample. The class-to-probability
    dictionaries of scikit-learn exports become one column per class, in their order.

    Raises:
        DataError: onnxruntime refuses a sample.
    """
    batches = _run(session, samples, batch_size)
    if all(_is_batched(values, count) for values, count in batches):
        columns = zip(*(values for values, _ in batches), strict=True)
        if all(len({value.shape[1:] for value in column}) == 1 for column in columns):
            return [np.concatenate(column) for column in zip(*(values for values, _ in batches), strict=True)]
    singles = [values for values, _ in _run(session, samples, 1)]
    return [_join(column) for column in zip(*singles, strict=True)]


def _run(session: ort.InferenceSession, samples: Samples, batch_size: int) -> list[tuple[list[np.ndarray], int]]:
    """For each batch its outputs and how many samples it holds."""
    runs, done = [], 0
    for feed, _ in samples.batches(batch_size):
        first = next(iter(feed), None)
        count = len(feed[first]) // len(samples.feeds[done][first]) if samples.batchable and feed else 1
        try:
            outputs = session.run(None, feed)
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise DataError(f"{samples.source}: onnxruntime refuses sample {done}: {refusal(error)}") from error
        runs.append(([_as_array(value) for value in outputs], count))
        done += count
    return runs


def _as_array(value: Any) -> np.ndarray:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return np.array([list(row.values()) for row in value])
    return _boxed([value]) if isinstance(value, list) else np.asarray(value)


def _boxed(values: list[Any]) -> np.ndarray:
    boxed = np.empty(len(values), dtype=object)
    for index, value in enumerate(values):
        boxed[index] = value
    return boxed


def _is_batched(values: list[np.ndarray], count: int) -> bool:
    return all(value.ndim > 0 and len(value) == count for value in values)


def _join(values: tuple[np.ndarray, ...]) -> np.ndarray:
    """The outputs of single samples, joined along axis 0."""
    if len({value.shape for value in values}) > 1:
        return _boxed([value[0] if value.ndim and len(value) == 1 else value for value in values])
    return np.concatenate(values) if _is_batched(list(values), 1) else np.stack(values)
