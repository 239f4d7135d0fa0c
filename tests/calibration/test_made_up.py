from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnx_obd.calibration.made_up import made_up_samples
from onnx_obd.errors import DataError
from onnx_obd.graph.session import open_session
from tests.surgery.graphs import Graph


def conv(length: str | None, kernel: int) -> onnx.ModelProto:
    """A convolution over a signal of open length, beside a state of fixed size."""
    g = Graph()
    x, state = g.input("x", 1, 1, length), g.input("state", 2, None, 3)
    y = g.op("Conv", x, g.weight(3, 1, kernel))
    return g.model(g.op("Add", g.op("ReduceMean", y, keepdims=0, axes=[2]), g.op("ReduceSum", state, g.ints(0, 1))))


@pytest.mark.parametrize("length", ["samples", None])
def test_open_axes_are_as_long_as_needed(length: str | None) -> None:
    model = conv(length, kernel=50)
    (sample,) = made_up_samples(model, 1).feeds
    assert {name: value.shape for name, value in sample.items()} == {"x": (1, 1, 64), "state": (2, 1, 3)}
    open_session(model).run(None, sample)


def test_lengths_of_stored_tensors_are_tried() -> None:
    g = Graph()
    model = g.model(g.dense(g.input("x", "n", "k"), 13, 5))
    assert made_up_samples(model, 1).feeds[0]["x"].shape == (1, 13)


def test_floats_and_integers() -> None:
    g = Graph()
    rows = g.op("Gather", g.weight(4, 3), g.input("tokens", "batch", 2, elem_type=onnx.TensorProto.INT64))
    model = g.model(g.op("Add", rows, g.input("x", "batch", 2, 3)))
    first, second = made_up_samples(model, 2).feeds
    assert not first["tokens"].any() and first["x"].shape == (1, 2, 3) and np.ptp(first["x"]) > 0.1
    assert not np.array_equal(first["x"], second["x"])
    assert np.array_equal(first["x"], made_up_samples(model, 1).feeds[0]["x"])


def test_none_fits() -> None:
    g = Graph()
    model = g.model(g.op("Reshape", g.input("x", 1, "n"), g.ints(7, 11)))
    with pytest.raises(DataError, match=r"no made-up inputs fit the model .*--data"):
        made_up_samples(model, 1)
