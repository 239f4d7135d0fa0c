"""The minutes of a search: what counts, how long one thing may take, how large the steps are."""

import math

import pytest

from onnx_obd.removal import minutes as module
from onnx_obd.removal.minutes import FORWARD, SEARCH, Minutes


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets forward."""
    now = [100.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])

    def forward(seconds):
        now[0] += seconds

    return forward


def test_under_a_goal_everything_counts(clock):
    minutes = Minutes(1.0, everything=True)
    clock(0.9 * 60 * SEARCH)
    assert not minutes.over
    with minutes.training(0.5) as granted:
        assert granted == pytest.approx(0.1 * SEARCH)
    clock(0.2 * 60 * SEARCH)
    assert minutes.over and minutes.left_for_the_chosen == pytest.approx(1 - SEARCH)


def test_without_a_goal_training_alone_counts(clock):
    minutes = Minutes(1.0, everything=False)
    clock(1000.0)
    assert not minutes.over
    with minutes.training(0.25) as granted:
        assert granted == pytest.approx(0.25 * SEARCH)
        clock(60 * granted)
    assert minutes.left_for_the_chosen == pytest.approx(1 - 0.25 * SEARCH)


def test_none_means_no_training_and_no_end(clock):
    minutes = Minutes(0.0, everything=True)
    clock(1000.0)
    assert minutes.over and not minutes.everything and minutes.seconds_of_a_refit == math.inf
    assert minutes.step(1.1, 10.0) == 1.1


def test_the_longer_a_step_takes_the_larger_it_is_and_its_training(clock):
    minutes, search = Minutes(1.0, everything=True), 60 * SEARCH
    with minutes.measured("offers"):
        clock(search / 400)
    assert minutes.step(1.1, 10.0) == 1.1
    with minutes.measured("refit"):
        clock(search / 4)
    two = 0.5 / (1 / 400 + 1 / 4)  # affordable in half of the time
    assert minutes.step(1.1, 10.0) == pytest.approx(2 ** (1 / two))
    assert minutes.step(1.1, 1.3) == pytest.approx(1.3 ** (1 / two))
    with minutes.training(0.1) as granted:
        assert 60 * granted == pytest.approx(search / 400 + search / 4)


def test_the_last_training_takes_from_what_is_left(clock):
    minutes = Minutes(1.0, everything=True)
    clock(0.5 * 60 * SEARCH)
    with minutes.last() as granted:
        assert granted == pytest.approx(1 - 0.5 * SEARCH)
        clock(0.25 * 60 * granted)
    assert minutes.left_for_the_chosen == pytest.approx(0.75 * granted)


def test_refits_may_take_their_share_and_trainings_parts_of_the_rest(clock):
    minutes, search = Minutes(1.0, everything=True), 60 * SEARCH
    clock(0.99 * FORWARD * search)
    assert not minutes.half_over
    clock(0.02 * FORWARD * search)
    assert minutes.half_over and not minutes.over
    assert minutes.part(4) == pytest.approx((1 - 1.01 * FORWARD) / 4)
    clock(search)
    assert minutes.over and minutes.part(4) == 0
    assert not Minutes(0.0, everything=True).half_over and not Minutes(1.0, everything=False).half_over
