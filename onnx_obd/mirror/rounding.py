"""Which values are rounded to a grid next: there the last bit of a sum may decide between two neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from onnx_obd.mirror.axes import ELEMENTWISE
from onnx_obd.mirror.program import Step


def mark_rounded(steps: Sequence[Step]) -> list[Step]:
    """The steps, those whose result a QuantizeLinear reads, perhaps behind elementwise ones, told so by ``Rounded``."""
    rounded: set[int] = set()
    marked = []
    for step in reversed(steps):
        reached = rounded.intersection(step.outputs)
        if step.operator.recodes and not step.operator.stored:
            rounded.add(step.inputs[0])
        elif reached and step.operator.axes == ELEMENTWISE:
            rounded.update(step.inputs)
        keyword = step.operator.keyword_of("rounded")
        marked.append(replace(step, call=partial(step.call, **{keyword: True})) if reached and keyword else step)
    return marked[::-1]
