"""An objective on samples: the targets of the original model, and the loss of whatever its mirror has become."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from onnx_obd.calibration.objective import Objective
from onnx_obd.calibration.samples import Samples
from onnx_obd.errors import NumericalError
from onnx_obd.mirror.free_batch import with_free_batch
from onnx_obd.mirror.mirror import Mirror
from onnx_obd.mirror.values import to_torch


@dataclass(frozen=True)
class Batch:
    """Mirror inputs of ``count`` samples, what their outputs are compared with, and their labels if there are any."""

    inputs: tuple
    targets: tuple
    count: int
    labels: Tensor | None

    def parts(self, size: int) -> Iterator[Batch]:
        """The same samples, up to ``size`` at a time; they stand on axis 0 of the inputs and of the targets."""

        def part(value: Any, start: int) -> Any:
            if isinstance(value, tuple):
                return tuple(part(each, start) for each in value)
            if not isinstance(value, Tensor):
                return value
            rows = len(value) // self.count
            return value[rows * start : rows * (start + size)]

        for start in range(0, self.count, size):
            inputs, targets, labels = part((self.inputs, self.targets, self.labels), start)
            yield Batch(inputs, targets, min(size, self.count - start), labels)


class Calibration:
    """Samples with the targets that the original model gives them.

    Made while the mirror holds the original weights. All losses are means per sample.
    """

    def __init__(self, mirror: Mirror, objective: Objective, samples: Samples, batch_size: int):
        self.mirror, self.objective = mirror, objective
        self.batches = [self._batch(*feed) for feed in feeds(mirror, samples, batch_size)]
        self.num_samples = sum(batch.count for batch in self.batches)
        self.samples, self.batch_size = samples, batch_size

    def _batch(self, inputs: tuple, labels: Tensor | None, count: int) -> Batch:
        with torch.no_grad():
            values = self.mirror.evaluate(inputs, outputs=self.objective.slots)
        return Batch(inputs, tuple(self.objective.targets(values, labels)), count, labels)

    def singles(self, limit: int) -> Calibration:
        """The first ``limit`` samples, evenly spread, one by one. Only while the mirror holds the original weights."""
        step = max(1, len(self.samples) // max(1, limit))
        chosen = self.samples.subset(range(0, len(self.samples), step)[:limit])
        return Calibration(self.mirror, self.objective, chosen, 1)

    def with_more(self, more: Samples, what: str) -> Calibration:
        """These samples and others. Only while the mirror holds the original weights."""
        return self.joined(Calibration(self.mirror, self.objective, more, self.batch_size), what)

    def joined(self, other: Calibration, what: str) -> Calibration:
        """These batches with their targets, and then those of another calibration of the same mirror."""
        both, own = copy.copy(self), self.samples
        feeds, source = (*own.feeds, *other.samples.feeds), f"{own.source}, and {what}"
        both.samples = Samples.from_feeds(feeds, source=source, batchable=own.batchable)
        both.batches, both.num_samples = [*self.batches, *other.batches], self.num_samples + other.num_samples
        return both

    def in_parts(self, size: int) -> Calibration:
        """The same samples and targets in batches of at most ``size`` (see ``Batch.parts``)."""
        other = copy.copy(self)
        other.batches = [part for batch in self.batches for part in batch.parts(size)]
        return other

    def on(self, mirror: Mirror) -> Calibration:
        """The same samples and targets for the mirror of a model of other sizes, the nodes being the same."""
        other = copy.copy(self)
        other.mirror = mirror
        return other

    def loss(self, progress: Callable[[int, int], None] | None = None) -> float:
        """The mean loss per sample with the mirror's present weights.

        Raises:
            NumericalError: the loss is not finite.
        """
        total = 0.0
        with torch.no_grad():
            for done, batch in enumerate(self.batches):
                values = self.mirror.evaluate(batch.inputs, outputs=self.objective.slots)
                total += float(self.objective.loss(values, batch.targets, batch.count)) * batch.count
                if progress:
                    progress(done + 1, len(self.batches))
        if not total == total or total in (float("inf"), float("-inf")):
            raise NumericalError(f"the loss is {total}: an output of the model is not finite")
        return total / self.num_samples


def feeds(mirror: Mirror, samples: Samples, batch_size: int) -> list[tuple[tuple, Tensor | None, int]]:
    """The samples as mirror inputs, in batches: (inputs, labels, count)."""
    if batch_size > 1:  # the mirror may take together what onnxruntime takes one by one (see mirror_batch_size)
        samples = replace(samples, batchable=True)
    found = []
    for feed, labels in samples.batches(batch_size):
        inputs = tuple(to_torch(feed.get(name)) for name in mirror.input_names)
        first = mirror.input_names[0]
        count = len(feed[first]) // len(samples.feeds[0][first]) if batch_size > 1 else 1
        found.append((inputs, None if labels is None else to_torch(labels), count))
    return found


def mirror_batch_size(mirror: Mirror, samples: Samples, wanted: int) -> int:
    """How many samples the mirror may take at once: ``wanted``, or 1 where samples in a batch would disturb each other.

    A model whose batch axis is fixed at 1 often computes each sample alone all the same; whether it does is found by
    running two samples together and apart.
    """
    if wanted <= 1 or len(samples) < 2:
        return 1
    first, second = ([to_torch(feed.get(name)) for name in mirror.input_names] for feed in samples.feeds[:2])
    if any(_shape(a) != _shape(b) or not a.dim() for a, b in zip(first, second, strict=True)):
        return wanted if samples.batchable else 1
    try:
        with torch.no_grad():
            apart = [mirror.evaluate(inputs) for inputs in (first, second)]
            together = mirror.evaluate([torch.cat(pair) for pair in zip(first, second, strict=True)])
        same = all(_stacked(*values) for values in zip(together, *apart, strict=True))
    except Exception:  # whatever the graph objects to: it is not made for two
        return 1
    return wanted if same else 1


def mirror_for_batches(mirror: Mirror, samples: Samples, wanted: int) -> tuple[Mirror, int]:
    """The mirror, and how many samples it may take at once; one freed of a batch of one that shapes fix, if that helps.

    Its weights have the same names and its values the same slots; its ``proto`` is not the model's.
    """
    batch_size = mirror_batch_size(mirror, samples, wanted)
    if batch_size == 1 < min(wanted, len(samples)):
        proto = with_free_batch(mirror, feeds(mirror, samples.subset([0]), 1)[0][0])
        freed = mirror if proto is None else Mirror(proto)
        batch_size = mirror_batch_size(freed, samples, wanted)
        if batch_size > 1:
            return freed, batch_size
    return mirror, batch_size


def _shape(value: Any) -> tuple | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None


def _stacked(together: Any, first: Any, second: Any) -> bool:
    if not isinstance(together, Tensor) or not first.dim():
        return False
    expected = torch.cat([first, second])
    return expected.shape == together.shape and torch.allclose(
        expected.double(), together.double(), rtol=1e-3, atol=1e-4 * float(expected.abs().max().clamp_min(1))
    )
