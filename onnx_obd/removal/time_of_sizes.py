"""What onnxruntime gains when a family of units gets smaller, learned from the clock and kept for the run.

Per family and not per node: a family's units go through several nodes, which onnxruntime fuses with others, pads to
what its kernels like and lays out anew, so that the sum of node times is not the time of the model. A family that saves
nothing (its nodes are small, the time is elsewhere) is seen to save nothing. Times of two families do not add up (a
Conv costs the product of its channels), so they are measured anew from every state that is worth going on from. Where
the clock is unsure, the work that goes has a say (``likely_gains``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cached_property, partial

import numpy as np
import onnx

from onnx_obd.graph.session import open_session
from onnx_obd.removal.likely_gains import likely_gains
from onnx_obd.removal.thinning import Gone, Thinning
from onnx_obd.runtime.latency import timed_feed
from onnx_obd.runtime.variants import FEWEST_RUNS, time_variants

SHARES = (0.75, 0.875, 0.5, 0.9375)
"""Of a family, how much is kept in the trials; with many families only the first of these."""

SECONDS_EACH, RUNS_EACH, MOST_SECONDS = 0.06, 40, 1.0
"""For the timing of one variant: as long as so many runs take, but no shorter and no longer than that."""

MOST_VARIANTS, MOST_SECONDS_TOGETHER = 64, 64.0
"""Timed in one go: no more than so many, and one share of each family if more would take longer than that."""

MULTIPLES = ((64, 16), (32, 8), (16, 4), (0, 1))
"""Of a family of at least so many, multiples of so many are tried: kernels pad to such sizes."""


def liked_multiple(count: int) -> int:
    """Of a family of ``count`` units, what vector kernels like the number left to be a multiple of."""
    return next(multiple for least, multiple in MULTIPLES if count >= least)


def sizes_to_try(count: int, shares: int) -> list[int]:
    """Numbers of units to keep, of ``count``: fewer, at least one, what vector kernels like."""
    multiple = liked_multiple(count)
    sizes = {max(1, -(-round(share * count) // multiple) * multiple) for share in SHARES[:shares]}
    return sorted(size for size in sizes if size < count)


class TimeOfSizes:
    """Microseconds gained by removing units of one family, measured once for every state."""

    def __init__(self, thinning: Thinning):
        self.thinning, self.options = thinning, thinning.run.options
        self.feed = timed_feed(thinning.run.scoring.samples, self.options.batch)
        self._known: dict[tuple[int, ...], tuple[float, dict[int, dict[int, float]]]] = {}

    def gains(
        self, gone: Gone, progress: Callable[[int, int], None] | None = None
    ) -> tuple[float, dict[int, dict[int, float]]]:
        """Microseconds of one run without ``gone``, and family -> units left -> microseconds less than that."""
        left = self.thinning.left(gone)
        key = tuple(len(units) for units in left.values())
        if key not in self._known:
            self._known[key] = self._measured(gone, progress)
        return self._known[key]

    @cached_property
    def _seconds_of_a_run(self) -> float:
        """Of the whole model, roughly."""
        options = self.options
        session = open_session(self.thinning.shape(frozenset()), threads=options.threads, provider=options.provider)
        session.run(None, self.feed)
        start = time.perf_counter()
        session.run(None, self.feed)
        return time.perf_counter() - start

    def _measured(
        self, gone: Gone, progress: Callable[[int, int], None] | None
    ) -> tuple[float, dict[int, dict[int, float]]]:
        thinning, left = self.thinning, self.thinning.left(gone)
        seconds_each = max(SECONDS_EACH, min(RUNS_EACH * self._seconds_of_a_run, MOST_SECONDS))
        most = min(MOST_VARIANTS, MOST_SECONDS_TOGETHER / max(seconds_each, FEWEST_RUNS * self._seconds_of_a_run))
        shares = max(1, min(len(SHARES), int(most) // max(1, len(left))))
        trials = [(family, size) for family, units in left.items() for size in sizes_to_try(len(units), shares)]
        makes = [partial(self._variant, gone, family, size) for family, size in trials]
        reference, times, error = time_variants(
            thinning.shape(gone),
            makes,
            self.feed,
            threads=self.options.threads,
            provider=self.options.provider,
            seconds_each=seconds_each,
            progress=progress,
        )
        gains = reference - np.array(times)
        if trials:
            gains = likely_gains(gains, error, self._work(gone, trials))
        found: dict[int, dict[int, float]] = {family: {} for family in left}
        for (family, size), gain in zip(trials, gains.tolist(), strict=True):
            found[family][size] = gain
        return reference, found

    def _work(self, gone: Gone, trials: Sequence[tuple[int, int]]) -> np.ndarray:
        """The multiplications and the written values that go with each, [trials, 2]."""
        before = self.thinning.work_gone(gone)
        found = [self.thinning.work_gone(self._gone(gone, *trial)) for trial in trials]
        return np.array(found, dtype=float) - before

    def _variant(self, gone: Gone, family: int, size: int) -> onnx.ModelProto:
        return self.thinning.shape(self._gone(gone, family, size))

    def _gone(self, gone: Gone, family: int, size: int) -> Gone:
        """As if the last of a family had gone: which of them go does not matter to the clock."""
        units = self.thinning.left(gone)[family]
        return gone | {unit.id for unit in units[size:]}
