"""A recurrent network that reads the digits row by row; exported by torch's older exporter, opset 13."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from sample_models.train.datasets import Split, digits
from sample_models.train.training import export_torchscript, fit

CALIBRATION_SAMPLES = 300


class RowReader(nn.Module):
    """One LSTM over the rows [N, 8, 8]; logits from its last output."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(input_size=8, hidden_size=96, batch_first=True)
        self.head = nn.Linear(96, 10)

    def forward(self, rows: Tensor) -> Tensor:
        outputs, _ = self.lstm(rows)
        return self.head(outputs[:, -1])


def load() -> Split:
    """The digits as sequences [8, 8] of rows."""
    split = digits()
    return replace(split, train_x=split.train_x[:, 0], test_x=split.test_x[:, 0])


def train(split: Split) -> onnx.ModelProto:
    torch.manual_seed(0)
    network = RowReader()
    fit(network, split.train_x, split.train_y, nn.functional.cross_entropy, epochs=60, learning_rate=5e-3)
    return export_torchscript(network, split.train_x[:1], names=("rows", "logits"), opset=13)


def write_samples(split: Split, model: Path) -> None:
    """An .npz without labels; its one array has the name of the model's input."""
    folder = model.with_name(f"{model.stem}_calib")
    folder.mkdir()
    np.savez_compressed(folder / "digits.npz", rows=split.train_x[:CALIBRATION_SAMPLES])
