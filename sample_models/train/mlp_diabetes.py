"""A regression on the diabetes data; exported by torch's older exporter, opset 11."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from sample_models.train.datasets import Split
from sample_models.train.datasets import diabetes as load
from sample_models.train.training import export_torchscript, fit

__all__ = ["load", "train", "write_samples"]


class Regressor(nn.Module):
    """Three dense layers on the standardised features; the output is scaled back to the target's own units."""

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.dense = nn.Sequential(nn.Linear(10, 64), nn.Tanh(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 1))
        self.mean, self.std = mean, std

    def forward(self, features: Tensor) -> Tensor:
        return self.std * self.dense(features) + self.mean


def train(split: Split) -> onnx.ModelProto:
    torch.manual_seed(0)
    mean, std = float(split.train_y.mean()), float(split.train_y.std())
    network = Regressor(mean, std)

    def relative_squared_error(predicted: Tensor, target: Tensor) -> Tensor:
        return nn.functional.mse_loss(predicted / std, target / std)

    # Few epochs and a strong decay: the network has eight weights for every training sample.
    fit(network, split.train_x, split.train_y, relative_squared_error, epochs=30, learning_rate=2e-3, weight_decay=0.3)
    return export_torchscript(network, split.train_x[:1], names=("features", "progression"), opset=11)


def write_samples(split: Split, model: Path) -> None:
    """An .npy without labels, and the targets in another .npy outside the folder."""
    folder = model.with_name(f"{model.stem}_calib")
    folder.mkdir()
    np.save(folder / "features.npy", split.train_x)
    np.save(model.with_name(f"{model.stem}_targets.npy"), split.train_y)
