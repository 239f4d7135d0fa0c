"""Pictures among the inputs: where they are, and whether they mean the same turned round or warped."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from onnx_obd.calibration.measure import Batch, Calibration
from onnx_obd.calibration.objective import Objective
from onnx_obd.calibration.samples import Feed, Samples

CHANNELS = (1, 3)
"""Of a picture: others are taken for something else."""

SMALLEST, ROUGHEST = 8, 0.5
"""A flat input is a square picture if its side is no smaller and ``roughness`` no larger."""

ANGLE, SCALE, SHIFT = 0.15, 0.1, 0.07
"""Of a warp at most: radians, the part by which each side grows or shrinks, and the part of the side it moves by."""

BENDS, BEND = 4, 0.07
"""A bent picture's grid has so many points along each side; each moves by this part of the side at most."""


FIRST, LAST = (0, 1, 2, 3), (0, 3, 1, 2)
"""The axes to permute so that the channels of [N, C, H, W] or [N, H, W, C] come first."""


COMPARED = 64
"""Samples by which it is decided what may be done to pictures."""

NEARER = 0.3
"""What moves the outputs by less than this part of what they move by from one picture to the next means the same.

Measured: photographs turned round 0.01 to 0.05, digits 0.5 to 0.6; warped 0.04 to 0.2."""


@dataclass(frozen=True)
class Layout:
    """How an input [N, ...] becomes planes [N, C, H, W]: from ``flat`` to such sides, if it is, then ``order``."""

    order: tuple[int, ...]
    flat: tuple[int, ...] | None = None

    def planes(self, x: Tensor) -> Tensor:
        return (x if self.flat is None else x.reshape(len(x), *self.flat)).permute(self.order)

    def back(self, planes: Tensor, like: Tensor) -> Tensor:
        """The input again, in the shape of ``like``."""
        return planes.permute([self.order.index(axis) for axis in range(4)]).reshape(like.shape)


def find_layout(x: Tensor) -> Layout | None:
    """The pictures that samples [N, ...] of floats are; None if they are none.

    Of four axes one or three channels come before or after height and width. An input of one axis is a square picture
    if neighbours are alike in both directions, which features of a table are not.
    """
    if not x.is_floating_point():
        return None
    if x.dim() == 4:
        return Layout(FIRST) if x.shape[1] in CHANNELS else Layout(LAST) if x.shape[3] in CHANNELS else None
    if x.dim() < 2 or x[0].numel() != max(x.shape[1:]):
        return None
    rough = {each: roughness(each.planes(x)) for each in _squares(x[0].numel())}
    best = min(rough, key=rough.__getitem__, default=None)
    return best if best and rough[best] <= ROUGHEST else None


