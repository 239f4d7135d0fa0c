"""Corruptions: samples moved along differences of others, and by noise as wide as the data are."""

import numpy as np
import pytest

from onnx_obd.calibration.corruptions import DIFFERENCE, NOISE, differences, noise
from onnx_obd.calibration.samples import Samples


def samples(*arrays):
    return Samples.from_feeds([{"x": a} for a in arrays], source="test", batchable=True)


def test_differences_are_parts_of_those_of_two_samples():
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(1, 5)).astype(np.float32) for _ in range(6)]
    found = differences(samples(*arrays), 3, seed=1)
    assert len(found) == 18
    lines = [(a - b).astype(float) for a in arrays for b in arrays if a is not b]
    for feed, given in zip(found.feeds, 3 * arrays, strict=True):
        way = feed["x"].astype(float) - given
        shares = [(np.vdot(way, line) / np.vdot(line, line), line) for line in lines]
        still = np.allclose(way, 0, atol=1e-6)  # where the two drawn are the same
        assert still or any(0 <= t <= DIFFERENCE and np.allclose(way, t * line, atol=1e-6) for t, line in shares)
        assert feed["x"].dtype == np.float32


def test_noise_is_as_wide_as_each_element_is():
    rng = np.random.default_rng(0)
    width = np.array([[0.0, 0.1, 3.0]])
    arrays = [(5 + width * rng.normal(size=(1, 3))).astype(np.float32) for _ in range(40)]
    found = noise(samples(*arrays), 100, seed=1)
    way = np.concatenate([feed["x"] for feed in found.feeds]) - np.concatenate(100 * arrays)
    # t e with t uniform in [0, NOISE]: variance NOISE^2 / 3
    assert way.std(0) == pytest.approx(NOISE / 3**0.5 * np.concatenate(arrays).std(0), rel=0.05, abs=1e-12)
    assert way.mean(0) == pytest.approx(0, abs=0.1) and found.feeds[0]["x"].dtype == np.float32


@pytest.mark.parametrize("make", [differences, noise])
def test_the_same_seed_makes_the_same(make):
    given = samples(*np.random.default_rng(0).normal(size=(4, 1, 3)).astype(np.float32))
    assert make(given, 2, seed=1).sha256 == make(given, 2, seed=1).sha256 != make(given, 2, seed=2).sha256
