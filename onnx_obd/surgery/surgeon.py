"""The optimal brain surgeon: inverse Hessians row by row, and the update that makes up for what was deleted.

The weights of one output r have the Hessian H_r = c_r · A with A = XᵀX / N, the Gram matrix of the node's inputs over N
positions, and c_r the curvature of the loss with respect to the output. From LeCun's recursion, h = c_r · diag(A)
summed over the row gives c_r in units of the loss, so that rows of all tensors compare. Rows share A, not its inverse:
each has its own survivors. Wide nodes take diagonal blocks of A.

Source: Hassibi, Stork 1993; block by block as in Frantar, Alistarh 2022.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from onnx_obd.calibration.measure import Calibration
from onnx_obd.surgery.gram import Gram, collect_grams
from onnx_obd.surgery.least_squares import inverse_diagonal, solve_supported
from onnx_obd.surgery.operands import Operand

WORK = 6e9
"""Multiplications that the inverses may take, about: few weights get wide blocks, many get narrow ones."""

BLOCKS = (16, 256)
"""The least and the most columns whose interplay is taken into account: an inverse per row costs the cube of them."""

DAMPING = 1.0
"""Added to every c_r, as a fraction of the mean over the node: an output that is silent on all samples may yet wake."""


def surgeon_curvature(
    calibration: Calibration, operands: Sequence[Operand], h: Mapping[str, Tensor], seed: int = 0
) -> dict[str, Tensor]:
    """1 / [H_r⁻¹]_qq for every weight q of every output r, of the weights' shapes; h + mean(h) where no A is known.

    Args:
        h: diagonal curvature of the mirror's present weights.
    """
    mirror = calibration.mirror
    found = {name: value + value.mean() for name, value in h.items()}
    for operand, gram in _grams(calibration, [each for each in operands if each.name in h], seed):
        weight = mirror.weights[operand.name].detach()
        curvature = output_curvature(operand.matrix(h[operand.name]).double(), gram)
        support = operand.matrix(weight) != 0
        inverse = torch.cat([inverse_diagonal(a, support[..., block]) for block, a in gram.blocks], -1)
        found[operand.name] = operand.unmatrix(curvature[..., None] / inverse, weight)
    return found


def output_curvature(h: Tensor, gram: Gram) -> Tensor:
    """c [G, R], damped, from the curvature h [G, R, K] of a node's weights: c_r = sum_q h_rq / sum_q A_qq."""
    squares = sum(a.diagonal(dim1=1, dim2=2).sum(1) for _, a in gram.blocks)
    c = h.sum(-1) / torch.where(squares > 0, squares, 1.0)[:, None]
    return c + DAMPING * c.mean()


def compensating_updates(
    calibration: Calibration, operands: Sequence[Operand], before: Mapping[str, Tensor], seed: int = 0
) -> dict[str, Tensor]:
    """The changes d of the survivors S that make up for the weights D deleted since ``before``: A_SS d_S = A_SD w_D.

    Together, not one weight at a time, which is the same where the first order of the loss vanishes.
    """
    mirror, found = calibration.mirror, {}
    for operand, gram in _grams(calibration, operands, seed):
        weight = mirror.weights[operand.name].detach()
        support = operand.matrix(weight) != 0
        deleted = operand.matrix(before[operand.name] - weight).double()
        parts = [solve_supported(a, deleted[..., block] @ a, support[..., block]) for block, a in gram.blocks]
        found[operand.name] = operand.unmatrix(torch.cat(parts, -1), weight)
    return found


def block_size(operands: Sequence[Operand]) -> int:
    """Columns of a block: n weights in rows of blocks of b columns are n / b inverses, of b³ multiplications each."""
    weights = sum(operand.elements.numel() for operand in operands)
    return min(max(math.isqrt(int(WORK / max(1, weights))), BLOCKS[0]), BLOCKS[1])


def _grams(calibration: Calibration, operands: Sequence[Operand], seed: int) -> list[tuple[Operand, Gram]]:
    grams = collect_grams(calibration, operands, torch.Generator().manual_seed(seed), block_size(operands))
    return [(operand, grams[operand.name]) for operand in operands]
