"""Goals other than a sparsity: how far deletion may go, found by what was measured on the way."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from onnx_obd.errors import UsageError
from onnx_obd.records import Quality

RESOLUTION = 0.002
"""Bisection stops when the sparsity is known to this."""

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


@dataclass(frozen=True)
class Goal:
    """At most one of these is set; all are None for a plain sparsity.

    Attributes:
        max_drop: the accuracy (with labels), else the agreement with the original, may fall by this fraction.
        loss_budget: the held-back loss may rise by this much.
        target_size: bytes of the file to come below.
    """

    max_drop: float | None = None
    loss_budget: float | None = None
    target_size: int | None = None

    @property
    def limits_damage(self) -> bool:
        return self.max_drop is not None or self.loss_budget is not None

    def allows(self, quality: Quality, original: Quality) -> bool:
        """Is the damage of a variant, measured on the held-back samples, within the goal?

        Raises:
            UsageError: there is no accuracy and no agreement to measure a drop by.
        """
        if self.loss_budget is not None:
            return quality.loss - original.loss <= self.loss_budget
        if self.max_drop is None:
            return True
        if original.accuracy is not None:
            return original.accuracy - quality.accuracy <= self.max_drop + 1e-9
        if quality.agreement is None:
            raise UsageError("--max-drop needs a classifier; for other outputs give --loss-budget")
        return 1.0 - quality.agreement <= self.max_drop + 1e-9


def furthest(passes: Callable[[float], bool], low: float, high: float, resolution: float = RESOLUTION) -> float:
    """The largest x in [low, high] that passes, to ``resolution``, for a test that passes below some x and fails above.

    ``low`` is taken to pass and ``high`` to fail; neither is tested.
    """
    while high - low > resolution:
        middle = 0.5 * (low + high)
        if passes(middle):
            low = middle
        else:
            high = middle
    return low


def parse_size(text: str) -> int:
    """ "5MB" as bytes: B, kB, MB, GB (powers of 1000), KiB, MiB, GiB (powers of 1024).

    Raises:
        UsageError: not a positive size.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    if not found or found[2] not in _UNITS or not 1 <= float(found[1]) * _UNITS[found[2]] < 2**53:
        raise UsageError(f"'{text}' is not a file size, such as 5MB or 300kB")
    return round(float(found[1]) * _UNITS[found[2]])
