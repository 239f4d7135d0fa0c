"""Many variants of one model timed against it: what each would gain, learned from the clock."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import onnx

from onnx_obd.calibration.samples import Feed
from onnx_obd.graph.session import CPU, open_session
from onnx_obd.runtime.latency import of_placements, time_sweeps

TOGETHER = 8
"""Variants whose sessions are open at once."""

PLACEMENTS = 3
"""How often the sessions are made anew: where its memory lies changes the speed of each by several per cent."""

MIN_SWEEPS = 4
"""Of each placement."""

FEWEST_RUNS = MIN_SWEEPS + 2
"""Of each variant: one that shows how long it takes, one to warm up, and the sweeps."""

VARIANCE_OF_A_MEDIAN = math.pi / 2
"""Times that of the mean, for normal errors and many of them."""


def time_variants(
    reference: onnx.ModelProto,
    variants: Sequence[Callable[[], onnx.ModelProto]],
    feed: Feed,
    *,
    threads: int = 1,
    provider: str = CPU,
    seconds_each: float = 0.12,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[float, list[float], float]:
    """Microseconds of one run: of the reference, and of each variant as its median ratio to the reference times that;
    and the standard error of these.

    With onnxruntime's default optimisations, each variant next to the reference, so that the machine's moods meet both
    alike. What is told is the median over placements of the medians over sweeps.

    Args:
        variants: made when their turn comes, a few at a time.
        feed: one run's inputs.
        seconds_each: how long to run each, over all placements; no shorter than ``FEWEST_RUNS`` take. Where sessions
            or runs take so long that it is less for one placement than that, there is only one.
    """
    rng = np.random.default_rng(seed)
    times, ratios, variances = [], [], []
    for start in range(0, len(variants), TOGETHER):
        protos = [reference, *(make() for make in variants[start : start + TOGETHER])]
        seconds = seconds_each * len(protos)
        for_placements, placements = [], 1
        while len(for_placements) < placements:
            begin = time.perf_counter()
            sessions = {i: open_session(protos[i], threads=threads, provider=provider) for i in _order(rng, protos)}
            runs = [partial(sessions[index].run, None, feed) for index in range(len(protos))]
            if not for_placements:
                placements = PLACEMENTS if _shortest(begin, runs[0], len(runs)) <= seconds else 1
            for_placements.append(time_sweeps(runs, seconds / placements, rng, min_sweeps=MIN_SWEEPS))
        times += [np.median(sweeps[:, 0]) for sweeps in for_placements]
        several = of_placements([sweeps[:, 1:] / sweeps[:, :1] for sweeps in for_placements])
        ratios += np.median(several, axis=0).tolist()
        variances += (VARIANCE_OF_A_MEDIAN * several.var(0, ddof=1) / len(several)).tolist()
        if progress:
            progress(min(start + TOGETHER, len(variants)), len(variants))
    base = 1e6 * float(np.median(times)) if times else 0.0
    return base, [base * ratio for ratio in ratios], base * math.sqrt(np.mean(variances)) if variances else 0.0


def _shortest(begin: float, reference: Callable[[], object], count: int) -> float:
    """Seconds that one placement of so many models takes at least; their sessions have been made since ``begin``."""
    made = time.perf_counter()
    reference()
    return made - begin + (FEWEST_RUNS - 1) * count * (time.perf_counter() - made)


def _order(rng: np.random.Generator, protos: Sequence[onnx.ModelProto]) -> list[int]:
    return rng.permutation(len(protos)).tolist()
