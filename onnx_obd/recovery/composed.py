"""Samples to train on made of others: from few samples many, for which the teacher answers."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from onnx_obd.calibration.measure import Batch
from onnx_obd.calibration.objective import Objective
from onnx_obd.mirror.mirror import Mirror
from onnx_obd.mirror.values import is_float

COMPARED = 64
"""Samples by which it is decided whether pictures are turned round."""

FAR = 0.3
"""How far samples are moved to where student and teacher disagree, at most, in standard deviations of their elements.

At 1 the loss on test samples was higher, as with two steps in the place of one (docs/benchmarks.md)."""

NEARER = 0.5
"""They are if the teacher's outputs then move by less than this part of what they do from one picture to the next."""


@dataclass(frozen=True)
class Composer:
    """Batches composed of samples of ``batches``, with the outputs of ``teacher`` (weights ``original``) for targets.

    Pictures are turned round, left to right, every other one, where the teacher sees about the same in them. Of each
    sample x a run of elements, a share t of them (of a picture: a band), is replaced by that of x' (CutMix, Yun et al.
    2019), then comes x (1 - t) + x'' t (mixup, Zhang et al. 2018). The teacher stands in for the labels of both. t is
    uniform in [0, 1/2], each time and for each sample anew.
    """

    batches: Sequence[Batch]
    objective: Objective
    teacher: Mirror
    original: Mapping[str, Tensor]

    @cached_property
    def possible(self) -> bool:
        """Can inputs be blended, and is there nothing but the teacher that says what ought to come out?"""
        return not self.objective.supervised and all(is_float(x) and x.dim() for x in self.batches[0].inputs)

    @cached_property
    def turns(self) -> bool:
        """Are the inputs pictures that mean the same the other way round?"""
        some = self.batches[: max(2, COMPARED // self.batches[0].count)]
        if not all(_width(x) is not None for batch in some for x in batch.inputs):
            return False
        turned = another = 0.0
        for batch, after in zip(some, [*some[1:], some[0]], strict=True):
            turned += self._moved([x.flip(_width(x)) for x in batch.inputs], batch)
            last = after.inputs if batch.count == 1 else [x.roll(1, 0) for x in batch.inputs]
            another += self._moved(last, batch)
        return turned < NEARER * another

    def composed(self, batch: Batch, generator: torch.Generator) -> Batch:
        """The batch with parts of others."""
        others = [self._others(batch, generator) for _ in range(2)]

        def share(x: Tensor) -> Tensor:
            return 0.5 * torch.rand((len(x), *[1] * (x.dim() - 1)), generator=generator)

        def mixed(x: Tensor, second: Tensor, third: Tensor) -> Tensor:
            if self.turns:
                x = torch.where((share(x) < 0.25).to(x.device), x.flip(_width(x)), x)
            places = torch.arange(x[0].numel()).reshape(x[:1].shape) / max(1, x[0].numel())
            run = (places - 2 * share(x)) % 1.0 < share(x)
            return torch.lerp(torch.where(run.to(x.device), second, x), third, share(x).to(x))

        inputs = tuple(itertools.starmap(mixed, zip(batch.inputs, *others, strict=True)))
        return replace(batch, inputs=inputs, targets=tuple(self.objective.targets(self._outputs(inputs), None)))

    def disputed(self, batch: Batch, student: Mirror, generator: torch.Generator) -> Batch:
        """The batch moved to where student and teacher disagree more, with what the teacher says there.

        x + e s g / |g|, a sample each: g is d loss / dx through both of them and |g| its root mean square, s the
        standard deviation of the elements of x, e uniform in [0, ``FAR``]. Where they agree on the samples they need
        not beside them, and between few samples there is much room: this finds where it matters.

        Source: Heo et al. 2019 (distillation on adversarial samples); one step as in Goodfellow et al. 2015, of the
        length of Miyato et al. 2018.
        """
        inputs = tuple(x.detach().requires_grad_() for x in batch.inputs)
        with torch.enable_grad():
            wanted = self.teacher.evaluate(inputs, outputs=self.objective.slots, weights=self.original)
            found = student.evaluate(inputs, outputs=self.objective.slots)
            loss = self.objective.loss(found, self.objective.targets(wanted, None), batch.count)
            if not loss.requires_grad:
                return batch
            gradients = torch.autograd.grad(loss, inputs, allow_unused=True)
        moved = tuple(
            x.detach() if g is None else _along(g, x.detach(), generator)
            for x, g in zip(inputs, gradients, strict=True)
        )
        return replace(batch, inputs=moved, targets=tuple(self.objective.targets(self._outputs(moved), None)))

    def _others(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, ...]:
        """As many samples drawn from a batch drawn at random; the batch itself if those have other shapes."""
        other = self.batches[int(torch.randint(len(self.batches), (), generator=generator))]
        pairs = list(zip(batch.inputs, other.inputs, strict=True))
        if all(len(a) == batch.count and len(b) == other.count and a.shape[1:] == b.shape[1:] for a, b in pairs):
            drawn = torch.randint(other.count, (batch.count,), generator=generator)
            return tuple(x[drawn] for x in other.inputs)
        return other.inputs if all(a.shape == b.shape for a, b in pairs) else batch.inputs

    def _outputs(self, inputs: Sequence[Tensor]) -> tuple:
        with torch.no_grad():
            return self.teacher.evaluate(inputs, outputs=self.objective.slots, weights=self.original)

    def _moved(self, inputs: Sequence[Tensor], batch: Batch) -> float:
        """The loss of what the teacher says of these inputs, given what it says of the batch."""
        if any(a.shape != b.shape for a, b in zip(inputs, batch.inputs, strict=True)):
            return 0.0
        return float(self.objective.loss(self._outputs(inputs), batch.targets, batch.count))


def _along(gradient: Tensor, x: Tensor, generator: torch.Generator) -> Tensor:
    """The samples on axis 0 moved along their gradients; one whose gradient is zero or not finite stays."""

    def each(values: Tensor) -> Tensor:
        return values.reshape(-1, *[1] * (x.dim() - 1)).to(x)

    length = gradient.reshape(len(x), -1).square().mean(1).sqrt()
    direction = (gradient / each(length)).nan_to_num(0.0, 0.0, 0.0)
    spread = x.reshape(len(x), -1).std(1, correction=0)
    return x + each(FAR * torch.rand(len(x), generator=generator)) * each(spread) * direction


def _width(x: Tensor) -> int | None:
    """The axis from left to right of pictures with one or three channels, which come before or after it."""
    if x.dim() != 4:
        return None
    return 3 if x.shape[1] in (1, 3) else 2 if x.shape[3] in (1, 3) else None
