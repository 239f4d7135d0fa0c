from __future__ import annotations

import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import onnx_obd.runtime.latency as latency_module
from onnx_obd.calibration.samples import Samples
from onnx_obd.errors import DataError, UsageError
from onnx_obd.graph.weights import find_weights, write_weights
from onnx_obd.runtime.latency import MIN_SWEEPS, PLACEMENTS, measure_latency, median_interval, time_sweeps
from tests.export.models import dense_net, model, normal, value


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


class FakeMachine:
    """A clock that only the timed calls move; ``delay`` is how long a call takes, by its name and number."""

    def __init__(self, delay):
        self.now, self.delay, self.calls = 0.0, delay, []

    def clock(self) -> float:
        return self.now

    def run(self, name: str):
        def call() -> None:
            self.now += self.delay(name, len(self.calls))
            self.calls.append(name)

        return call


def test_sweeps_report_each_calls_own_time():
    machine = FakeMachine(lambda name, _: {"a": 0.003, "b": 0.001, "c": 0.002}[name])
    times = time_sweeps([machine.run(name) for name in "abc"], 0.6, rng(), clock=machine.clock)
    assert times.shape == (100, 3)
    np.testing.assert_allclose(times, np.tile([0.003, 0.001, 0.002], (100, 1)), rtol=1e-9)


def test_sweeps_alternate_a_random_order_and_its_reverse():
    machine = FakeMachine(lambda *_: 0.001)
    times = time_sweeps([machine.run(name) for name in "abc"], 0.12, rng(), clock=machine.clock)
    timed = machine.calls[-3 * len(times) :]
    sweeps = ["".join(timed[i : i + 3]) for i in range(0, len(timed), 3)]
    assert len(sweeps) % 2 == 0
    assert all(first == second[::-1] for first, second in zip(sweeps[::2], sweeps[1::2], strict=True))
    assert len(set(sweeps)) == 6
    again = FakeMachine(lambda *_: 0.001)
    time_sweeps([again.run(name) for name in "abc"], 0.12, rng(), clock=again.clock)
    assert again.calls == machine.calls


def test_a_drift_of_the_clock_rate_cancels_in_the_ratio():
    """Both take as long at any moment, but the machine gets slower and slower."""
    machine = FakeMachine(lambda _, number: 0.001 * (1 + number / 1000))
    times = time_sweeps([machine.run("a"), machine.run("b")], 2.0, rng(), clock=machine.clock)
    ratio = median_interval(times[:, 0] / times[:, 1])
    assert times[-1, 0] > 1.5 * times[0, 0]
    assert ratio.median == pytest.approx(1, abs=2e-3)


def test_short_calls_are_repeated_long_ones_are_not():
    machine = FakeMachine(lambda name, _: 1e-5 if name == "short" else 0.1)
    times = time_sweeps([machine.run("short"), machine.run("long")], 1.0, rng(), clock=machine.clock)
    per_sweep = machine.calls.count("short") / len(times)
    assert 50 <= per_sweep < 56
    assert machine.calls.count("long") == len(times) + 1  # and one to warm up
    assert machine.calls[:3] == ["short"] * 3
    np.testing.assert_allclose(times[:, 0], 1e-5, rtol=1e-6)


def test_slow_models_get_enough_sweeps_and_progress_is_told():
    machine, told = FakeMachine(lambda *_: 5.0), []
    times = time_sweeps(
        [machine.run("a"), machine.run("b")], 1.0, rng(), progress=lambda *p: told.append(p), clock=machine.clock
    )
    assert len(times) == MIN_SWEEPS
    assert told[-1] == (100, 100)


def test_outliers_do_not_move_the_result():
    chance = rng()
    machine = FakeMachine(lambda name, _: {"a": 0.002, "b": 0.001}[name] * (50 if chance.random() < 0.1 else 1))
    times = time_sweeps([machine.run("a"), machine.run("b")], 2.0, rng(), clock=machine.clock)
    ratio = median_interval(times[:, 0] / times[:, 1])
    assert times.max() > 0.04
    assert (ratio.low, ratio.median, ratio.high) == pytest.approx((2, 2, 2))


@pytest.mark.parametrize(("n", "k"), [(6, 1), (8, 1), (9, 2), (12, 3), (25, 8), (100, 40)])
def test_ranks_of_the_interval(n, k):
    """Ranks from printed tables of the sign test's 95 % interval."""
    interval = median_interval(rng().permutation(np.arange(1.0, n + 1)))
    assert (interval.low, interval.high) == (k, n + 1 - k)
    assert interval.median == (n + 1) / 2
    below = [math.comb(n, i) / 2**n for i in range(k + 1)]
    assert sum(below[:k]) <= 0.025 < sum(below)


def test_the_interval_of_few_values_is_their_range():
    interval = median_interval(np.array([3.0, 1.0, 2.0]))
    assert (interval.low, interval.median, interval.high) == (1, 2, 3)
    assert median_interval(np.array([4.0])).high == 4


def test_the_interval_covers_the_median_in_95_percent():
    chance = rng()
    intervals = [median_interval(chance.exponential(size=41)) for _ in range(3000)]
    covered = np.mean([interval.low <= math.log(2) <= interval.high for interval in intervals])
    assert 0.945 < covered < 0.985


# --- in onnxruntime


