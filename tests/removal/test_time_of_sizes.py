import pytest

from onnx_obd.removal.thinning import Thinning
from onnx_obd.removal.time_of_sizes import TimeOfSizes, sizes_to_try
from tests.removal.clock import microseconds, run_by_weights
from tests.removal.networks import prepared


@pytest.mark.parametrize(
    ("count", "shares", "sizes"),
    [
        (256, 4, [128, 192, 224, 240]),
        (256, 2, [192, 224]),
        (64, 4, [32, 48]),
        (48, 4, [24, 40]),
        (20, 4, [12, 16]),
        (10, 4, [5, 8, 9]),
        (3, 4, [2]),
        (2, 4, [1]),
        (1, 4, []),
    ],
)
def test_sizes_that_kernels_like(count, shares, sizes):
    assert sizes_to_try(count, shares) == sizes


def test_gains_are_the_differences_of_the_clock_and_are_measured_once(tmp_path, monkeypatch):
    timed = run_by_weights(monkeypatch)
    run = prepared(tmp_path)
    thinning = Thinning(run)
    times = TimeOfSizes(thinning)
    reference, gains = times.gains(frozenset())
    assert reference == microseconds(run.model.proto)
    first, second = (next(f for f, units in thinning.families.items() if len(units) == n) for n in (64, 48))
    assert gains[first] == {left: (64 - left) * (12 + 1 + 48) for left in (32, 48)}
    assert all(gain == (48 - left) * (64 + 1 + 5) for left, gain in gains[second].items())
    times.gains(frozenset())
    assert len(timed) == 1

    one, other = (frozenset({unit.id}) for unit in thinning.families[first][:2])
    assert times.gains(one) == times.gains(other)  # which of them went does not matter
    assert len(timed) == 2
    assert times.gains(one)[0] == reference - 61


@pytest.mark.parametrize(("run", "each"), [(1e-5, 0.06), (0.01, 0.4), (0.3, 1.0)])
def test_slow_models_are_run_less_often(tmp_path, monkeypatch, run, each):
    timed = run_by_weights(monkeypatch)
    monkeypatch.setattr(TimeOfSizes, "_seconds_of_a_run", run)
    TimeOfSizes(Thinning(prepared(tmp_path))).gains(frozenset())
    assert [seconds for _, seconds in timed] == [pytest.approx(each)]


def test_of_very_slow_models_one_size_of_each_family_is_tried(tmp_path, monkeypatch):
    timed = run_by_weights(monkeypatch)
    thinning = Thinning(prepared(tmp_path))
    for run in (0.3, 10.0):
        monkeypatch.setattr(TimeOfSizes, "_seconds_of_a_run", run)
        TimeOfSizes(thinning).gains(frozenset())
    (several, _), (one, _) = timed
    assert several > one == len(thinning.families)
