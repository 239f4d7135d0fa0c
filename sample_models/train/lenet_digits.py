"""A convolutional network of LeNet's form on the digits; exported by torch, opset 18."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from sample_models.train.datasets import Split
from sample_models.train.datasets import digits as load
from sample_models.train.training import export, fit

__all__ = ["load", "train", "write_samples"]

CALIBRATION_SAMPLES = 400


def train(split: Split) -> onnx.ModelProto:
    """Convolution, pooling, convolution, pooling, two dense layers; logits without a softmax. 60 714 parameters."""
    torch.manual_seed(0)
    layers = {
        "conv1": nn.Conv2d(1, 16, kernel_size=3, padding=1),
        "relu1": nn.ReLU(),
        "pool1": nn.MaxPool2d(2),
        "conv2": nn.Conv2d(16, 64, kernel_size=3, padding=1),
        "relu2": nn.ReLU(),
        "pool2": nn.MaxPool2d(2),
        "flatten": nn.Flatten(),
        "dense1": nn.Linear(256, 192),
        "relu3": nn.ReLU(),
        "dense2": nn.Linear(192, 10),
    }
    network = nn.Sequential(OrderedDict(layers))
    fit(network, split.train_x, split.train_y, nn.functional.cross_entropy, epochs=30, learning_rate=2e-3)
    return export(network, split.train_x[:2], names=("image", "logits"), opset=18)


def write_samples(split: Split, model: Path) -> None:
    """An .npz with labels to calibrate on, and another with the whole test part to measure on."""
    parts = {
        "calib": (split.train_x[:CALIBRATION_SAMPLES], split.train_y[:CALIBRATION_SAMPLES]),
        "test": (split.test_x, split.test_y),
    }
    for part, (images, labels) in parts.items():
        folder = model.with_name(f"{model.stem}_{part}")
        folder.mkdir()
        np.savez_compressed(folder / "digits.npz", image=images, labels=labels)
