"""The network: 2,646 free parameters shared over 104,842 connections, trained here and written as ONNX.

Like the paper's (Le Cun et al. 1990: 2,578 parameters, 98,442 connections): 16 x 16 pixels framed to 28 x 28; 4 maps by
5 x 5 kernels, averaged 2 x 2; 12 maps by 5 x 5 kernels, each of which sees 2 of the 4 maps, averaged 2 x 2; 10 outputs.
The one difference: the averages have no trained gain and offset.
"""

from __future__ import annotations

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import nn

from benchmarks.paper.digits import Digits

FRAME = 6


def new_network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 5, padding=FRAME), nn.Tanh(), nn.AvgPool2d(2),
        nn.Conv2d(4, 12, 5, groups=2), nn.Tanh(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(192, 10),
    )  # fmt: skip


def train(network: nn.Module, digits: Digits, epochs: int, seed: int = 0) -> None:
    """Squared error, Adam, one-cycle learning rate."""
    x, y = torch.from_numpy(digits.images), torch.from_numpy(digits.targets)
    optimizer = torch.optim.Adam(network.parameters())
    steps = epochs * -(-len(x) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for index in torch.randperm(len(x), generator=generator).split(64):
            optimizer.zero_grad()
            (network(x[index]) - y[index]).square().mean().backward()
            optimizer.step()
            schedule.step()


def to_onnx(network: nn.Sequential) -> onnx.ModelProto:
    weights = {name: value.detach().numpy() for name, value in network.state_dict().items()}
    conv = {"kernel_shape": [5, 5]}
    pool = {"kernel_shape": [2, 2], "strides": [2, 2]}
    nodes = [
        helper.make_node("Conv", ["image", "0.weight", "0.bias"], ["a1"], "H1", pads=[FRAME] * 4, **conv),
        helper.make_node("Tanh", ["a1"], ["b1"], "H1_squash"),
        helper.make_node("AveragePool", ["b1"], ["c1"], "H2", **pool),
        helper.make_node("Conv", ["c1", "3.weight", "3.bias"], ["a2"], "H3", group=2, **conv),
        helper.make_node("Tanh", ["a2"], ["b2"], "H3_squash"),
        helper.make_node("AveragePool", ["b2"], ["c2"], "H4", **pool),
        helper.make_node("Flatten", ["c2"], ["flat"], "rows"),
        helper.make_node("Gemm", ["flat", "7.weight", "7.bias"], ["scores"], "output", transB=1),
    ]
    image = helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["N", 1, 16, 16])
    scores = helper.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, ["N", 10])
    initializers = [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "digits", [image], [scores], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model
