"""A classifier of wines, its graph written by hand as old exporters wrote them: opset 9, IR version 3, batch 1."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from sample_models.train.datasets import Split
from sample_models.train.datasets import wine as load
from sample_models.train.scoring import predict
from sample_models.train.training import fit

__all__ = ["load", "train", "write_samples"]

CALIBRATION_SAMPLES = 60


def train(split: Split) -> onnx.ModelProto:
    """13 features, 48 and 24 hidden neurons, the probabilities of three classes."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Linear(13, 48), nn.LeakyReLU(0.1), nn.Linear(48, 24), nn.LeakyReLU(0.1), nn.Linear(24, 3)
    )
    fit(
        network,
        split.train_x,
        split.train_y,
        nn.functional.cross_entropy,
        epochs=40,
        learning_rate=3e-3,
        weight_decay=0.1,
        batch_size=16,
    )
    return _graph([layer for layer in network if isinstance(layer, nn.Linear)])


def _graph(layers: list[nn.Linear]) -> onnx.ModelProto:
    """MatMul, Add and LeakyRelu for each layer and a Softmax at the end; weights [in, out], the transpose of torch's.

    IR version 3 wants every initializer listed among the graph's inputs too.
    """
    nodes, weights, value = [], [], "features"
    for number, layer in enumerate(layers, start=1):
        weight, bias = f"W{number}", f"b{number}"
        weights += [
            numpy_helper.from_array(np.ascontiguousarray(layer.weight.detach().numpy().T), weight),
            numpy_helper.from_array(layer.bias.detach().numpy(), bias),
        ]
        nodes.append(helper.make_node("MatMul", [value, weight], [f"product{number}"], name=f"matmul{number}"))
        nodes.append(helper.make_node("Add", [f"product{number}", bias], [f"sum{number}"], name=f"add{number}"))
        value = f"sum{number}"
        if number < len(layers):
            nodes.append(helper.make_node("LeakyRelu", [value], [f"hidden{number}"], name=f"relu{number}", alpha=0.1))
            value = f"hidden{number}"
    nodes.append(helper.make_node("Softmax", [value], ["probabilities"], name="softmax", axis=1))
    inputs = [helper.make_tensor_value_info("features", TensorProto.FLOAT, [1, 13])]
    inputs += [helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims) for tensor in weights]
    outputs = [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [1, 3])]
    graph = helper.make_graph(nodes, "wine", inputs, outputs, weights)
    return helper.make_model(
        graph, ir_version=3, opset_imports=[helper.make_opsetid("", 9)], producer_name="sample_models"
    )


def write_samples(split: Split, model: Path) -> None:
    """ONNX's own form for test data: test_data_set_N/input_0.pb with the model's answer in output_0.pb."""
    samples = split.train_x[:CALIBRATION_SAMPLES]
    for number, (x, y) in enumerate(zip(samples, predict(model, samples), strict=True)):
        folder = model.with_name(f"{model.stem}_calib") / f"test_data_set_{number}"
        folder.mkdir(parents=True)
        for name, file, array in (("features", "input_0.pb", x), ("probabilities", "output_0.pb", y)):
            tensor = numpy_helper.from_array(array[np.newaxis], name)
            (folder / file).write_bytes(tensor.SerializeToString())