def samples_of(count: int, width: int = 37, batchable: bool = True) -> Samples:
    feeds = [{"x": normal(1, width, seed=seed)} for seed in range(count)]
    return Samples.from_feeds(feeds, source="made", batchable=batchable)


def products(count: int, width: int = 160) -> onnx.ModelProto:
    """``count`` matrix products in a row."""
    weights = [numpy_helper.from_array(0.05 * normal(width, width, seed=i), f"W{i}") for i in range(count)]
    names = ["x", *(f"h{i}" for i in range(count - 1)), "y"]
    nodes = [helper.make_node("MatMul", [names[i], f"W{i}"], [names[i + 1]]) for i in range(count)]
    return model(nodes, [value("x", "N", width)], [value("y", "N", width)], weights)


def test_a_model_with_a_tenth_of_the_work_is_faster():
    latency = measure_latency(products(40), products(4), samples_of(8, 160), batch=8, seconds=0.3)
    assert latency.speedup.low > 2
    assert latency.original.median > 2 * latency.pruned.median
    assert (latency.threads, latency.batch) == (1, 8)
    assert latency.runs >= MIN_SWEEPS
    assert latency.subnormal_weights == 0
    assert latency.original_flushed is None
    for interval in (latency.original, latency.pruned, latency.speedup):
        assert 0 < interval.low <= interval.median <= interval.high


def test_the_luck_of_a_session_is_part_of_the_interval(monkeypatch):
    """All runs of one session take equally long, but sessions of the same model do not: no run of one shows that."""
    original, pruned = dense_net(), dense_net()
    machine = FakeMachine(lambda seconds, _: seconds)
    luck = iter([0.8, 1.25, 0.9, 1.1, 1.0, 0.85, 1.2, 0.95, 1.05])

    class FakeSession:
        def __init__(self, model: onnx.ModelProto, threads: int, provider: str):
            self.seconds = 0.002 * next(luck) if model is pruned else 0.002

        def run(self, names: None, feed: dict[str, np.ndarray]) -> None:
            machine.run(self.seconds)()

    monkeypatch.setattr(latency_module, "open_session", FakeSession)
    monkeypatch.setattr(latency_module, "time_sweeps", partial(time_sweeps, clock=machine.clock))
    latency = measure_latency(original, pruned, samples_of(1), seconds=2.0)
    assert next(luck, None) is None
    assert len(machine.calls) > 20 * PLACEMENTS
    speedup, milliseconds = latency.speedup, latency.pruned  # of nine values the second and the eighth: k = 2
    assert (speedup.low, speedup.median, speedup.high) == pytest.approx((1 / 1.2, 1, 1 / 0.85))
    assert (milliseconds.low, milliseconds.median, milliseconds.high) == pytest.approx((1.7, 2.0, 2.4))
    assert latency.original.low == pytest.approx(latency.original.high)


def test_sessions_that_take_long_to_make_are_made_once():
    latency = measure_latency(products(4), products(4), samples_of(1, 160), seconds=1e-4)
    assert latency.runs == MIN_SWEEPS


@pytest.mark.parametrize(("seconds", "placements"), [(0.002, PLACEMENTS), (0.02, 1)])
def test_sessions_of_slow_models_are_made_once(monkeypatch, seconds, placements):
    """One run of each takes a fifth of the time asked for: in nine placements they would run for six times as long."""
    machine, opened = FakeMachine(lambda *_: seconds), []

    def open_session(proto: onnx.ModelProto, **options) -> SimpleNamespace:
        opened.append(proto)
        return SimpleNamespace(run=lambda names, feed: machine.run(proto)())

    monkeypatch.setattr(latency_module, "open_session", open_session)
    monkeypatch.setattr(latency_module, "time_sweeps", partial(time_sweeps, clock=machine.clock))
    monkeypatch.setattr(latency_module, "time", SimpleNamespace(perf_counter=machine.clock))
    measure_latency(dense_net(), dense_net(), samples_of(1), seconds=0.2)
    assert len(opened) == 2 * placements


def test_subnormal_weights_are_counted_and_the_original_timed_without():
    proto = products(4)
    weight = find_weights(proto)["W0"].read(proto).copy()
    weight[:, :60] = 1e-40
    write_weights(proto, {"W0": weight})
    latency = measure_latency(proto, products(4), samples_of(1, 160), seconds=0.1)
    assert latency.subnormal_weights == 160 * 60
    assert latency.original_flushed.median > 0


def test_batches_that_cannot_be_had():
    proto = dense_net()
    with pytest.raises(UsageError, match="one by one"):
        measure_latency(proto, proto, samples_of(4, batchable=False), batch=2, seconds=0.01)
    with pytest.raises(UsageError, match="batch of 5"):
        measure_latency(proto, proto, samples_of(4), batch=5, seconds=0.01)
    with pytest.raises(UsageError):
        measure_latency(proto, proto, samples_of(4), batch=0, seconds=0.01)
    assert measure_latency(proto, proto, samples_of(4), batch=4, seconds=0.01).batch == 4


def test_refused_samples_are_one_line():
    with pytest.raises(DataError, match="made: onnxruntime refuses") as caught:
        measure_latency(dense_net(), dense_net(), samples_of(1, 36), seconds=0.01)
    assert "\n" not in str(caught.value)
