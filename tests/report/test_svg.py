from __future__ import annotations

from xml.etree import ElementTree

import pytest

from onnx_obd.report.svg import Drawing, Scale, tick_label


def test_scales_map_their_ends_to_their_ends():
    linear = Scale(2.0, 6.0, 100.0, 300.0)
    assert (linear(2.0), linear(3.0), linear(6.0)) == (100.0, 150.0, 300.0)
    log = Scale(1e-4, 1.0, 400.0, 0.0, log=True)
    assert (log(1e-4), log(1e-3), log(1.0)) == pytest.approx((400.0, 300.0, 0.0))


@pytest.mark.parametrize(
    ("scale", "ticks"),
    [
        (Scale(0.0, 1.0, 0, 330), [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (Scale(0.0, 0.26, 0, 160), [0, 0.1, 0.2]),
        (Scale(-3.0, 3.0, 0, 330), [-3, -2, -1, 0, 1, 2, 3]),
        (Scale(1e-5, 1e-1, 0, 330, True), [1e-5, 1e-4, 1e-3, 1e-2, 1e-1]),
        (Scale(0.8, 6.0, 0, 330, True), [1, 2, 5]),
    ],
)
def test_ticks_are_round_numbers_within_the_scale(scale, ticks):
    assert scale.ticks() == pytest.approx(ticks)


@pytest.mark.parametrize("values", [(0.0,), (1e-12, 1e12), (5.0, 5.0), (-2.0, 3.0), (-2.0, -1.0)])
def test_scales_around_any_values(values):
    for log in (False, True) if min(values) > 0 else (False,):
        scale = Scale.around(values, 0.0, 300.0, log=log)
        assert all(0 <= scale(value) <= 300 for value in values)
        assert 1 <= len(scale.ticks()) <= 12
        assert log or scale.low <= 0  # lengths are measured from zero


def test_text_and_tooltips_are_escaped():
    drawing = Drawing(50, 'a "title" <&>')
    drawing.text(1, 2, "<b>&\x07")
    drawing.dot(1, 2, "pruned", "<i>]]>")
    root = ElementTree.fromstring(str(drawing))
    assert root.get("aria-label") == 'a "title" <&>'
    assert [child.text or child[0].text for child in root] == ["<b>&\\x07", "<i>]]>"]


def test_tick_labels():
    assert [tick_label(value) for value in (0.0, 0.1 + 0.2, 0.001, 1e-5, 2500.0)] == [
        "0",
        "0.3",
        "0.001",
        "1e-5",
        "2500",
    ]
    assert tick_label(0.85, percent=True) == "85 %"
