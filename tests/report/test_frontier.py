from dataclasses import replace
from xml.etree import ElementTree

from onnx_obd.records import FrontierPoint, Interval
from onnx_obd.report.frontier import frontier_plot, frontier_rows
from onnx_obd.report.html import to_html
from onnx_obd.report.table import render_table
from tests.report.example import CLASSIFIER, REGRESSION

SVG = "{http://www.w3.org/2000/svg}"


def point(units, milliseconds, loss, agreement, **more):
    speed = 2.0 / milliseconds
    return FrontierPoint(
        units,
        9000 - 10 * units,
        milliseconds,
        Interval(speed, speed, speed),
        loss,
        agreement,
        None,
        1 - agreement,
        **more,
    )


POINTS = (
    point(0, 2.0, 0.0, 1.0),
    point(100, 1.5, 0.02, 0.96),
    point(180, 1.6, 0.03, 0.93),  # slower and worse than the one before
    point(240, 1.0, 0.05, 0.91, shipped=True, trained=True),
)
REPORT = replace(CLASSIFIER, frontier=POINTS, parameters_after=6600)


def test_the_curve_leaves_out_what_is_slower_and_worse():
    svg = ElementTree.fromstring(frontier_plot(POINTS))
    (curve,) = svg.iter(f"{SVG}polyline")
    front = [tuple(map(float, pair.split(","))) for pair in curve.get("points").split()]
    dots = [
        (float(dot.get("cx")), float(dot.get("cy")))
        for dot in svg.iter(f"{SVG}circle")
        if dot.find(f"{SVG}title") is not None
    ]
    assert len(dots) == 4 and len(front) == 3
    assert set(front) == {dots[0], dots[1], dots[3]}
    assert dots[3][0] < dots[1][0] < dots[0][0]  # faster to the left
    assert dots[3][1] > dots[1][1] > dots[0][1]  # better upwards


def test_without_classes_the_loss_is_drawn():
    losses = [replace(each, agreement=None, drop=None) for each in POINTS]
    assert "held-back loss" in frontier_plot(losses)
    assert frontier_plot(POINTS[:1]) == ""


def test_rows():
    rows = frontier_rows(REPORT)
    assert rows[0][:4] == ["0", "9,000", "2.00 ms", "1×"]
    assert rows[3][0] == "240" and rows[3][3].startswith("2.000×") and rows[3][5] == "91.0 %"


def test_table_and_page_show_it():
    text = render_table(REPORT, width=120, color=False, encoding="utf-8")
    assert "On the way to the speed" in text and "drop at most" in text
    assert next(line for line in text.splitlines() if "6,600" in line and "61,706" not in line).split()[0] == "▸*"
    assert "On the way to the speed" in to_html(REPORT) and "Latency against quality" in to_html(REPORT)
    assert "On the way" not in render_table(REGRESSION, width=120, color=False, encoding="utf-8")
