"""Deleting single weights, ranked globally across tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from onnx_obd.errors import UsageError
from onnx_obd.records import Plan, Saliency


def plan_elements(saliency: Saliency, sparsity: float, keep: Mapping[str, Tensor] | None = None) -> Plan:
    """Keep the weights of highest score so that exactly round(sparsity · total) are deleted.

    Ties are broken by position, so equal scores lose exactly the wanted number, the same ones every time. What
    ``keep`` has deleted before stays deleted and counts.

    Args:
        sparsity: fraction of zeros among all scored weights, in [0, 1).
        keep: the masks of the round before.

    Raises:
        UsageError: sparsity outside [0, 1).
    """
    if not 0 <= sparsity < 1:
        raise UsageError(f"sparsity {sparsity:g} is not in [0, 1)")
    names = list(saliency.scores)
    scores = torch.cat([saliency.scores[name].reshape(-1).double().cpu() for name in names])
    alive = torch.ones(len(scores), dtype=torch.bool)
    if keep is not None:
        alive = torch.cat([keep[name].reshape(-1).cpu() for name in names])
    count = round(sparsity * len(scores))
    order = torch.argsort(torch.where(alive, scores, -math.inf), stable=True)
    flat = torch.ones(len(scores), dtype=torch.bool)
    flat[order[: max(count, int((~alive).sum()))]] = False
    predicted = None
    if saliency.loss_change is not None:
        change = torch.cat([saliency.loss_change[name].reshape(-1).double().cpu() for name in names])
        predicted = float(change[alive & ~flat].sum())
    masks, start = {}, 0
    for name in names:
        shape = saliency.scores[name].shape
        masks[name] = flat[start : start + shape.numel()].reshape(shape)
        start += shape.numel()
    return Plan(masks, predicted)


def schedule(sparsity: float, rounds: int, start: float = 0.0) -> list[float]:
    """Sparsities after each round such that every round deletes the same fraction of what is left.

    density_k = (1 − start) · ((1 − sparsity) / (1 − start))^(k / rounds).
    """
    if rounds < 1:
        raise UsageError(f"rounds must be at least 1, not {rounds}")
    if sparsity <= start:
        return [sparsity]
    ratio = (1 - sparsity) / (1 - start)
    return [1 - (1 - start) * ratio ** (k / rounds) for k in range(1, rounds)] + [sparsity]
