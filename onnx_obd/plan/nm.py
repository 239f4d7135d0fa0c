"""n:m sparsity: at most n non-zeros among m consecutive entries, as sparse tensor cores read them (2:4).

Where the entries are consecutive decides whether a runtime can use them: along what the node sums over. For a
convolution's kernel [K, C, R, S] that is C, for each k, r and s on its own; for a matrix the axis of the reduction.

Source: NVIDIA TensorRT documentation, "Structured Sparsity" (for each output channel and kernel position, every four
input channels); cuSPARSELt documentation (half of the structured operand, along the reduction). m has to divide the
axis.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from onnx_obd.errors import UsageError
from onnx_obd.records import Saliency

WHO_PROFITS = (
    "TensorRT (sparse weights enabled, Ampere or newer) and cuSPARSELt can use it; "
    "onnxruntime's CPU kernels compute the zeros like any number"
)


@dataclass(frozen=True)
class Pattern:
    """At most ``n`` non-zeros among ``m`` consecutive entries."""

    n: int
    m: int

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """ "2:4" as a pattern.

        Raises:
            UsageError: not two whole numbers 0 < n < m.
        """
        found = re.fullmatch(r"(\d{1,4}):(\d{1,4})", text.strip())
        if not found or not 0 < int(found[1]) < int(found[2]):
            raise UsageError(f"'{text}' is not a pattern n:m with 0 < n < m, such as 2:4")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    def fits(self, shape: tuple[int, ...], axis: int) -> bool:
        """Can a tensor of this shape have the pattern along the axis? m has to divide its length."""
        return shape[axis] > 0 and shape[axis] % self.m == 0

    def keep(self, scores: Tensor, axis: int) -> Tensor:
        """The mask that keeps the n highest scores of every m consecutive ones along the axis; ties by position."""
        groups = scores.movedim(axis, -1).unflatten(-1, (-1, self.m))
        order = torch.argsort(groups, dim=-1, descending=True, stable=True)
        mask = torch.zeros(groups.shape, dtype=torch.bool, device=scores.device)
        mask.scatter_(-1, order[..., : self.n], True)
        return mask.flatten(-2).movedim(-1, axis)

    def violations(self, weight: np.ndarray, axis: int) -> int:
        """How many groups of m hold more than n non-zeros: counted anew from the numbers in a file."""
        columns = np.moveaxis(weight, axis, 0)
        nonzero = (columns.reshape(len(columns) // self.m, self.m, -1) != 0).sum(1)
        return int((nonzero > self.n).sum())


def reduction_axis(elements: Tensor, shape: tuple[int, ...]) -> int:
    """The axis of a weight that its node sums over; of a kernel the input channels, not the offsets in the window.

    It is the first axis that does more than tell the outputs apart.

    Args:
        elements: int64 [G, R, K]: which element of the flattened weight multiplies feature k for output r of group g.
        shape: of the weight.
    """
    index = torch.stack(torch.unravel_index(elements, shape))  # [rank, G, R, K]
    summed = (index != index[..., :1]).flatten(1).any(1)
    tells_outputs = (index != index[:, :1, :1]).flatten(1).any(1)
    return next((axis for axis in range(len(shape)) if summed[axis] or not tells_outputs[axis]), len(shape) - 1)


def restrict(
    saliency: Saliency, pattern: Pattern, axes: Mapping[str, int], keep: Mapping[str, Tensor]
) -> tuple[Saliency, float]:
    """Scores under which only what the pattern deletes can go, and the sparsity at which all of that is gone.

    What ``keep`` has deleted counts among its group's zeros. Weights without an axis stay whole; what is not to go has
    an infinite score, so a plan may also go part of the way.

    Args:
        axes: the axis along which the entries of a weight are consecutive, for the weights that get the pattern.
    """
    scores, gone, total = {}, 0, 0
    for name, values in saliency.scores.items():
        alive = keep[name]
        stays = alive
        if name in axes:
            stays = pattern.keep(torch.where(alive, values.double(), -math.inf), axes[name]) & alive
        scores[name] = torch.where(stays, math.inf, values.double())
        gone += int((~stays).sum())
        total += values.numel()
    return replace(saliency, scores=scores), gone / total
