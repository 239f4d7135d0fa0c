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
from onnx_obd.calibration.pictures import Pictures, turned, warped
from onnx_obd.mirror.mirror import Mirror
from onnx_obd.mirror.values import is_float

FAR = 0.3
"""How far samples are moved to where student and teacher disagree, at most, in standard deviations of their elements.

At 1 the loss on test samples was higher, as with two steps in the place of one (docs/benchmarks.md)."""

WARPED = 0.5
"""The share of the batches that are warped and not mixed: measured, better than either alone."""


@dataclass(frozen=True)
class Composer:
    """Inputs composed of those of ``batches``, to which ``teacher`` (weights ``original``) gives the targets.

    Pictures are turned round, left to right, every other one, where the teacher sees about the same in them; and half
    of the batches are warped (``Warp``), where it does so in these. Of each sample x of another batch a run of
    elements, a share t of them (of a picture: a band), is replaced by that of x' (CutMix, Yun et al. 2019), then comes
    x (1 - t) + x'' t (mixup, Zhang et al. 2018). The teacher stands in for the labels of all. t is uniform in [0, 1/2],
    each time and for each sample anew.
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
    def pictures(self) -> Pictures:
        return Pictures(self.batches, self.objective, self._outputs)

    def composed(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, ...]:
        """The inputs of the batch warped or with parts of others."""
        inputs, pictures = batch.inputs, self.pictures
        if pictures.turn:
            inputs = turned(inputs, pictures.layouts, torch.rand(batch.count, generator=generator) < 0.5)
        if pictures.warp and float(torch.rand((), generator=generator)) < WARPED:
            return warped(inputs, pictures.layouts, generator)
        others = [self._others(batch, generator) for _ in range(2)]

        def share(x: Tensor) -> Tensor:
            return 0.5 * torch.rand((len(x), *[1] * (x.dim() - 1)), generator=generator)

        def mixed(x: Tensor, second: Tensor, third: Tensor) -> Tensor:
            places = torch.arange(x[0].numel()).reshape(x[:1].shape) / max(1, x[0].numel())
            run = (places - 2 * share(x)) % 1.0 < share(x)
            return torch.lerp(torch.where(run.to(x.device), second, x), third, share(x).to(x))

        return tuple(itertools.starmap(mixed, zip(inputs, *others, strict=True)))

    def answered(self, batch: Batch, inputs: tuple[Tensor, ...]) -> Batch:
        """The batch with other inputs, and what the teacher says of them."""
        return replace(batch, inputs=inputs, targets=tuple(self.objective.targets(self._outputs(inputs), None)))

    def disputed(
        self, given: Sequence[Tensor], count: int, student: Mirror, generator: torch.Generator
    ) -> tuple[Tensor, ...]:
        """The inputs of so many samples moved to where student and teacher disagree more.

        x + e s g / |g|, a sample each: g is d loss / dx through both of them and |g| its root mean square, s the
        standard deviation of the elements of x, e uniform in [0, ``FAR``]. Where they agree on the samples they need
        not beside them, and between few samples there is much room: this finds where it matters.

        Source: Heo et al. 2019 (distillation on adversarial samples); one step as in Goodfellow et al. 2015, of the
        length of Miyato et al. 2018.
        """
        inputs = tuple(x.detach().requires_grad_() for x in given)
        with torch.enable_grad():
            wanted = self.teacher.evaluate(inputs, outputs=self.objective.slots, weights=self.original)
            found = student.evaluate(inputs, outputs=self.objective.slots)
            loss = self.objective.loss(found, self.objective.targets(wanted, None), count)
            if not loss.requires_grad:
                return tuple(given)
            gradients = torch.autograd.grad(loss, inputs, allow_unused=True)
        return tuple(
            x.detach() if g is None else _along(g, x.detach(), generator)
            for x, g in zip(inputs, gradients, strict=True)
        )

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


def _along(gradient: Tensor, x: Tensor, generator: torch.Generator) -> Tensor:
    """The samples on axis 0 moved along their gradients; one whose gradient is zero or not finite stays."""

    def each(values: Tensor) -> Tensor:
        return values.reshape(-1, *[1] * (x.dim() - 1)).to(x)

    length = gradient.reshape(len(x), -1).square().mean(1).sqrt()
    direction = (gradient / each(length)).nan_to_num(0.0, 0.0, 0.0)
    spread = x.reshape(len(x), -1).std(1, correction=0)
    return x + each(FAR * torch.rand(len(x), generator=generator)) * each(spread) * direction
