"""Gram matrices of what enters the weight-carrying nodes, collected through the mirror batch by batch.

Memory: K x min(K, block) numbers for a weight with K columns, and what the pass over the samples holds (``walk.py``),
never the unfolded inputs of all samples. Of a node with many positions (a convolution) a random part of the positions
is used, the same number of every batch, at least ``ROWS_PER_COLUMN`` for every column.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from onnx_obd.calibration.measure import Calibration
from onnx_obd.surgery.operands import Operand
from onnx_obd.surgery.walk import Walk

BLOCK = 1024
"""Columns of one Gram matrix at most; a wider weight gets the diagonal blocks."""

ROWS_PER_COLUMN = 32
"""Positions for every column of a Gram matrix, where there are so many."""


TOGETHER = 1 << 20
"""Numbers in the rows that are multiplied at once: batches of few positions are gathered until they have so many."""


@dataclass(frozen=True)
class NormalEquations:
    """What least squares needs of one block of columns of one operand.

    Attributes:
        columns: of the block, as a slice of 0..K.
        gram: X^T X [G, k, k], or [G, k + 1, k + 1] with a column of ones behind, sums over positions.
        moments: X^T (Y0 - Y) [G, k (+ 1), R], Y0 and Y with what ``Operand.shift`` adds.
        positions: how many there are in all (not only those used), over the samples.
    """

    columns: slice
    gram: Tensor
    moments: Tensor
    positions: int


def column_blocks(columns: int, size: int = BLOCK) -> list[slice]:
    """0..columns in nearly equal blocks of at most ``size``."""
    count = -(-columns // size)
    edges = [round(i * columns / count) for i in range(count + 1)]
    return [slice(a, b) for a, b in pairwise(edges)]


def normal_equations(
    present: Walk, original: Walk, operand: Operand, columns: slice, generator: torch.Generator
) -> NormalEquations:
    """The equations whose solution d minimises |X d - (Y0 - Y)|^2 over one block of columns.

    X is what enters the node in ``present``, Y = X W^T + bias; Y0 is the same in ``original``.
    """
    ones, batches = operand.shift is not None, len(present.calibration.batches)
    size = columns.stop - columns.start + ones
    w, w0 = (_at_least_single(operand.matrix(walk.weight(operand.name))) for walk in (present, original))
    offset = _shifted(original, operand) - _shifted(present, operand)
    sums, positions = _Sums(lambda x, error: (x.mT @ x, x.mT @ error)), 0
    pairs = (walk.values(operand.slots, operand.output) for walk in (present, original))
    for values, wanted in zip(*pairs, strict=True):
        product, target = operand.product(values), operand.product(wanted)
        chosen = _choose(product.positions, size, batches, generator)
        x, x0 = (_at_least_single(each.features(chosen)) for each in (product, target))
        error = x0 @ w0.mT - x @ w.mT + offset
        x = x[..., columns]
        x = torch.cat((x, x.new_ones(*x.shape[:-1], 1)), -1) if ones else x
        sums.add(product.positions / len(chosen), x, error)
        positions += product.positions
    return NormalEquations(columns, *sums.total(), positions)


class _Sums:
    """Sums over positions of products of rows [G, P, k], in float64; ``products`` gives those of some positions."""

    def __init__(self, products: Callable[..., tuple[Tensor, ...]]):
        self._products, self._waiting, self._numbers = products, [], 0
        self._total: tuple[Tensor, ...] | None = None

    def add(self, share: float, *rows: Tensor) -> None:
        """The rows of some positions, each of which stands for ``share`` positions: a factor of its root."""
        self._waiting.append(tuple(each * math.sqrt(share) for each in rows) if share != 1 else rows)
        self._numbers += rows[0].numel()
        if self._numbers >= TOGETHER:
            self._multiply()

    def total(self) -> tuple[Tensor, ...]:
        if self._waiting:
            self._multiply()
        return self._total

    def _multiply(self) -> None:
        rows = [torch.cat(each, 1) for each in zip(*self._waiting, strict=True)]
        found = [each.double() for each in self._products(*rows)]
        self._total = tuple(found) if self._total is None else tuple(map(torch.add, self._total, found))
        self._waiting, self._numbers = [], 0


def _shifted(walk: Walk, operand: Operand) -> Tensor | float:
    """What the parameter of ``Operand.shift`` adds to the outputs: [G, 1, R]."""
    if operand.shift is None:
        return 0.0
    return (walk.weight(operand.shift.name).reshape(-1)[operand.shift.elements] / operand.shift.factor)[:, None]


def _at_least_single(x: Tensor) -> Tensor:
    """In half precision sums over positions overflow, and some operators' features are of more than their weights."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _choose(positions: int, columns: int, batches: int, generator: torch.Generator) -> Tensor:
    wanted = -(-ROWS_PER_COLUMN * columns // batches)
    if positions <= wanted:
        return torch.arange(positions)
    return torch.randperm(positions, generator=generator)[:wanted]


@dataclass(frozen=True)
class Gram:
    """X^T X / N of one operand: its diagonal blocks [G, k, k], one for each slice of the columns."""

    operand: Operand
    blocks: tuple[tuple[slice, Tensor], ...]


def collect_grams(
    calibration: Calibration, operands: Sequence[Operand], generator: torch.Generator, block: int = BLOCK
) -> dict[str, Gram]:
    """The Gram matrices of all operands with the mirror's present weights, in one pass over the samples."""
    mirror = calibration.mirror
    slots = tuple({slot for operand in operands for slot in operand.slots})
    slices = {operand.name: column_blocks(operand.elements.shape[2], block) for operand in operands}
    sums = {name: _Sums(partial(_diagonal_blocks, slices=each)) for name, each in slices.items()}
    positions = dict.fromkeys(sums, 0)
    with torch.no_grad():
        for batch in calibration.batches:
            values = dict(zip(slots, mirror.evaluate(batch.inputs, outputs=slots), strict=True))
            for operand in operands:
                product = operand.product(tuple(values[slot] for slot in operand.slots))
                columns = operand.elements.shape[2]
                chosen = _choose(product.positions, columns, len(calibration.batches), generator)
                sums[operand.name].add(product.positions / len(chosen), _at_least_single(product.features(chosen)))
                positions[operand.name] += product.positions
    return {
        operand.name: Gram(
            operand,
            tuple(
                (columns, total / positions[operand.name])
                for columns, total in zip(slices[operand.name], sums[operand.name].total(), strict=True)
            ),
        )
        for operand in operands
    }


def _diagonal_blocks(x: Tensor, slices: Sequence[slice]) -> tuple[Tensor, ...]:
    return tuple(x[..., columns].mT @ x[..., columns] for columns in slices)
