"""How far the accuracy has fallen at most, estimated without labels from the classes that have changed."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from onnx_obd.calibration.class_prior import class_prior
from onnx_obd.calibration.corruptions import differences, noise
from onnx_obd.calibration.heads import Head, ProbabilityHead, SigmoidHead, SoftmaxHead
from onnx_obd.calibration.measure import Calibration
from onnx_obd.calibration.mixtures import blendable
from onnx_obd.calibration.pictures import Pictures, warps
from onnx_obd.calibration.quality import head_values, tell_apart
from onnx_obd.calibration.samples import Samples
from onnx_obd.calibration.temperature import bracket, spoken_for
from onnx_obd.mirror.mirror import Mirror

STANDARD_ERRORS = 1.0
"""Of the bound above the estimate: the search passes what happens to look good among many states (the rule of one
standard error, Breiman et al. 1984)."""

TIMES, SECONDS = 15, 2.0
"""Corruptions of every held-back sample at most, of each of two kinds; of large networks fewer, one at least, so that
they take so long. For the temperature there are a quarter as many of every sample."""

MOST_ROWS = 64
"""Of a sample: a segmentation has a class for every pixel."""

SURE, UNSURE = 1e-4, 1e4
"""Temperatures in units of the spread of the logits, between which the right one is looked for."""

TILT, STEEPEST = 0.5, 50.0
"""The part of the way that weights go towards samples as sure as the given ones, and the exponent tried at most."""


class ExpectedDrop:
    """What the top-1 accuracy of a classifier has fallen by at most, by ``costs_of_changes`` and ``bounded_mean``.

    Of samples to which nothing was fitted, and of corruptions of these, for few samples see few changes of class:
    warped pictures where the original sees the same in them, other inputs moved by differences, and both with noise.
    Corrupted samples are harder than natural ones: the surer the original is of one, the more it counts (``tilted``).
    Without corruptions (inputs that are no floats) all count the same, the temperature is 1 for logits, and every
    change of class costs 1 for other outputs.

    Attributes:
        temperature: of the odds; None without classes.
        prior: how often each class is the right one among all samples (``class_prior``).

    Args:
        unseen: samples with the original's mirror, which holds the original weights.
        others: further samples, from which nothing is taken but how sure the original is, and of what.
        pictures: whether samples may be warped.
    """

    def __init__(self, unseen: Calibration, others: Calibration, pictures: Pictures, seed: int = 0):
        self.head, self.temperature = unseen.objective.heads[0], None
        start = time.perf_counter()
        values = head_values(unseen)
        seconds = time.perf_counter() - start
        odds = isinstance(self.head, (SoftmaxHead, ProbabilityHead))
        if not odds and (isinstance(self.head, SigmoidHead) or not tell_apart([batch[0] for batch in values])):
            return
        self._parts, self._before = [unseen], self._rows(unseen, values)
        self.temperature = 1.0 if odds else SURE * float(self._before.std())
        self._weights = torch.ones(self._before.shape[:-1], dtype=self._before.dtype)
        natural = self._before
        if blendable(unseen.samples):
            natural = self._corrupt(others, pictures, max(1, min(TIMES, int(SECONDS / 2 / seconds))), seed)
        self.prior = class_prior(natural, self.temperature)

    def of(self, mirror: Mirror, unseen: Sequence[Sequence[Tensor]]) -> float | None:
        """The bound with the present weights of a mirror of other sizes, a fraction; None without classes.

        Args:
            unseen: the heads of the unseen samples on that mirror, batch by batch.
        """
        if self.temperature is None:
            return None
        own, corrupted = self._parts[0], (part.on(mirror) for part in self._parts[1:])
        after = torch.cat([self._rows(own, unseen), *(self._rows(part, head_values(part)) for part in corrupted)])
        costs = costs_of_changes(self._before, after, self.temperature, self.prior)
        return bounded_mean((self._weights * costs).mean(-1).reshape(-1, own.num_samples).mean(0))

    def _corrupt(self, others: Calibration, pictures: Pictures, times: int, seed: int) -> Tensor:
        """More samples to see changes on, what they count, and the temperature.

        Returns the logits of all natural samples, as far as these are of the same shapes.
        """
        unseen, natural = self._parts[0], self._before
        every = Samples.from_feeds(
            others.samples.feeds + unseen.samples.feeds, source="", batchable=unseen.samples.batchable
        )
        if blendable(every):
            natural = torch.cat([self._rows(others, head_values(others)), natural])
        else:
            every = unseen.samples
        rounds = max(1, times // 4)
        moved = self._made(differences(every, rounds, seed + 1))
        rows, classes = self._rows(moved, head_values(moved)), natural.argmax(-1).repeat(rounds, 1)
        self.temperature = consistent_temperature(rows.flatten(0, 1), classes.flatten())
        own, layouts = unseen.samples, pictures.layouts
        near = warps(unseen, layouts, times, seed) if pictures.warp else differences(own, times, seed)
        self._parts += [self._made(near), self._made(noise(own, times, seed))]
        self._before = torch.cat([self._before, *(self._rows(part, head_values(part)) for part in self._parts[1:])])
        sure, of_natural = ((z / self.temperature).softmax(-1).max(-1).values for z in (self._before, natural))
        self._weights = tilted(sure, min(float(of_natural.mean()), spoken_for(len(natural))))
        return natural

    def _made(self, samples: Samples) -> Calibration:
        like = self._parts[0]
        return Calibration(like.mirror, like.objective, samples, like.batch_size)

    def _rows(self, calibration: Calibration, values: Sequence[Sequence[Tensor]]) -> Tensor:
        """The logits of the first output, [samples, rows of each, classes], the rows evenly spread."""
        found = []
        for batch, value in zip(calibration.batches, values, strict=True):
            rows = _logits(self.head, value[0])
            rows = rows.reshape(batch.count, -1, rows.shape[-1])
            found.append(rows[:, :: -(-rows.shape[1] // MOST_ROWS)].double())
        return torch.cat(found)


def costs_of_changes(before: Tensor, after: Tensor, temperature: float, prior: Tensor) -> Tensor:
    """What the accuracy is expected to lose where the class changes from a to b: p_a - p_b.

    p_c is in proportion to exp(before_c / T) π_c. It is the fall of the probability to be right if these odds are; 0
    where the class stays, below 0 where b is more frequent among the samples than the original knows.

    Args:
        before, after: logits, [..., classes].
        temperature: T, at which the original is as sure as it may be.
        prior: π, the share of samples of each class, [classes].
    """
    p = (before / temperature + prior.log()).softmax(-1)
    chosen, changed = (z.argmax(-1, keepdim=True) for z in (before, after))
    return (p.gather(-1, chosen) - p.gather(-1, changed))[..., 0]


def bounded_mean(values: Tensor) -> float:
    """The mean of independent values [N], and ``STANDARD_ERRORS`` above it."""
    error = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return float(values.mean()) + STANDARD_ERRORS * error


def tilted(sure: Tensor, wanted: float) -> Tensor:
    """Weights of mean 1 in proportion to exp(``TILT`` b s); with exp(b s) the weighted mean of s would be ``wanted``.

    Of all weights with that mean exp(b s) differs least from none at all. Only part of the way, for a network may be
    surer of the samples that ``wanted`` comes from than of others: it may have been trained on them.

    Source: exponential tilting; Csiszar 1975, "I-divergence geometry of probability distributions and minimization
    problems". That it stops on the way is ours.

    Args:
        sure: s, how sure the original is of each, in [0, 1], of any shape.
        wanted: its mean over natural samples.
    """
    low, high = -STEEPEST, STEEPEST
    while high - low > 1e-3:
        b = (low + high) / 2
        weights = (b * (sure - 1)).exp()
        low, high = (b, high) if float((weights * sure).sum() / weights.sum()) < wanted else (low, b)
    weights = (TILT * b * (sure - 1)).exp()
    return weights / weights.mean()


def consistent_temperature(rows: Tensor, classes: Tensor) -> float:
    """The T at which softmax(z / T) is most likely to give the classes that these rows ought to have.

    How sure a network may be is not to be told from samples that it was trained on, and its outputs need not be logits.
    Of a sample moved by part of the difference of two others it ought to say what it says of the sample, whatever the
    true class is. How sure it is where that does not hold tells its T: measured, it is 0.7 to 1.4 times the T fitted to
    labelled test samples (0.6 at the end of nine networks).

    At the likeliest T the mean of sum(p z) equals that of the classes' z, and it falls with T: bisection finds it.

    Source: one temperature by likelihood, Guo et al. 2017; moved samples in the place of labelled ones are ours.

    Args:
        rows: logits of the moved samples, [rows, classes].
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
