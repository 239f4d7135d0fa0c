"""Mixtures: straight lines between two samples, never more than a part of the second."""

import numpy as np
import pytest

from onnx_obd.calibration.mixtures import mixtures, with_mixtures
from onnx_obd.calibration.samples import Samples
from tests.curvature.networks import calibration, mlp


def samples(*arrays):
    return Samples.from_feeds([{"x": a} for a in arrays], source="test", batchable=True)


def test_they_lie_between_their_two_samples():
    rng = np.random.default_rng(0)
    given = samples(*(rng.normal(size=(1, 5)).astype(np.float32) for _ in range(6)))
    found = mixtures(given, 3, seed=1)
    assert len(found) == 18
    for feed, first in zip(found.feeds, 3 * given.feeds, strict=True):
        way = feed["x"].astype(float) - first["x"]
        shares = [
            (np.vdot(way, line) / max(np.vdot(line, line), 1e-12), line)
            for line in (other["x"].astype(float) - first["x"] for other in given.feeds)
        ]
        assert any(0 <= t <= 0.5 and np.allclose(way, t * line, atol=1e-6) for t, line in shares)
        assert feed["x"].dtype == np.float32
    assert mixtures(given, 3, seed=1).sha256 == found.sha256 != mixtures(given, 3, seed=2).sha256


@pytest.mark.parametrize("kind", [np.int64, np.float32])
def test_what_cannot_be_mixed_is_not(kind):
    """Integers, and shapes that differ."""
    width = 3 if kind is np.int64 else 4
    assert mixtures(samples(np.zeros((1, 3), kind), np.zeros((1, width), kind)), 2, seed=0) is None


def test_targets_of_mixtures_are_the_originals_outputs():
    plain, _ = calibration(mlp(), count=6)
    more = with_mixtures(plain, 2, seed=0)
    assert more.num_samples == 18 and more.loss() == pytest.approx(0, abs=1e-12)
    plain.mirror.weights["b1"].data += 1.0
    assert more.loss() > 0 and plain.num_samples == 6
