"""How far the accuracy has fallen, estimated without labels from how the outputs have moved."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from onnx_obd.calibration.heads import Head, ProbabilityHead, SigmoidHead, SoftmaxHead
from onnx_obd.calibration.quality import tell_apart

MOST_ROWS = 512
"""A segmentation has a class for every pixel: so many tell enough."""


def expected_drop(
    head: Head, values: Sequence[Sequence[Tensor]], originals: Sequence[Sequence[Tensor]]
) -> float | None:
    """The expected fall of the top-1 accuracy, a fraction; None for outputs that choose no class.

    A sample whose class changes from a to b costs tanh((z_a - z_b) / 2), the difference of the original's odds
    p_a - p_b given that one of the two is right: next to nothing if the original hardly preferred a, 1 if it was sure.
    That the original's odds are right is an assumption; networks that are too sure of themselves overstate the drop. Of
    outputs that are no logits or probabilities, every change of class costs 1.

    Few samples see few changes of class, so every movement of the logits that was seen is tried on every sample: with
    z_i sorted by size and d_j = z'_j - z_j in the order of z_j,

        drop = mean over i, j of tanh((z_i[0] - z_i[b]) / 2),   b = argmax(z_i + d_j).

    Args:
        head: of the first output.
        values, originals: of the heads, batch by batch, now and originally.
    """
    odds = isinstance(head, (SoftmaxHead, ProbabilityHead))
    if not odds and (isinstance(head, SigmoidHead) or not tell_apart([batch[0] for batch in originals])):
        return None
    now, before = (torch.cat([_logits(head, batch[0]) for batch in side]).double() for side in (values, originals))
    order = before.argsort(-1, descending=True)
    moved, ordered = (_some(rows.gather(-1, order)) for rows in (now - before, before))
    total = 0.0
    for d in moved:
        chosen = (ordered + d).argmax(-1, keepdim=True)
        preferred = ordered[:, :1] - ordered.gather(-1, chosen)
        total += float((torch.tanh(preferred / 2) if odds else (preferred > 0).double()).mean())
    return total / len(moved)


def _some(rows: Tensor) -> Tensor:
    """At most ``MOST_ROWS``, evenly spread."""
    return rows[:: -(-len(rows) // MOST_ROWS)]


def _logits(head: Head, value: Tensor) -> Tensor:
    if isinstance(head, ProbabilityHead):
        return head.rows(value).clamp_min(head.FLOOR).log()
    return head.rows(value) if isinstance(head, SoftmaxHead) else value
