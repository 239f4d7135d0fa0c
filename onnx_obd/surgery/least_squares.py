"""Linear systems of rows that share one Gram matrix but not the columns they may use.

Row r of a pruned weight has its survivors S and the system A_SS + ridge · mean(diag A) I. Where few supports are shared
by many rows (units were removed) each is factorised once. Otherwise rows with about as many survivors are gathered,
filled up with columns decoupled by ones, and handled in batches of bounded size. Of a row that has lost less than half,
the system of the deleted columns D is solved instead, which is smaller: with P the inverse of the whole damped A and
y = P b, the solution that vanishes on D is y - P_·D P_DD⁻¹ y_D.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

RIDGE = 0.01
"""Added to the diagonal of a Gram matrix, as a fraction of its mean: what few samples do not determine stays put."""

CHUNK_NUMBERS = 1 << 20
"""Numbers in the matrices of one batch at most: 8 MiB, which caches hold and the C library keeps. Four times as fast as
128 MiB, most of whose time goes to the system for pages."""

SHARED_BY = 4
"""Rows to a support, on average, from which on the supports are solved one by one."""


@dataclass(frozen=True)
class _Systems:
    """Some rows [n], their columns [n, s], which of these they use [n, s], and their matrices [n, s, s]."""

    rows: Tensor
    columns: Tensor
    used: Tensor
    matrices: Tensor

    @property
    def place(self) -> tuple[Tensor, Tensor]:
        """Where a result [n, s] stands in a matrix [G · R, K]."""
        return self.rows[:, None], self.columns


def solve_supported(gram: Tensor, targets: Tensor, support: Tensor, ridge: float = RIDGE) -> Tensor:
    """D with (A_SS + ridge · mean(diag A) I) D_S = B_S for each row, zero off its support S.

    Args:
        gram: A [G, K, K], symmetric, non-negative definite, float64.
        targets: B [G, R, K].
        support: boolean [G, R, K].
        ridge: fraction of the mean of A's diagonal.

    Returns:
        D [G, R, K].
    """
    result, apart = torch.zeros_like(targets), support.clone()
    for group in range(len(gram)) if SHARED_BY <= support.shape[1] else ():
        supports, which = torch.unique(support[group], dim=0, return_inverse=True)
        if SHARED_BY * len(supports) <= len(which):
            result[group] = _solve_shared(_damped(gram[group], ridge), targets[group], supports, which)
            apart[group] = False
    most = apart.sum(-1, keepdim=True) > apart.shape[-1] / 2
    result += _solve_rows(_damped(gram, ridge), targets, apart & ~most)
    if most.any():
        inverse = torch.linalg.inv(_damped(gram, ridge))
        whole = (targets * apart) @ inverse
        multipliers = _solve_rows(inverse, whole, ~apart & most)
        result = torch.where(apart & most, whole - multipliers @ inverse, result)
    return result


def _solve_shared(matrix: Tensor, targets: Tensor, supports: Tensor, which: Tensor) -> Tensor:
    """D [R, K] of rows ``which`` [R] of the ``supports`` [n, K]."""
    result = torch.zeros_like(targets)
    for number, shared in enumerate(supports):
        rows, columns = (which == number).nonzero(), shared.nonzero()[:, 0]
        system = matrix[columns[:, None], columns]
        result[rows, columns] = torch.linalg.solve(system, targets[rows, columns].mT).mT
    return result


def _solve_rows(matrices: Tensor, targets: Tensor, support: Tensor) -> Tensor:
    """D with M_SS D_S = B_S, zero off the support; M [G, K, K] positive definite."""
    b = targets.flatten(0, 1)
    found = torch.zeros(b.shape, dtype=b.dtype)
    for systems in _systems(matrices, support):
        factor = torch.linalg.cholesky(systems.matrices)
        found[systems.place] = torch.cholesky_solve((b[systems.place] * systems.used)[..., None], factor)[..., 0]
    return found.view(targets.shape)


def inverse_diagonal(gram: Tensor, support: Tensor, ridge: float = RIDGE) -> Tensor:
    """[(A_SS + ridge · mean(diag A) I)⁻¹]_qq for each row on its support S, infinite off it.

    Args and shapes as in ``solve_supported``.
    """
    result = torch.full(support.shape, torch.inf, dtype=gram.dtype).flatten(0, 1)
    for systems in _systems(_damped(gram, ridge), support):
        # A = L Lᵀ, so the diagonal of A⁻¹ = L⁻ᵀ L⁻¹ sums the squares of L⁻¹ over its rows.
        unit = torch.eye(systems.matrices.shape[1], dtype=gram.dtype).expand_as(systems.matrices)
        inverse = torch.linalg.solve_triangular(torch.linalg.cholesky(systems.matrices), unit, upper=False)
        found = inverse.square().sum(1)
        result[systems.place] = torch.where(systems.used, found, torch.inf)
    return result.view_as(support)


def _damped(gram: Tensor, ridge: float) -> Tensor:
    """Of one matrix or of several."""
    mean = gram.diagonal(dim1=-2, dim2=-1).mean(-1)
    damping = ridge * torch.where(mean > 0, mean, 1.0)
    return gram + damping[..., None, None] * torch.eye(gram.shape[-1], dtype=gram.dtype)


def _systems(matrices: Tensor, support: Tensor) -> Iterator[_Systems]:
    """The systems M_SS of all rows [G · R] that have survivors, those of most first."""
    of_group, support = support.shape[1], support.flatten(0, 1)
    sizes = support.sum(1)
    order = torch.argsort(sizes, descending=True)[: int((sizes > 0).sum())]
    widths, start = sizes[order].tolist(), 0
    while start < len(order):
        width = widths[start]
        rows = order[start : start + max(1, CHUNK_NUMBERS // width**2)]
        columns = torch.argsort(support[rows].to(torch.int8), dim=1, descending=True, stable=True)[:, :width]
        used = torch.gather(support[rows], 1, columns)
        found = matrices[(rows // of_group)[:, None, None], columns[:, :, None], columns[:, None, :]]
        found *= used[:, :, None] & used[:, None, :]
        found.diagonal(dim1=1, dim2=2).add_(~used)
        yield _Systems(rows, columns, used, found)
        start += len(rows)
