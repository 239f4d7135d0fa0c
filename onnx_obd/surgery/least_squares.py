"""Linear systems of rows that share one Gram matrix but not the columns they may use.

Row r of a pruned weight has its survivors S and the system A_SS + ridge · mean(diag A) I. Where few supports are shared
by many rows (units were removed) each is factorised once. Otherwise rows with about as many survivors are gathered,
filled up with columns decoupled by ones, and handled in batches of bounded size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

RIDGE = 0.01
"""Added to the diagonal of a Gram matrix, as a fraction of its mean: what few samples do not determine stays put."""

CHUNK_NUMBERS = 1 << 24
"""Numbers in the matrices of one batch at most (128 MiB)."""


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
        """Where a result [n, s] stands in a matrix [R, K]."""
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
    result = torch.zeros_like(targets)
    for group, matrix in enumerate(gram):
        supports, which = torch.unique(support[group], dim=0, return_inverse=True)
        if SHARED_BY * len(supports) <= len(which):
            for number, shared in enumerate(supports):
                rows, columns = (which == number).nonzero(), shared.nonzero()[:, 0]
                system = _damped(matrix, ridge)[columns[:, None], columns]
                result[group][rows, columns] = torch.linalg.solve(system, targets[group][rows, columns].mT).mT
            continue
        for systems in _systems(matrix, support[group], ridge):
            b = targets[group][systems.place] * systems.used
            factor = torch.linalg.cholesky(systems.matrices)
            result[group][systems.place] = torch.cholesky_solve(b[..., None], factor)[..., 0]
    return result


def inverse_diagonal(gram: Tensor, support: Tensor, ridge: float = RIDGE) -> Tensor:
    """[(A_SS + ridge · mean(diag A) I)⁻¹]_qq for each row on its support S, infinite off it.

    Args and shapes as in ``solve_supported``.
    """
    result = torch.full(support.shape, torch.inf, dtype=gram.dtype)
    for group, matrix in enumerate(gram):
        for systems in _systems(matrix, support[group], ridge):
            # A = L Lᵀ, so the diagonal of A⁻¹ = L⁻ᵀ L⁻¹ sums the squares of L⁻¹ over its rows.
            unit = torch.eye(systems.matrices.shape[1], dtype=gram.dtype).expand_as(systems.matrices)
            inverse = torch.linalg.solve_triangular(torch.linalg.cholesky(systems.matrices), unit, upper=False)
            found = inverse.square().sum(1)
            result[group][systems.place] = torch.where(systems.used, found, torch.inf)
    return result


def _damping(a: Tensor, ridge: float) -> Tensor:
    mean = a.diagonal().mean()
    return ridge * torch.where(mean > 0, mean, 1.0)


def _damped(a: Tensor, ridge: float) -> Tensor:
    return a + _damping(a, ridge) * torch.eye(len(a), dtype=a.dtype)


def _systems(a: Tensor, support: Tensor, ridge: float) -> Iterator[_Systems]:
    damping = _damping(a, ridge)
    sizes = support.sum(1)
    order = torch.argsort(sizes, descending=True)
    start = 0
    while start < len(order) and sizes[order[start]] > 0:
        width = int(sizes[order[start]])
        rows = order[start : start + max(1, CHUNK_NUMBERS // width**2)]
        columns = torch.argsort(support[rows].to(torch.int8), dim=1, descending=True, stable=True)[:, :width]
        used = torch.gather(support[rows], 1, columns)
        matrices = a[columns[:, :, None], columns[:, None, :]] * (used[:, :, None] & used[:, None, :])
        matrices.diagonal(dim1=1, dim2=2).add_(torch.where(used, damping, 1.0))
        yield _Systems(rows, columns, used, matrices)
        start += len(rows)
