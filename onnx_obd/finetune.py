"""Masked fine-tuning on the calibration samples: towards the original's outputs, or the labels where there are any."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from onnx_obd.calibration.measure import Calibration
from onnx_obd.surgery.mask import apply_masks, restore, snapshot

PATIENCE = 5
"""Epochs without a better held-back loss before it stops."""


def finetune(
    calibration: Calibration,
    held_back: Calibration,
    keep: Mapping[str, Tensor],
    *,
    epochs: int,
    learning_rate: float = 1e-3,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Train the surviving weights of the mirror in place; deleted weights stay exactly zero.

    Adam (Kingma, Ba 2015) on the calibration objective with a cosine schedule over ``epochs``. The state of lowest
    held-back loss is kept, that of the start included, so the held-back loss never rises.

    Args:
        keep: the masks; tensors without a mask are trained whole.
        learning_rate: Adam's step size, relative to the root mean square of each tensor's surviving weights.

    Returns:
        The epoch whose state was kept; 0 is the start.
    """
    mirror, objective = calibration.mirror, calibration.objective
    weights = [weight for weight in mirror.weights.values() if weight.is_floating_point()]
    trained = [weight for weight in weights if weight.numel() > 1]
    groups = [{"params": [weight], "lr": learning_rate * _scale(weight)} for weight in trained]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    generator = torch.Generator().manual_seed(seed)
    best, best_loss, best_epoch = snapshot(mirror), held_back.loss(), 0
    for epoch in range(1, epochs + 1):
        for index in torch.randperm(len(calibration.batches), generator=generator).tolist():
            batch = calibration.batches[index]
            optimizer.zero_grad(set_to_none=True)
            values = mirror.evaluate(batch.inputs, outputs=objective.slots)
            objective.loss(values, batch.targets, batch.count).backward()
            optimizer.step()
            apply_masks(mirror, keep)
        schedule.step()
        loss = held_back.loss()
        if loss < best_loss:
            best, best_loss, best_epoch = snapshot(mirror), loss, epoch
        if progress:
            progress(epoch, epochs)
        if epoch - best_epoch >= PATIENCE:
            break
    optimizer.zero_grad(set_to_none=True)
    restore(mirror, best)
    return best_epoch


def _scale(weight: Tensor) -> float:
    """The typical size of a tensor's non-zero entries, so that one learning rate fits all tensors."""
    alive = weight.detach()[weight.detach() != 0]
    return float(alive.square().mean().sqrt().clamp(1e-3, 10.0)) if alive.numel() else 1.0
