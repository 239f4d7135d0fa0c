"""Heads: how far one output has moved, with first and second derivatives in closed form.

A head looks at one value z of the graph for a batch of samples and compares it with a target that was computed
once. Its Hessian with respect to z is known exactly as H = S Sᵀ, sample by sample. Because the loss is a divergence
from the target, at z = original output its gradient is zero and its Hessian is the whole Gauss-Newton matrix: the
assumption of Optimal Brain Damage that the network stands at a minimum ("extremal approximation", Le Cun, Denker,
Solla 1989, section 2) then holds by construction, with no training and no labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor


class Head(Protocol):
    """``z`` is the value for a batch of ``count`` samples, ``target`` what the method of that name returned for them.

    Losses and derivatives are of the mean over the samples.
    """

    value: str
    slot: int
    weight: float

    def target(self, z: Tensor, labels: Tensor | None) -> Any:
        """What later values are compared with: from the original's value, or from the labels if there are any."""

    def loss(self, z: Tensor, target: Any, count: int) -> Tensor:
        """The mean divergence per sample, a scalar."""

    def hessian_diag(self, z: Tensor, target: Any, count: int) -> Tensor:
        """The diagonal of d2 loss / dz2, of z's shape."""

    def factor(self, z: Tensor, target: Any, count: int, e: Tensor) -> Tensor:
        """S e for e of z's shape, where S Sᵀ = d2 loss / dz2 and S mixes no samples."""

    def columns(self, z: Tensor, target: Any, count: int) -> Iterator[Tensor]:
        """Vectors of z's shape, each with one column of S for every sample: their u uᵀ sum to d2 loss / dz2 exactly.

        Samples stand on axis 0 of z.
        """

    def draw(self, z: Tensor, target: Any, count: int, generator: torch.Generator) -> Tensor:
        """A gradient for labels sampled from what the model itself predicts: E[u uᵀ] = d2 loss / dz2 too."""

    def describe(self) -> str: ...


def random_signs(like: Tensor, generator: torch.Generator) -> Tensor:
    bits = torch.randint(0, 2, like.shape, generator=generator, device=generator.device)
    return (2 * bits - 1).to(like)


def random_normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, device=generator.device).to(like)


