"""How well a pruned model does what the original did, from the values its objective looks at."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from onnx_obd.calibration.heads import Head, ProbabilityHead, SigmoidHead, SoftmaxHead, SquaredHead
from onnx_obd.calibration.measure import Calibration
from onnx_obd.records import Quality


def head_values(calibration: Calibration) -> list[tuple[Tensor, ...]]:
    """What the objective looks at, for every batch, with the mirror's present weights."""
    with torch.no_grad():
        return [calibration.mirror.evaluate(b.inputs, outputs=calibration.objective.slots) for b in calibration.batches]


def assess(
    calibration: Calibration,
    values: Sequence[Sequence[Tensor]],
    originals: Sequence[Sequence[Tensor]],
    *,
    method: str,
    sparsity: float,
    seconds: float = 0.0,
) -> Quality:
    """The quality of a variant on the samples of ``calibration``.

    ``values`` and ``originals`` are the values of the heads per batch, of the variant and of the original.
    """
    objective = calibration.objective
    loss = sum(
        float(objective.loss(batch_values, batch.targets, batch.count)) * batch.count
        for batch_values, batch in zip(values, calibration.batches, strict=True)
    )
    agreement = accuracy = None
    head = objective.heads[0]
    if isinstance(head, (SoftmaxHead, ProbabilityHead, SigmoidHead)) or tell_apart([batch[0] for batch in originals]):
        ours, theirs = (torch.cat([_classes(head, batch[0]) for batch in side]) for side in (values, originals))
        agreement = float((ours == theirs).double().mean())
        labels = [batch.labels for batch in calibration.batches]
        if all(label is not None and not label.is_floating_point() for label in labels):
            wanted = torch.cat([label.reshape(-1) for label in labels]) if labels else ours[:0]
            if wanted.shape == ours.shape:
                accuracy = float((ours == wanted).double().mean())
    return Quality(
        method,
        sparsity,
        loss / calibration.num_samples,
        agreement,
        accuracy,
        _relative_error(values, originals),
        seconds,
    )


def _classes(head: Head, z: Tensor) -> Tensor:
    if isinstance(head, SigmoidHead):
        return (z > 0).long().reshape(-1)
    return z.argmax(-1) if isinstance(head, SquaredHead) else head.rows(z).argmax(-1)


def tell_apart(outputs: Sequence[Tensor]) -> bool:
    """Do unmarked outputs [N, C] act like a choice among C: is the largest not always the same?

    Then its agreement is worth reporting, whatever the objective.
    """
    if any(z.dim() != 2 or z.shape[1] < 3 for z in outputs):
        return False
    return len(torch.cat([z.argmax(-1) for z in outputs]).unique()) >= 3


def _relative_error(values: Sequence[Sequence[Tensor]], originals: Sequence[Sequence[Tensor]]) -> float:
    """||y − y₀|| / ||y₀ − mean(y₀)||, the root mean square over the heads."""
    ratios = []
    for position in range(len(values[0])):
        moved, original = (
            torch.cat([batch[position].double().reshape(-1) for batch in side]) for side in (values, originals)
        )
        spread = float((original - original.mean()).square().sum())
        error = float((moved - original).square().sum())
        ratios.append(error / spread if spread > 0 else float(error > 0))
    return (sum(ratios) / len(ratios)) ** 0.5
