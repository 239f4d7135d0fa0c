"""BackPACK on the same networks, batch and loss: what ``curvature_cost --backpack`` compares with.

It differentiates chains of torch modules, so the networks of ``benchmarks.networks`` are built anew as such, with the
same weights. Only this file imports it (``pip install backpack-for-pytorch``).
"""

from __future__ import annotations

import onnx
import torch
from backpack import backpack, extend
from backpack.extensions import DiagGGNExact, DiagGGNMC, DiagHessian
from onnx import numpy_helper
from torch import Tensor, nn

EXTENSIONS = {"DiagGGNMC": DiagGGNMC, "DiagGGNExact": DiagGGNExact, "DiagHessian": DiagHessian}
"""By the name of the attribute, in other letters, in which each leaves its result with a parameter."""


def as_modules(model: onnx.ModelProto) -> nn.Sequential:
    """The chain of modules that computes what the model does; parameters in the model's order."""
    weights = {each.name: torch.from_numpy(numpy_helper.to_array(each).copy()) for each in model.graph.initializer}
    return nn.Sequential(*[_module(node, [weights[name] for name in node.input[1:]]) for node in model.graph.node])


def _module(node: onnx.NodeProto, weights: list[Tensor]) -> nn.Module:
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type == "Conv":
        out, into, *kernel = weights[0].shape
        module = nn.Conv2d(into, out, kernel, padding=attributes["pads"][:2])
    elif node.op_type == "Gemm":
        module = nn.Linear(*reversed(weights[0].shape))
    elif node.op_type == "MaxPool":  # windows that start inside: SAME_UPPER, for the sizes that occur here
        return nn.MaxPool2d(attributes["kernel_shape"], attributes["strides"], ceil_mode=True)
    else:
        return {"Relu": nn.ReLU, "Flatten": nn.Flatten}[node.op_type]()
    module.weight.data, module.bias.data = weights
    return module


class Chain:
    """The network on a batch, with the mean cross-entropy against ``classes``."""

    def __init__(self, model: onnx.ModelProto, images: Tensor, classes: Tensor):
        self.plain, self.extended = as_modules(model), extend(as_modules(model))
        self.loss, self.extended_loss = nn.CrossEntropyLoss(), extend(nn.CrossEntropyLoss())
        self.images, self.classes = images, classes

    def plain_pass(self) -> None:
        self.plain.zero_grad()
        self.loss(self.plain(self.images), self.classes).backward()

    def diagonal(self, name: str) -> list[Tensor]:
        """Forward and backward with one of ``EXTENSIONS``: the diagonal for every parameter."""
        self.extended.zero_grad()
        with backpack(EXTENSIONS[name]()):
            self.extended_loss(self.extended(self.images), self.classes).backward()
        attribute = {"DiagGGNMC": "diag_ggn_mc", "DiagGGNExact": "diag_ggn_exact", "DiagHessian": "diag_h"}[name]
        return [getattr(parameter, attribute) for parameter in self.extended.parameters()]