class Columns:
    """Every column of ``factor``, one for each element of a sample."""

    def columns(self, z: Tensor, target: Any, count: int) -> Iterator[Tensor]:
        for index in range(z.numel() // count):
            e = torch.zeros(count, z.numel() // count, dtype=z.dtype, device=z.device)
            e[:, index] = 1
            yield self.factor(z, target, count, e.view(z.shape))


def _as_rows(rows: Callable[[Tensor], Tensor], z: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The rows of z, and the way back from a tensor of rows to z's shape."""
    matrix = rows(z.detach())
    if matrix.data_ptr() == z.data_ptr() and (matrix.shape, matrix.stride()) == (z.shape, z.stride()):
        return matrix, lambda m: m
    with torch.enable_grad():
        leaf = z.detach().requires_grad_()
        matrix = rows(leaf)
    return matrix.detach(), lambda m: torch.autograd.grad(matrix, leaf, m, retain_graph=True)[0]


@dataclass(frozen=True)
class SoftmaxHead:
    """Softened Kullback-Leibler divergence of softmax distributions over the rows of logits z.

    L = mean over rows of KL(t ‖ p),  p = softmax(z / T);  H = (diag(p) − p pᵀ) / T² per row, divided by the rows.

    t is softmax(z₀ / T) of the original, or one-hot labels (then L is the cross-entropy). ``rows`` views z
    as [rows, classes].
    """

    value: str
    slot: int
    rows: Callable[[Tensor], Tensor]
    temperature: float
    weight: float = 1.0

    def target(self, z: Tensor, labels: Tensor | None) -> Tensor:
        rows = self.rows(z)
        if labels is None:
            return torch.softmax(rows / self.temperature, -1)
        return torch.nn.functional.one_hot(labels, rows.shape[-1]).to(rows)

    def loss(self, z: Tensor, target: Tensor, count: int) -> Tensor:
        log_p = torch.log_softmax(self.rows(z) / self.temperature, -1)
        divergence = torch.special.xlogy(target, target) - target * log_p
        return self.weight * divergence.sum(-1).mean()

    def hessian_diag(self, z: Tensor, target: Tensor, count: int) -> Tensor:
        rows, back = _as_rows(self.rows, z)
        p = torch.softmax(rows / self.temperature, -1)
        return back(p * (1 - p) * (self.weight / len(rows) / self.temperature**2))

    def factor(self, z: Tensor, target: Tensor, count: int, e: Tensor) -> Tensor:
        rows, back = _as_rows(self.rows, z)
        p = torch.softmax(rows / self.temperature, -1)
        column = p.sqrt() * self.rows(e)
        return back((column - p * column.sum(-1, keepdim=True)) * self._scale(rows))

    def columns(self, z: Tensor, target: Tensor, count: int) -> Iterator[Tensor]:
        """diag(p) − p pᵀ has one column fewer than classes: its Cholesky factor in closed form.

        Column k is √(p_k q_k / q_{k−1}) on the diagonal and −p_j / q_k times that below, with q_k = Σ_{j > k} p_j.

        Source: Tanabe, Sagae 1992, "An exact Cholesky decomposition [...] of the variance-covariance matrix of the
        multinomial distribution".
        """
        rows, back = _as_rows(self.rows, z)
        p = torch.softmax(rows / self.temperature, -1)
        rest = p.flip(-1).cumsum(-1).flip(-1)  # q_{k-1}
        for k in range(p.shape[-1] - 1):
            behind = rest[:, k + 1]
            diagonal = (p[:, k] * behind / rest[:, k]).nan_to_num(0).sqrt()
            column = -p * (diagonal / behind).nan_to_num(0, 0, 0)[:, None]
            column[:, :k], column[:, k] = 0, diagonal
            per_sample = (column * self._scale(rows)).unflatten(0, (count, -1))
            for row in range(per_sample.shape[1]):
                alone = torch.zeros_like(per_sample)
                alone[:, row] = per_sample[:, row]
                yield back(alone.flatten(0, 1))

    def draw(self, z: Tensor, target: Tensor, count: int, generator: torch.Generator) -> Tensor:
        rows, back = _as_rows(self.rows, z)
        p = torch.softmax(rows / self.temperature, -1)
        drawn = torch.multinomial(p.float().to(generator.device), 1, generator=generator).to(p.device)
        return back((p - torch.zeros_like(p).scatter(-1, drawn, 1.0)) * self._scale(rows))

    def _scale(self, rows: Tensor) -> float:
        return (self.weight / len(rows)) ** 0.5 / self.temperature

    def describe(self) -> str:
        return f"KL divergence of softmax('{self.value}' / {self.temperature:.3g})"


@dataclass(frozen=True)
class ProbabilityHead:
    """The same divergence where the graph hands out only the probabilities p: their logarithms are the logits.

    L as in ``SoftmaxHead`` with z = log p; dz/dp = 1 / p takes H and S back to p. Probabilities below ``FLOOR`` count
    as that much.
    """

    value: str
    slot: int
    temperature: float
    weight: float = 1.0

    FLOOR: ClassVar[float] = 1e-6

    @property
    def _logits(self) -> SoftmaxHead:
        return SoftmaxHead(self.value, self.slot, self.rows, self.temperature, self.weight)

    def rows(self, p: Tensor) -> Tensor:
        return p.reshape(-1, p.shape[-1])

    def _log(self, p: Tensor) -> Tensor:
        return p.clamp_min(self.FLOOR).log()

    def target(self, p: Tensor, labels: Tensor | None) -> Tensor:
        return self._logits.target(self._log(p), labels)

    def loss(self, p: Tensor, target: Tensor, count: int) -> Tensor:
        return self._logits.loss(self._log(p), target, count)

    def hessian_diag(self, p: Tensor, target: Tensor, count: int) -> Tensor:
        return self._logits.hessian_diag(self._log(p), target, count) * self._slope(p).square()

    def factor(self, p: Tensor, target: Tensor, count: int, e: Tensor) -> Tensor:
        return self._logits.factor(self._log(p), target, count, e) * self._slope(p)

    def columns(self, p: Tensor, target: Tensor, count: int) -> Iterator[Tensor]:
        slope = self._slope(p)
        for column in self._logits.columns(self._log(p), target, count):
            yield column * slope

    def draw(self, p: Tensor, target: Tensor, count: int, generator: torch.Generator) -> Tensor:
        return self._logits.draw(self._log(p), target, count, generator) * self._slope(p)

    def _slope(self, p: Tensor) -> Tensor:
        return (p >= self.FLOOR) / p.clamp_min(self.FLOOR)

    def describe(self) -> str:
        return f"KL divergence of probabilities '{self.value}' softened by {self.temperature:.3g}"


@dataclass(frozen=True)
class SigmoidHead(Columns):
    """Softened Kullback-Leibler divergence of independent Bernoulli distributions with logits z.

    L = mean over elements of KL(t ‖ p),  p = σ(z / T);  H = diag(p (1 − p)) / T² divided by the elements.
    """

    value: str
    slot: int
    temperature: float
    weight: float = 1.0

    def target(self, z: Tensor, labels: Tensor | None) -> Tensor:
        return torch.sigmoid(z / self.temperature) if labels is None else labels.to(z).reshape(z.shape)

    def loss(self, z: Tensor, target: Tensor, count: int) -> Tensor:
        z = z / self.temperature
        cross = torch.nn.functional.binary_cross_entropy_with_logits(z, target)
        entropy = torch.special.entr(target) + torch.special.entr(1 - target)
        return self.weight * (cross - entropy.mean())

    def hessian_diag(self, z: Tensor, target: Tensor, count: int) -> Tensor:
        p = torch.sigmoid(z / self.temperature)
        return p * (1 - p) * (self.weight / z.numel() / self.temperature**2)

    def factor(self, z: Tensor, target: Tensor, count: int, e: Tensor) -> Tensor:
        return self.hessian_diag(z, target, count).sqrt() * e

    def draw(self, z: Tensor, target: Tensor, count: int, generator: torch.Generator) -> Tensor:
        p = torch.sigmoid(z / self.temperature)
        drawn = torch.rand(z.shape, generator=generator, device=generator.device).to(z) < p
        return (p - drawn.to(z)) * ((self.weight / z.numel()) ** 0.5 / self.temperature)

    def describe(self) -> str:
        return f"KL divergence of sigmoid('{self.value}' / {self.temperature:.3g})"


@dataclass(frozen=True)
class SquaredHead(Columns):
    """Half the squared error, in units of the variance the output has over the samples.

    L = ½ · mean over elements of (z − t)² / variance;  H = 1 / (elements · variance), diagonal.
    """

    value: str
    slot: int
    variance: float
    weight: float = 1.0

    def target(self, z: Tensor, labels: Tensor | None) -> Tensor:
        return z.clone() if labels is None else labels.to(z).reshape(z.shape)

    def loss(self, z: Tensor, target: Tensor, count: int) -> Tensor:
        return 0.5 * self.weight / self.variance * (z - target).square().mean()

    def hessian_diag(self, z: Tensor, target: Tensor, count: int) -> Tensor:
        return torch.full_like(z, self.weight / (self.variance * z.numel()))

    def factor(self, z: Tensor, target: Tensor, count: int, e: Tensor) -> Tensor:
        return self.hessian_diag(z, target, count).sqrt() * e

    def draw(self, z: Tensor, target: Tensor, count: int, generator: torch.Generator) -> Tensor:
        return self.factor(z, target, count, random_normal(z, generator))

    def describe(self) -> str:
        return f"squared error of '{self.value}' / variance {self.variance:.3g}"
