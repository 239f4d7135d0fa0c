"""oneDNN's kernels, called by name where torch would take others that are slower.

Without gradients, in float32, on a CPU; torch.func and composite rules know nothing of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from onnx_obd.mirror.tracing import calls_are_changed

MANY_PRODUCTS = 1 << 20
"""Multiplications from which it pays: below, oneDNN takes longer to set up than the others take to compute.

Beyond, a convolution or matrix product is up to twice as fast (measured with one thread).
"""


def applies(x: Tensor) -> bool:
    return (
        x.is_cpu and x.dtype == torch.float32 and not torch.is_grad_enabled() and torch.backends.mkldnn.is_available()
        and not torch._C._are_functorch_transforms_active() and not calls_are_changed()
    )  # fmt: skip


def multiplies(x: Tensor, columns: int) -> bool:
    """Whether it is the one to multiply the rows of x by a matrix of so many columns."""
    return x.numel() * columns >= MANY_PRODUCTS and applies(x)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + bias, as ``torch.nn.functional.linear``."""
    if x.shape[-1] != weight.shape[-1]:  # of which oneDNN says nothing that helps, and torch does
        return torch.nn.functional.linear(x, weight, bias)
    if not (weight.is_contiguous() or weight.mT.is_contiguous()):
        weight = weight.contiguous()  # or oneDNN takes its reference kernel, which is a thousand times slower
    return torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, strides, padding, dilations, group: int) -> Tensor:
    return torch.mkldnn_convolution(x, weight, bias, padding, strides, dilations, group)
