"""What the proof says beside its figures."""

from dataclasses import replace

import pytest

from onnx_obd.options import Options
from onnx_obd.proof import slower_than_asked
from onnx_obd.records import FrontierPoint, Interval, Latency


def point(speed, milliseconds, shipped=True):
    return FrontierPoint(5, 100, milliseconds, Interval(speed, speed - 0.1, speed + 0.1), 0.0, None, None, None,
                         shipped=shipped)  # fmt: skip


def latency(speed, milliseconds):
    ratio, after = (Interval(each, 0.98 * each, 1.02 * each) for each in (speed, milliseconds))
    return Latency(original=Interval(2.0, 1.9, 2.1), pruned=after, speedup=ratio, threads=1, batch=1, runs=9)


@pytest.mark.parametrize("on_the_way, at_last, told", [(1.22, 1.16, True), (1.22, 1.19, False), (1.15, 1.1, False)])
def test_a_speed_that_only_the_search_saw_is_told(on_the_way, at_last, told):
    """Within its interval the last measurement agrees; a speed that was never reached is another note."""
    points, found = (point(1.0, 2.0, False), point(on_the_way, 2 / on_the_way)), latency(at_last, 2 / at_last)
    notes = slower_than_asked(Options(speedup=1.2), points, found)
    expected = f"1.20x was asked for and {on_the_way:.2f}x measured on the way, but {at_last:.2f}x at last"
    assert [note.partition(":")[0] for note in notes] == [expected] * told
    notes = slower_than_asked(Options(target_latency=f"{2 / 1.2}ms"), points, found)
    expected = (
        f"1.67 ms was asked for and {2 / on_the_way:.3g} ms measured on the way, but {2 / at_last:.3g} ms at last"
    )
    assert [note.partition(":")[0] for note in notes] == [expected] * told


def test_without_a_speed_or_a_clock_nothing_is_told():
    points = (point(1.22, 1.6),)
    assert slower_than_asked(Options(speedup=1.2), points, None) == ()
    assert slower_than_asked(Options(speedup=1.2), (), latency(1.1, 1.8)) == ()
    assert slower_than_asked(Options(remove_units=0.2), points, latency(1.1, 1.8)) == ()
    assert slower_than_asked(Options(speedup=1.2), (replace(points[0], shipped=False),), latency(1.1, 1.8)) == ()
