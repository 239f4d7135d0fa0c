"""Inputs made up from what the model declares: enough to run it, to time it, to follow its axes; not to judge it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx

from onnx_obd.calibration.inputs import ModelInput, is_batchable, read_inputs
from onnx_obd.calibration.samples import Feed, Samples
from onnx_obd.errors import DataError
from onnx_obd.graph.session import open_session, refusal
from onnx_obd.graph.tensors import stored_tensors

LENGTHS = (1, 8, 64, 576, 4096)
"""What is tried for an axis of open length; then the lengths that stored tensors have."""

MOST_STORED = 32

Axis = tuple[str, int] | str
"""An axis of open length: by its symbol, or by the name of the input and its position."""


def made_up_samples(proto: onnx.ModelProto, count: int) -> Samples:
    """``count`` samples, the same in every run: floats between 0 and 1, integers 0, axes of open length as short as
    onnxruntime takes them (all of length 1; one after the other longer; all longer).

    Raises:
        DataError: the inputs cannot be made up, or onnxruntime takes none of them.
        ModelError: onnxruntime refuses the model.
    """
    inputs = read_inputs(proto)
    lengths = _lengths(proto, inputs)
    rng = np.random.default_rng(0)
    feeds = [_feed(inputs, lengths, rng) for _ in range(count)]
    return Samples.from_feeds(feeds, source="made-up inputs", batchable=is_batchable(inputs))


def _lengths(proto: onnx.ModelProto, inputs: Sequence[ModelInput]) -> Mapping[Axis, int]:
    """Of the axes of open length, the first that onnxruntime takes."""
    open_axes = list(dict.fromkeys(axis for value in inputs for axis in _open_axes(value)))
    if not open_axes:
        return {}
    session, first = open_session(proto), ""
    for lengths in _tries(open_axes, proto):
        try:
            session.run(None, _feed(inputs, lengths, np.random.default_rng(0)))
        except Exception as error:  # onnxruntime's exceptions share no base class
            first = first or refusal(error)
        else:
            return lengths
    raise DataError(f"no made-up inputs fit the model ({first}); give it some with --data")


def _open_axes(value: ModelInput) -> Iterator[Axis]:
    """The batch is 1."""
    for position, length in enumerate(value.shape or ()):
        if not isinstance(length, int) and position != value.batch_axis:
            yield length or (value.name, position)


def _tries(axes: Sequence[Axis], proto: onnx.ModelProto) -> Iterator[Mapping[Axis, int]]:
    stored = {length for _, tensor in stored_tensors(proto) for length in tensor.dims} - {*LENGTHS, 0}
    lengths = [*LENGTHS, *sorted(stored)[:MOST_STORED]]
    yield dict.fromkeys(axes, 1)
    for axis in axes if len(axes) > 1 else ():
        yield from (dict.fromkeys(axes, 1) | {axis: length} for length in lengths[1:])
    yield from (dict.fromkeys(axes, length) for length in lengths[1:])


def _feed(inputs: Sequence[ModelInput], lengths: Mapping[Axis, int], rng: np.random.Generator) -> Feed:
    feed = {}
    for value in inputs:
        shape = [
            length if isinstance(length, int) else lengths.get(length or (value.name, position), 1)
            for position, length in enumerate(value.shape or (None,))
        ]
        floats = np.issubdtype(value.dtype, np.floating)
        feed[value.name] = (rng.random(shape) if floats else np.zeros(shape)).astype(value.dtype)
    return feed
