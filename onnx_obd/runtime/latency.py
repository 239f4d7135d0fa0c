"""How long models take in onnxruntime, timed side by side so that the machine's moods meet both alike."""

from __future__ import annotations

import gc
import itertools
import math
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import onnx

from onnx_obd.errors import UsageError
from onnx_obd.graph.session import CPU, open_session, outputs_of
from onnx_obd.records import Interval, Latency
from onnx_obd.runtime.subnormals import count_subnormals, flush_subnormals

if TYPE_CHECKING:
    from onnx_obd.calibration.samples import Feed, Samples

PLACEMENTS = 9
"""How often the sessions are made anew. Where a session's memory happens to lie changes its speed by several per cent
for as long as it lives, so runs of one session, however many, do not tell how fast the model is."""

MIN_SWEEPS = 6
"""With fewer values no pair of order statistics encloses the median with 95 % confidence."""

_SHORTEST_TIMING = 5e-4  # seconds; a shorter run is repeated, so that the clock and the caller cost little
_WARM_UP_RUNS, _WARM_UP_SECONDS = 3, 0.1  # no more of the first once they took the second
_FEWEST_RUNS = 3  # of each model in one placement: one to warm up, a pair of sweeps


def measure_latency(
    original: onnx.ModelProto,
    pruned: onnx.ModelProto,
    samples: Samples,
    *,
    batch: int = 1,
    threads: int = 1,
    provider: str = CPU,
    seconds: float = 4.0,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Latency:
    """Times two models on the same ``batch`` samples; where the original has subnormal weights, it flushed as well.

    Every sweep times each model once, next to each other; sweeps come in pairs, a random order and its reverse, so that
    a drift of the clock rate cancels. The sessions are made anew, in random order, :data:`PLACEMENTS` times. Reported
    are medians over the placements of the medians over their sweeps, for each model and for the ratio within a sweep
    (not the ratio of the medians), each with a distribution-free 95 % interval. If making the sessions and the fewest
    runs of each take more than half of ``seconds``, they are made once, and the interval leaves out what their
    placement does.

    Args:
        original, pruned: models with all their data in memory.
        samples: what the models are run on.
        batch: samples per run.
        threads: onnxruntime's threads within an operator.
        provider: onnxruntime's execution provider.
        seconds: how long to run the models; making sessions and warming up come on top.
        seed: of the orders.
        progress: told (percent done, 100) between sweeps.

    Raises:
        UsageError: fewer than ``batch`` samples of one shape, or a model that takes samples only one by one.
        ModelError, DataError: onnxruntime refuses a model or the samples.
    """
    feed = timed_feed(samples, batch)
    subnormal = sum(count_subnormals(original).values())
    models = [original, pruned, *([flush_subnormals(original)] if subnormal else [])]
    rng = np.random.default_rng(seed)
    times: list[np.ndarray] = []
    placements = 1
    while len(times) < placements:
        start = time.perf_counter()
        order = rng.permutation(len(models))
        sessions = {index: open_session(models[index], threads=threads, provider=provider) for index in order}
        if not times:
            made = time.perf_counter()
            for session in sessions.values():
                outputs_of(session, None, feed, samples.source)
            spent = made - start + _FEWEST_RUNS * (time.perf_counter() - made)
            placements = PLACEMENTS if spent <= seconds / 2 else 1
        runs = [partial(sessions[index].run, None, feed) for index in range(len(models))]
        min_sweeps = MIN_SWEEPS if placements == 1 else 2
        part = partial(_part_of_progress, progress, len(times), placements)
        times.append(time_sweeps(runs, seconds / placements, rng, min_sweeps=min_sweeps, progress=part))
    return Latency(
        original=_over_placements([1e3 * sweeps[:, 0] for sweeps in times]),
        pruned=_over_placements([1e3 * sweeps[:, 1] for sweeps in times]),
        speedup=_over_placements([sweeps[:, 0] / sweeps[:, 1] for sweeps in times]),
        threads=threads,
        batch=batch,
        provider=provider,
        runs=sum(map(len, times)),
        subnormal_weights=subnormal,
        original_flushed=_over_placements([1e3 * sweeps[:, 2] for sweeps in times]) if subnormal else None,
    )


def _part_of_progress(
    progress: Callable[[int, int], None] | None, parts_done: int, parts: int, done: int, total: int
) -> None:
    if progress:
        progress(int(100 * (parts_done + done / total) / parts), 100)


def _over_placements(values: Sequence[np.ndarray]) -> Interval:
    """The median with its interval."""
    return median_interval(of_placements(values))


def of_placements(values: Sequence[np.ndarray]) -> np.ndarray:
    """The medians over the sweeps [number of sweeps, ...] of each placement; of one placement its sweeps themselves."""
    return values[0] if len(values) == 1 else np.array([np.median(sweeps, axis=0) for sweeps in values])


def timed_feed(samples: Samples, batch: int) -> Feed:
    """The first ``batch`` samples of one shape, as one run takes them."""
    if batch < 1:
        raise UsageError(f"the batch must be at least 1, not {batch}")
    if batch > 1 and not samples.batchable:
        raise UsageError(f"{samples.source}: this model takes samples one by one; use a batch of 1")
    for start in range(len(samples) - batch + 1):
        feed, _ = next(samples.subset(range(start, start + batch)).batches(batch))
        if all(len(array) == batch * len(samples.feeds[start][name]) for name, array in feed.items() if array.ndim):
            return feed
    raise UsageError(f"{samples.source}: a batch of {batch} needs as many samples of one shape")


def time_sweeps(
    runs: Sequence[Callable[[], object]],
    seconds: float,
    rng: np.random.Generator,
    *,
    min_sweeps: int = MIN_SWEEPS,
    progress: Callable[[int, int], None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> np.ndarray:
    """Seconds per call, [number of sweeps, len(runs)], float64; each sweep calls every one of ``runs`` once.

    Sweeps come in pairs: a random order, then its reverse. A call shorter than half a millisecond is repeated, and the
    mean taken. A call that other work on the machine delays is an outlier for the caller to deal with, as
    :func:`median_interval` does.
    """
    times: list[list[float]] = []
    order: list[int] = []
    with _no_garbage_collection():
        repeats = [max(1, math.ceil(_SHORTEST_TIMING / max(_warm_up(run, clock), 1e-9))) for run in runs]
        begin = clock()
        for number in itertools.count():
            order = order[::-1] if number % 2 else rng.permutation(len(runs)).tolist()
            sweep = [0.0] * len(runs)
            for index in order:
                sweep[index] = _time(runs[index], repeats[index], clock)
            times.append(sweep)
            done = (clock() - begin) / seconds if seconds > 0 else 1.0
            if progress:
                progress(min(100, int(100 * done)), 100)
            if done >= 1 and len(times) >= min_sweeps and number % 2:
                return np.array(times)
    raise AssertionError("unreachable")


def _time(run: Callable[[], object], repeats: int, clock: Callable[[], float]) -> float:
    start = clock()
    for _ in range(repeats):
        run()
    return (clock() - start) / repeats


def _warm_up(run: Callable[[], object], clock: Callable[[], float]) -> float:
    """Runs until caches and pools are filled; the shortest time in seconds."""
    times: list[float] = []
    while len(times) < _WARM_UP_RUNS and sum(times) < _WARM_UP_SECONDS:
        times.append(_time(run, 1, clock))
    return min(times)


@contextmanager
def _no_garbage_collection():
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def median_interval(values: np.ndarray) -> Interval:
    """The median with a 95 % interval, the k-th smallest and k-th largest value, whatever the distribution.

    k is the largest for which P(B < k) ≤ 0.025, B being binomial(n, 1/2): how many of n independent values fall below
    the true median (David and Nagaraja, Order Statistics, 2003, section 7.1). With n < 6 it is the whole range, which
    covers less. Successive timings are not quite independent, so the interval is a little narrow.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    n = len(ordered)
    k, tail, term = 0, 0, 1  # tail: number of the 2^n outcomes with B < k; term: C(n, k)
    while 40 * (tail + term) <= 2**n and k < n // 2:
        tail, term, k = tail + term, term * (n - k) // (k + 1), k + 1
    k = max(k, 1)
    return Interval(float(np.median(ordered)), float(ordered[k - 1]), float(ordered[n - k]))
