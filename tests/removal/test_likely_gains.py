"""Gains drawn towards what the work explains: by how much, and whether that brings them nearer to the truth."""

import numpy as np
import pytest

from onnx_obd.removal.likely_gains import likely_gains


def drawn(error, spread, count=60, seed=0):
    """True gains around two prices of work, and what a clock with an error measures."""
    rng = np.random.default_rng(seed)
    work = rng.uniform(0, 1, (count, 2))
    truth = work @ [3.0, 1.0] + spread * rng.normal(size=count)
    return truth, truth + error * rng.normal(size=count), work


def test_a_sure_clock_is_believed():
    _, measured, work = drawn(0.5, 0.5)
    np.testing.assert_allclose(likely_gains(measured, 0.0, work), measured)


def test_an_unsure_one_only_as_far_as_the_work_does_not_explain():
    truth, measured, work = drawn(1.0, 0.0)
    found = likely_gains(measured, 1.0, work)
    assert np.square(found - truth).mean() < 0.2 * np.square(measured - truth).mean()


@pytest.mark.parametrize("seed", range(5))
def test_they_are_nearer_to_the_truth_and_the_largest_are_no_luck(seed):
    truth, measured, work = drawn(1.0, 0.7, seed=seed)
    found = likely_gains(measured, 1.0, work)
    assert np.square(found - truth).mean() < 0.7 * np.square(measured - truth).mean()
    best = [each.argsort()[-10:] for each in (found, measured)]
    assert truth[best[0]].sum() > truth[best[1]].sum() - 1
    assert abs(found[best[0]].sum() - truth[best[0]].sum()) < 0.5 * (measured[best[1]].sum() - truth[best[1]].sum())


def test_work_that_explains_nothing_has_no_say():
    _, measured, work = drawn(1.0, 1.0)
    np.testing.assert_array_equal(likely_gains(measured, 1.0, -work), measured)  # at negative prices only
    np.testing.assert_array_equal(likely_gains(measured[:1], 1.0, work[:1]), measured[:1])
    np.testing.assert_array_equal(likely_gains(np.zeros(4), 1.0, work[:4]), np.zeros(4))
