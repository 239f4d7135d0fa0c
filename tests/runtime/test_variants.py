"""Variants beside the model they come from, on a machine whose moods are made up."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from onnx_obd.runtime import variants as module
from onnx_obd.runtime.latency import time_sweeps
from onnx_obd.runtime.variants import PLACEMENTS, TOGETHER, time_variants
from tests.runtime.test_latency import FakeMachine


@pytest.fixture
def machine(monkeypatch):
    """Models are seconds; the machine gets slower and slower, and every session has its own luck."""
    machine = FakeMachine(lambda seconds, number: seconds * (1 + number / 2000))
    luck = np.random.default_rng(0)
    opened = []

    class FakeSession:
        def __init__(self, seconds, threads, provider):
            self.seconds = seconds * luck.choice([0.97, 1.0, 1.03])
            opened.append(seconds)

        def run(self, names, feed):
            machine.run(self.seconds)()

    monkeypatch.setattr(module, "open_session", FakeSession)
    monkeypatch.setattr(module, "time_sweeps", partial(time_sweeps, clock=machine.clock))
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=machine.clock))
    return opened


def test_each_is_told_by_its_ratio_to_the_reference(machine):
    seconds = [0.002 * share for share in np.linspace(0.2, 1.2, 2 * TOGETHER + 3)]
    told = []
    reference, times, error = time_variants(
        0.002, [partial(float, each) for each in seconds], {}, progress=lambda *done: told.append(done)
    )
    ratios = np.array(times) / reference
    expected = np.linspace(0.2, 1.2, len(seconds))
    np.testing.assert_allclose(ratios, expected, rtol=0.07)
    off = np.sqrt(np.mean((ratios - expected) ** 2))
    assert off / 2 < error / reference < 2 * off
    assert told == [(8, 19), (16, 19), (19, 19)]
    assert set(machine) == {0.002, *seconds}


@pytest.mark.parametrize(("seconds", "placements"), [(1e-3, PLACEMENTS), (0.02, 1)])
def test_slow_models_are_placed_once(machine, seconds, placements):
    """What would run them more often than asked for is left out."""
    time_variants(seconds, [lambda: seconds], {}, seconds_each=0.05)
    assert len(machine) == 2 * placements


def test_none_to_time(machine):
    assert time_variants(0.002, [], {}) == (0.0, [], 0.0)
