"""How far the accuracy has fallen, estimated without labels from how the outputs have moved."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from onnx_obd.calibration.heads import Head, ProbabilityHead, SigmoidHead, SoftmaxHead
from onnx_obd.calibration.measure import Calibration
from onnx_obd.calibration.mixtures import mixtures
from onnx_obd.calibration.quality import head_values, tell_apart
from onnx_obd.mirror.mirror import Mirror

MOST_ROWS = 512
"""A segmentation has a class for every pixel: so many tell enough."""

TIMES = 4
"""Mixtures for every held-back sample."""

SURE, UNSURE = 1e-4, 1e4
"""Temperatures in units of the spread of the logits, between which the right one is looked for."""


class ExpectedDrop:
    """The expected fall of the top-1 accuracy of a classifier, by ``drop_of_movements``.

    The movements are those of held-back samples, to which nothing was fitted, or those of their mixtures, whichever
    drop is larger: rare movements are seen there only. They are tried on all samples. Without mixtures (inputs that are
    no floats) the temperature is 1 for logits, and every change of class costs 1 for other outputs.

    Attributes:
        temperature: of ``drop_of_movements``; None without classes.

    Args:
        scoring, held_back: samples with the original's mirror, which holds the original weights.
    """

    def __init__(self, scoring: Calibration, held_back: Calibration, seed: int = 0):
        objective = held_back.objective
        self.head, self.temperature = objective.heads[0], None
        odds = isinstance(self.head, (SoftmaxHead, ProbabilityHead))
        seen, unseen = head_values(scoring), head_values(held_back)
        if not odds and (isinstance(self.head, SigmoidHead) or not tell_apart([batch[0] for batch in seen + unseen])):
            return
        self._before, self._mixed = self._rows(unseen), None
        everything = torch.cat([self._rows(seen), self._before])
        self._ordered = _some(everything.sort(-1, descending=True).values)
        self.temperature = 1.0 if odds else SURE * float(everything.std())
        mixed = mixtures(held_back.samples, TIMES, seed)
        if mixed is not None:
            calibration = Calibration(held_back.mirror, objective, mixed.samples, held_back.batch_size)
            rows = self._rows(head_values(calibration))
            self._mixed = calibration, rows
            classes = self._before.argmax(-1).reshape(len(held_back.samples), -1)[torch.from_numpy(mixed.first)]
            self.temperature = consistent_temperature(rows, classes.reshape(-1))

    def of(self, mirror: Mirror, held_back: Sequence[Sequence[Tensor]]) -> float | None:
        """The fall with the present weights of a mirror of other sizes, a fraction; None without classes.

        Args:
            held_back: the heads of the held-back samples on that mirror, batch by batch.
        """
        if self.temperature is None:
            return None
        drop = self._drop(self._before, held_back)
        if self._mixed is None:
            return drop
        calibration, before = self._mixed
        return max(drop, self._drop(before, head_values(calibration.on(mirror))))

    def _drop(self, before: Tensor, values: Sequence[Sequence[Tensor]]) -> float:
        moved = _some((self._rows(values) - before).gather(-1, before.argsort(-1, descending=True)))
        return drop_of_movements(self._ordered, moved, self.temperature)

    def _rows(self, values: Sequence[Sequence[Tensor]]) -> Tensor:
        """The logits of the first output."""
        return torch.cat([_logits(self.head, batch[0]) for batch in values]).double()


def drop_of_movements(ordered: Tensor, moved: Tensor, temperature: float) -> float:
    """The fall of the accuracy if every one of some movements may happen to every one of some samples.

    A sample whose class changes from a to b costs tanh((z_a - z_b) / 2T), the difference of the odds p_a - p_b given
    that one of the two is right: next to nothing if the original hardly preferred a, 1 if it was sure. Few samples see
    few changes of class, so every movement that was seen is tried on every sample: with z_i sorted by size and
    d_j = z'_j - z_j in the order of z_j,

        drop = mean over i, j of tanh((z_i[0] - z_i[b]) / 2T),   b = argmax(z_i + d_j).

    Args:
        ordered: logits z_i, [samples, classes], each row from the largest down.
        moved: d_j, [movements, classes].
        temperature: T, at which softmax(z / T) is as sure as it may be.
    """
    total = 0.0
    for d in moved:
        chosen = (ordered + d).argmax(-1, keepdim=True)
        preferred = ordered[:, :1] - ordered.gather(-1, chosen)
        total += float(torch.tanh(preferred / (2 * temperature)).mean())
    return total / len(moved)


def consistent_temperature(rows: Tensor, classes: Tensor) -> float:
    """The T at which softmax(z / T) is most likely to give the classes that these rows ought to have.

    How sure a network may be is not to be told from samples that it was trained on, and its outputs need not be logits.
    Of a mixture x_i (1 - t) + x_j t with t < 1/2 it ought to say what it says of x_i, whatever the true class is. How
    sure it is of mixtures of which that does not hold tells its T: measured, it is 0.8 to 1.3 times the T fitted to
    labelled test samples (0.5 and 1.8 at the ends of eight networks).

    At the likeliest T the mean of sum(p z) equals that of the classes' z, and it falls with T: bisection finds it.

    Source: one temperature by likelihood, Guo et al. 2017; mixtures in the place of labelled samples are ours.

    Args:
        rows: logits of the mixtures, [rows, classes].
        classes: what the rows ought to be, [rows].
    """
    wanted = rows.gather(-1, classes[:, None]).mean()
    spread = max(float(rows.std()), 1e-12)
    low, high = math.log(SURE * spread), math.log(UNSURE * spread)
    while high - low > 1e-3:
        middle = (low + high) / 2
        found = ((rows / math.exp(middle)).softmax(-1) * rows).sum(-1).mean()
        low, high = (middle, high) if found > wanted else (low, middle)
    return math.exp((low + high) / 2)


def _some(rows: Tensor) -> Tensor:
    """At most ``MOST_ROWS``, evenly spread."""
    return rows[:: -(-len(rows) // MOST_ROWS)]


def _logits(head: Head, value: Tensor) -> Tensor:
    if isinstance(head, ProbabilityHead):
        return head.rows(value).clamp_min(head.FLOOR).log()
    return head.rows(value) if isinstance(head, SoftmaxHead) else value
