"""How far the accuracy has fallen at most, estimated without labels from the classes that have changed."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from onnx_obd.calibration.heads import Head, ProbabilityHead, SigmoidHead, SoftmaxHead
from onnx_obd.calibration.measure import Calibration
from onnx_obd.calibration.mixtures import mixtures
from onnx_obd.calibration.quality import head_values, tell_apart
from onnx_obd.calibration.temperature import bracket
from onnx_obd.mirror.mirror import Mirror

STANDARD_ERRORS = 1.0
"""Of the bound above the estimate: the search passes what happens to look good among many states (the rule of one
standard error, Breiman et al. 1984). Normally distributed, the drop would be below it in 84 of 100 cases."""

TIMES, SECONDS = 15, 2.0
"""Mixtures for every held-back sample at most; of large networks fewer, one at least, so that they take so long."""

MOST_ROWS = 64
"""Of a sample: a segmentation has a class for every pixel."""

SURE, UNSURE = 1e-4, 1e4
"""Temperatures in units of the spread of the logits, between which the right one is looked for."""


class ExpectedDrop:
    """What the top-1 accuracy of a classifier has fallen by at most, by ``costs_of_changes`` and ``bounded_mean``.

    Of held-back samples, to which nothing was fitted, and of mixtures of these: few samples see few changes of class,
    and samples that the network was trained on fewer than others. Without mixtures (inputs that are no floats) the
    temperature is 1 for logits, and every change of class costs 1 for other outputs.

    Attributes:
        temperature: of the odds; None without classes.

    Args:
        held_back: samples with the original's mirror, which holds the original weights.
    """

    def __init__(self, held_back: Calibration, seed: int = 0):
        self.head, self.temperature = held_back.objective.heads[0], None
        start = time.perf_counter()
        unseen = head_values(held_back)
        seconds = time.perf_counter() - start
        odds = isinstance(self.head, (SoftmaxHead, ProbabilityHead))
        if not odds and (isinstance(self.head, SigmoidHead) or not tell_apart([batch[0] for batch in unseen])):
            return
        self._held_back, self._before, self._mixed = held_back, self._rows(held_back, unseen), None
        everything = torch.cat([rows.flatten(0, 1) for rows in self._before])
        self.temperature = 1.0 if odds else SURE * float(everything.std())
        mixed = mixtures(held_back.samples, max(1, min(TIMES, int(SECONDS / seconds))), seed)
        if mixed is not None:
            self._mixed = Calibration(held_back.mirror, held_back.objective, mixed.samples, held_back.batch_size)
            rows = self._rows(self._mixed, head_values(self._mixed))
            classes = torch.cat(self._before).argmax(-1)[torch.from_numpy(mixed.first)]
            self.temperature = consistent_temperature(torch.cat(rows).flatten(0, 1), classes.flatten())
            self._before += rows

    def of(self, mirror: Mirror, held_back: Sequence[Sequence[Tensor]]) -> float | None:
        """The bound with the present weights of a mirror of other sizes, a fraction; None without classes.

        Args:
            held_back: the heads of the held-back samples on that mirror, batch by batch.
        """
        if self.temperature is None:
            return None
        after = self._rows(self._held_back, held_back)
        if self._mixed is not None:
            after += self._rows(self._mixed, head_values(self._mixed.on(mirror)))
        pairs = zip(self._before, after, strict=True)
        costs = torch.cat([costs_of_changes(*pair, self.temperature).mean(-1) for pair in pairs])
        return bounded_mean(costs.reshape(-1, self._held_back.num_samples).mean(0))

    def _rows(self, calibration: Calibration, values: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """The logits of the first output, a batch each [samples, rows of each, classes], the rows evenly spread."""
        found = []
        for batch, value in zip(calibration.batches, values, strict=True):
            rows = _logits(self.head, value[0])
            rows = rows.reshape(batch.count, -1, rows.shape[-1])
            found.append(rows[:, :: -(-rows.shape[1] // MOST_ROWS)].double())
        return found


def costs_of_changes(before: Tensor, after: Tensor, temperature: float) -> Tensor:
    """What the accuracy is expected to lose where the class changes from a to b: p_a - p_b, p = softmax(before / T).

    It is the fall of the probability to be right if the original's odds at T are; 0 where the class stays.

    Args:
        before, after: logits, [..., classes].
        temperature: T, at which the original is as sure as it may be.
    """
    p = (before / temperature).softmax(-1)
    changed = after.argmax(-1, keepdim=True)
    return (p.max(-1, keepdim=True).values - p.gather(-1, changed))[..., 0]


def bounded_mean(values: Tensor) -> float:
    """The mean of independent values [N], and ``STANDARD_ERRORS`` above it."""
    error = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return float(values.mean()) + STANDARD_ERRORS * error


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

    def too_low(temperature: float) -> bool:
        return bool(((rows / temperature).softmax(-1) * rows).sum(-1).mean() > wanted)

    return math.sqrt(math.prod(bracket(too_low, SURE * spread, UNSURE * spread)))


def _logits(head: Head, value: Tensor) -> Tensor:
    if isinstance(head, ProbabilityHead):
        return head.rows(value).clamp_min(head.FLOOR).log()
    return head.rows(value) if isinstance(head, SoftmaxHead) else value