def _squares(elements: int) -> list[Layout]:
    found = []
    for channels in CHANNELS:
        side = math.isqrt(elements // channels)
        if side >= SMALLEST and side * side * channels == elements:
            found += [Layout(FIRST, (channels, side, side)), Layout(LAST, (side, side, channels))]
    return found


def roughness(planes: Tensor) -> float:
    """E[(a - b)²] / 2 Var[a] for neighbours a and b [N, C, H, W], along the rougher side: 1 if they are unrelated."""
    variance = float(planes.var(correction=0))
    steps = max(float(planes.diff(dim=axis).square().mean()) for axis in (2, 3))
    return steps / (2 * variance) if variance > 0 else math.inf


@dataclass(frozen=True)
class Warp:
    """A smooth change of place, of each sample its own: ``matrices`` [N, 2, 3] and ``bends`` [N, 2, BENDS, BENDS].

    In units of half a side, as ``affine_grid`` counts.
    """

    matrices: Tensor
    bends: Tensor

    @classmethod
    def drawn(cls, count: int, generator: torch.Generator) -> Warp:
        """Turned, sheared, scaled, shifted and bent by up to the module's constants, uniformly (Simard et al. 2003)."""

        def upto(limit: float, *shape: int) -> Tensor:
            return limit * (2 * torch.rand((count, *shape), generator=generator) - 1)

        angle, shear = upto(ANGLE), upto(ANGLE)
        across, down = 1 + upto(SCALE), 1 + upto(SCALE)
        rows = (
            torch.stack([across * angle.cos(), shear - angle.sin(), upto(2 * SHIFT)], 1),
            torch.stack([angle.sin(), down * angle.cos(), upto(2 * SHIFT)], 1),
        )
        return cls(torch.stack(rows, 1), upto(2 * BEND, 2, BENDS, BENDS))

    def of(self, planes: Tensor) -> Tensor:
        """The warped pictures; what comes in from outside is what lies at their edge."""
        precise = planes if planes.dtype == torch.float64 else planes.float()  # there is no half on every device
        bends = functional.interpolate(self.bends, planes.shape[2:], mode="bicubic", align_corners=True)
        grid = functional.affine_grid(self.matrices, list(planes.shape), align_corners=False) + bends.movedim(1, 3)
        found = functional.grid_sample(precise, grid.to(precise), padding_mode="border", align_corners=False)
        return found.to(planes.dtype)


def warped(inputs: Sequence[Tensor], layouts: Sequence[Layout], generator: torch.Generator) -> tuple[Tensor, ...]:
    """All inputs of each sample by the same warp."""
    warp = Warp.drawn(len(inputs[0]), generator)
    return tuple(layout.back(warp.of(layout.planes(x)), x) for x, layout in zip(inputs, layouts, strict=True))


def turned(inputs: Sequence[Tensor], layouts: Sequence[Layout], which: Tensor | None = None) -> tuple[Tensor, ...]:
    """Left to right and right to left; ``which`` samples of them, a mask [N], all by default."""
    found = []
    for x, layout in zip(inputs, layouts, strict=True):
        planes = layout.planes(x)
        flipped = planes.flip(3)
        if which is not None:
            flipped = torch.where(which.to(x.device)[:, None, None, None], flipped, planes)
        found.append(layout.back(flipped, x))
    return tuple(found)


@dataclass(frozen=True)
class Pictures:
    """What may be done to the pictures that the inputs of batches are, judged by what the original says of them.

    Args:
        outputs: what the original computes of the inputs, as the objective looks at it.
    """

    batches: Sequence[Batch]
    objective: Objective
    outputs: Callable[[Sequence[Tensor]], Sequence[Tensor]]

    @cached_property
    def layouts(self) -> tuple[Layout, ...]:
        """Of every input; none if one of them is no picture."""
        found = [find_layout(x) for x in self.batches[0].inputs]
        return tuple(found) if None not in found else ()

    @cached_property
    def turn(self) -> bool:
        """Do they mean the same the other way round?"""
        return self._alike(lambda inputs: turned(inputs, self.layouts))

    @cached_property
    def warp(self) -> bool:
        """Do they mean the same a little crooked?"""
        generator = torch.Generator().manual_seed(0)
        return self._alike(lambda inputs: warped(inputs, self.layouts, generator))

    def _alike(self, changed: Callable[[Sequence[Tensor]], Sequence[Tensor]]) -> bool:
        if not self.layouts:
            return False
        some = self.batches[: max(2, COMPARED // self.batches[0].count)]
        moved = another = 0.0
        for batch, after in zip(some, [*some[1:], some[0]], strict=True):
            moved += self._moved(changed(batch.inputs), batch)
            another += self._moved(after.inputs if batch.count == 1 else [x.roll(1, 0) for x in batch.inputs], batch)
        return moved < NEARER * another

    def _moved(self, inputs: Sequence[Tensor], batch: Batch) -> float:
        """The loss of what the original says of these inputs, given what it says of the batch."""
        if any(a.shape != b.shape for a, b in zip(inputs, batch.inputs, strict=True)):
            return 0.0
        return float(self.objective.loss(self.outputs(inputs), batch.targets, batch.count))


def warps(calibration: Calibration, layouts: Sequence[Layout], times: int, seed: int) -> Samples:
    """Each of the samples ``times`` warped, one round of all after the other."""
    names, generator = calibration.mirror.input_names, torch.Generator().manual_seed(seed)

    def crooked(_: int, feed: Feed) -> Feed:
        inputs = warped([torch.from_numpy(feed[name]) for name in names], layouts, generator)
        return {name: x.numpy() for name, x in zip(names, inputs, strict=True)}

    return calibration.samples.changed(times, crooked, "warped")


def with_warps(calibration: Calibration, layouts: Sequence[Layout], times: int, seed: int) -> Calibration:
    """The samples, and each ``times`` warped. Only while the mirror holds the original weights."""
    return calibration.with_more(warps(calibration, layouts, times, seed), "warped")
