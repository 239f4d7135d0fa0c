"""A small vision transformer on the digits; exported by torch, opset 20.

From this opset on, Gelu and LayerNormalization are one node each.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from PIL import Image
from torch import Tensor, nn

from sample_models.train.datasets import Split
from sample_models.train.datasets import digits as load
from sample_models.train.training import export, fit

__all__ = ["load", "train", "write_samples"]

WIDTH = 48
HEADS = 4
TOKENS = 16
IMAGES_PER_CLASS = 30


class SelfAttention(nn.Module):
    """Multi-head self-attention over tokens [N, T, WIDTH]."""

    def __init__(self) -> None:
        super().__init__()
        self.query_key_value = nn.Linear(WIDTH, 3 * WIDTH)
        self.projection = nn.Linear(WIDTH, WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        heads = self.query_key_value(tokens).view(-1, TOKENS, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        query, key, value = heads.unbind(0)
        attention = (query @ key.transpose(-1, -2) * (WIDTH // HEADS) ** -0.5).softmax(dim=-1)
        return self.projection((attention @ value).transpose(1, 2).reshape(-1, TOKENS, WIDTH))


class Block(nn.Module):
    """Attention and a two-layer network, each behind a LayerNorm and beside a residual connection."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(WIDTH)
        self.attention = SelfAttention()
        self.dense_norm = nn.LayerNorm(WIDTH)
        self.dense = nn.Sequential(nn.Linear(WIDTH, 128), nn.GELU(), nn.Linear(128, WIDTH))

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attention(self.attention_norm(tokens))
        return tokens + self.dense(self.dense_norm(tokens))


class Transformer(nn.Module):
    """Patches of 2x2 pixels as tokens, two blocks, the mean over the tokens, logits."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, WIDTH, kernel_size=2, stride=2)
        # Wide apart from the start: there is too little data to learn slowly where a patch sits.
        self.position = nn.Parameter(0.5 * torch.randn(TOKENS, WIDTH))
        self.blocks = nn.Sequential(Block(), Block())
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.patches(image).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.blocks(tokens)).mean(dim=1))


def train(split: Split) -> onnx.ModelProto:
    torch.manual_seed(0)
    network = Transformer()
    fit(network, split.train_x, split.train_y, nn.functional.cross_entropy, epochs=60, learning_rate=2e-3)
    return export(network, split.train_x[:2], names=("image", "logits"), opset=20)


def write_samples(split: Split, model: Path) -> None:
    """8-bit grey images in one folder for each class, and preprocess.toml, which says how they become the input."""
    folder = model.with_name(f"{model.stem}_calib")
    folder.mkdir()
    for label in range(10):
        (folder / str(label)).mkdir()
        for index in np.flatnonzero(split.train_y == label)[:IMAGES_PER_CLASS]:
            pixels = np.round(255 * split.train_x[index, 0]).astype(np.uint8)
            Image.fromarray(pixels).save(folder / str(label) / f"{index:04}.png")
    (folder / "preprocess.toml").write_text(PREPROCESS)


PREPROCESS = """\
# The network takes grey images with values in [0, 1].
channels = "gray"
scale = "1/255"
"""
