"""Zeroing weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from onnx_obd.mirror.mirror import Mirror


def snapshot(mirror: Mirror) -> dict[str, Tensor]:
    """A copy of all weights."""
    return {name: weight.detach().clone() for name, weight in mirror.weights.items()}


def restore(mirror: Mirror, weights: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in weights.items():
            mirror.weights[name].copy_(value)


def apply_masks(mirror: Mirror, keep: Mapping[str, Tensor]) -> None:
    """Set to +0.0 every weight whose mask is False; the others keep their bits."""
    with torch.no_grad():
        for name, mask in keep.items():
            weight = mirror.weights[name]
            weight.masked_fill_(~mask.to(weight.device), 0.0)
