"""Networks wider than their tasks, and runs of them."""

import numpy as np
import onnx

from onnx_obd.calibration.samples import Samples
from onnx_obd.graph.load import load_model
from onnx_obd.options import Options
from onnx_obd.run import Run, prepare
from tests.curvature.networks import mlp

COUNT = 80


def inputs(count: int = COUNT, width: int = 12) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, width)).astype(np.float32)


def wide(folder, sizes=(12, 64, 48, 5), heard=1.0) -> onnx.ModelProto:
    """Saved as wide.onnx in the folder: of the first layer half of the neurons are twins of the other half.

    ``heard``: how much the second layer listens to the twins.
    """
    proto = mlp(sizes=sizes)
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor).copy() for tensor in proto.graph.initializer}
    half = sizes[1] // 2
    arrays["w0"][:, half:], arrays["b0"][half:] = arrays["w0"][:, :half], arrays["b0"][:half]
    arrays["w1"] *= 0.3
    arrays["w1"][half:] *= heard
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(arrays[tensor.name], tensor.name))
    onnx.save(proto, folder / "wide.onnx")
    np.save(folder / "x.npy", inputs(width=sizes[0]))
    return proto


def prepared(folder, heard=1.0, **options) -> Run:
    proto = wide(folder, heard=heard)
    feeds = [{"x": row[None]} for row in inputs()]
    assert proto.graph.input[0].name == "x"
    samples = Samples.from_feeds(feeds, source="made", batchable=True)
    return prepare(load_model(folder / "wide.onnx"), samples, Options(**{"speedup": 2.0, **options}))
