"""The minutes that a search for a faster model may take."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

SEARCH = 0.8
"""Share of the minutes that is for the search; the rest is for the training of the model chosen."""

REFIT = 1 / 12
"""Of the search, what one refit may take."""

FORWARD, AS_FAR = 0.5, 2.0
"""Without training steps may take this share of the search; they are so large that they would lead to this speed."""


class Minutes:
    """What is left of them. Without a number of minutes there is no training and no end.

    Args:
        everything: the search has no other end than a loss or a drop, so all that it does counts: derivatives, refits,
            timing and training. Otherwise it goes on to a given speed, and the minutes are those of training alone.
    """

    def __init__(self, minutes: float, everything: bool):
        self.minutes, self.everything = minutes, everything and minutes > 0
        self._start, self._trained = time.perf_counter(), 0.0
        self._after: float | None = None
        self._cost: dict[str, float] = {}

    @property
    def _whole(self) -> float:
        return 60 * SEARCH * self.minutes

    @property
    def _left(self) -> float:
        return self._whole - (time.perf_counter() - self._start if self.everything else self._trained)

    @property
    def seconds_of_a_refit(self) -> float:
        return REFIT * self._whole if self.minutes > 0 else math.inf

    @property
    def over(self) -> bool:
        """Is there no time for a training?"""
        return self._left <= 0

    @property
    def half_over(self) -> bool:
        """Has what counts without training taken its share?"""
        return self.everything and self._left <= (1 - FORWARD) * self._whole

    def part(self, parts: int) -> float:
        """One of so many parts of what is left, as a share of the whole."""
        return max(0.0, self._left) / self._whole / parts

    @property
    def left_for_the_chosen(self) -> float:
        """Minutes for the training of the model chosen: its share, and what the search has left."""
        return (1 - SEARCH) * self.minutes + max(0.0, self._left) / 60 if self._after is None else self._after

    @contextmanager
    def last(self) -> Iterator[float]:
        """All that is left, for a training after which the model is chosen."""
        start, granted = time.perf_counter(), self.left_for_the_chosen
        yield granted
        self._after = max(0.0, granted - (time.perf_counter() - start) / 60)

    @contextmanager
    def measured(self, part: str) -> Iterator[None]:
        """One of the two parts of a step, before its training."""
        start = time.perf_counter()
        yield
        self._cost[part] = time.perf_counter() - start

    @property
    def _step_seconds(self) -> float:
        """Of one step without its training; of the first only one part may be known."""
        return 2 * sum(self._cost.values()) / max(1, len(self._cost))

    def step(self, usual: float, target: float) -> float:
        """How much faster one step should make the model: more than usual where steps take long."""
        if not self.everything:
            return usual
        affordable = FORWARD * self._whole / max(self._step_seconds, 1e-9)
        return max(usual, min(target, AS_FAR) ** (1 / max(1.0, affordable)))

    @contextmanager
    def training(self, share: float) -> Iterator[float]:
        """The minutes for one training: a share of all for the search, or what is left of them."""
        seconds = max(share * self._whole, self._step_seconds) if self.everything else share * self._whole
        start = time.perf_counter()
        yield min(seconds, self._left) / 60
        self._trained += time.perf_counter() - start
