"""Activations: elementwise functions of one tensor."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from onnx_obd.mirror.registry import family
from onnx_obd.mirror.second import elementwise

elementwise_op = family(second=elementwise)


@elementwise_op("Relu", 1, 6, 13, 14)
def relu(x, *, consumed_inputs=None):
    return torch.relu(x)


@elementwise_op("LeakyRelu", 1, 6, 16)
def leaky_relu(x, *, alpha=0.01, consumed_inputs=None):
    return F.leaky_relu(x, alpha)


@elementwise_op("Sigmoid", 1, 6, 13)
def sigmoid(x, *, consumed_inputs=None):
    return torch.sigmoid(x)


@elementwise_op("Tanh", 1, 6, 13)
def tanh(x, *, consumed_inputs=None):
    return torch.tanh(x)
