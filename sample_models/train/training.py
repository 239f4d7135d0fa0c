"""Training and export shared by the networks written in torch."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import onnx
import torch
from torch import nn

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def fit(
    network: nn.Module,
    x: np.ndarray,
    y: np.ndarray,
    loss: Loss,
    *,
    epochs: int,
    learning_rate: float,
    weight_decay: float = 1e-4,
    batch_size: int = 64,
) -> None:
    """Train `network` in place with AdamW under a cosine schedule and leave it in evaluation mode.

    The order of the samples follows from a generator of its own; seed torch before the network is made, for its
    initial weights.
    """
    inputs, targets = torch.from_numpy(x), torch.from_numpy(y)
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    generator = torch.Generator().manual_seed(0)
    network.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(inputs), generator=generator).split(batch_size):
            optimizer.zero_grad()
            loss(network(inputs[batch]), targets[batch]).backward()
            optimizer.step()
        schedule.step()
    network.eval()


def export(network: nn.Module, example: np.ndarray, *, names: tuple[str, str], opset: int) -> onnx.ModelProto:
    """Export with torch's exporter (torch.export), the batch dynamic; `names` are those of the input and the output.

    The traces of source lines that this exporter leaves on every node and value are removed: they hold local paths.
    """
    program = torch.onnx.export(
        network,
        (torch.from_numpy(example),),
        dynamo=True,
        opset_version=opset,
        input_names=[names[0]],
        output_names=[names[1]],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
    )
    model = program.model_proto
    for traced in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output, model.graph):
        del traced.metadata_props[:]
    return model


def export_torchscript(
    network: nn.Module, example: np.ndarray, *, names: tuple[str, str], opset: int
) -> onnx.ModelProto:
    """Export with torch's older exporter (TorchScript), the batch dynamic, as most models in circulation were."""
    buffer = io.BytesIO()
    torch.onnx.export(
        network,
        (torch.from_numpy(example),),
        buffer,
        dynamo=False,
        opset_version=opset,
        input_names=[names[0]],
        output_names=[names[1]],
        dynamic_axes={name: {0: "batch"} for name in names},
    )
    return onnx.load_from_string(buffer.getvalue())
