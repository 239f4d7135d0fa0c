"""A head whose loss the user wrote: ``--objective module:function``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from onnx_obd.calibration.heads import Columns, random_normal

Target = tuple[Tensor, Tensor | None]
"""The original's output, and the labels."""

MAX_EXACT = 256
"""Elements per sample up to which the Hessian with respect to the output is computed whole."""

NUM_SIGNS = 16
"""Random sign vectors for its diagonal where it is larger."""


@dataclass(frozen=True)
class CustomHead(Columns):
    """loss = function(z, z₀, labels): a scalar, the mean over the samples of a batch, twice differentiable in z.

    z and z₀ are the first float output of the pruned and of the original model, labels a tensor or None. The Hessian
    with respect to z, sample by sample, is computed by double back-propagation: whole up to ``MAX_EXACT`` elements per
    sample, its diagonal by random signs beyond (Bekas, Kokiopoulou, Saad 2007). Negative curvature is cut to zero.
    """

    value: str
    slot: int
    name: str
    function: Callable[[Tensor, Tensor, Tensor | None], Tensor] = field(repr=False)
    weight: float = 1.0

    def target(self, z: Tensor, labels: Tensor | None) -> Target:
        return z.detach().clone(), labels

    def loss(self, z: Tensor, target: Target, count: int) -> Tensor:
        return self.weight * self.function(z, *target)

    def hessian_diag(self, z: Tensor, target: Target, count: int) -> Tensor:
        hessian = self._hessian(z, target, count)
        if hessian is not None:
            return hessian.diagonal(dim1=1, dim2=2).clamp_min(0).reshape(z.shape)
        return self._diagonal(z, target).clamp_min(0)

    def draw(self, z: Tensor, target: Target, count: int, generator: torch.Generator) -> Tensor:
        """A loss of the user's has no labels to sample: a normal vector of the same covariance instead."""
        return self.factor(z, target, count, random_normal(z, generator))

    def factor(self, z: Tensor, target: Target, count: int, e: Tensor) -> Tensor:
        hessian = self._hessian(z, target, count)
        if hessian is None:
            return self._diagonal(z, target).clamp_min(0).sqrt() * e
        values, vectors = torch.linalg.eigh(hessian)
        factor = vectors * values.clamp_min(0).sqrt()[:, None, :]
        return (factor @ e.reshape(count, -1, 1)).reshape(z.shape)

    def _hessian(self, z: Tensor, target: Target, count: int) -> Tensor | None:
        """[count, elements, elements], or None where an output is too large."""
        elements = z.numel() // count
        if elements > MAX_EXACT:
            return None
        columns = []
        for index in range(elements):
            direction = torch.zeros(count, elements, dtype=z.dtype, device=z.device)
            direction[:, index] = 1
            columns.append(self._product(z, target, direction.reshape(z.shape)).reshape(count, elements))
        return torch.stack(columns, 2)

    def _diagonal(self, z: Tensor, target: Target) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        total = torch.zeros_like(z)
        for _ in range(NUM_SIGNS):
            signs = (2 * torch.randint(0, 2, z.shape, generator=generator) - 1).to(z)
            total += signs * self._product(z, target, signs)
        return total / NUM_SIGNS

    def _product(self, z: Tensor, target: Target, direction: Tensor) -> Tensor:
        """Hessian times vector."""
        with torch.enable_grad():
            leaf = z.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.loss(leaf, target, len(z)), leaf, create_graph=True)
            if not slope.requires_grad:
                return torch.zeros_like(z)
            (product,) = torch.autograd.grad(slope, leaf, direction, allow_unused=True)
        return torch.zeros_like(z) if product is None else product

    def describe(self) -> str:
        return f"{self.name} of '{self.value}'"
