from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from onnx_obd.records import Interval, Round, WeightSummary
from onnx_obd.report import plots
from onnx_obd.report.summary import wilson_interval
from tests.report.example import CANDIDATES, CLASSIFIER, DENSE, LATENCY, REGRESSION, WEIGHTS

SVG = "{http://www.w3.org/2000/svg}"


def marks(svg: str, tag: str, css: str) -> list[dict[str, float]]:
    """Numeric attributes of the elements of one kind and class."""
    found = [e for e in ElementTree.fromstring(svg).iter(SVG + tag) if css in e.get("class").split()]
    return [{name: float(value) for name, value in e.items() if name != "class"} for e in found]


def texts(svg: str, css: str) -> list[str]:
    return [e.text for e in ElementTree.fromstring(svg).iter(f"{SVG}text") if css in e.get("class").split()]


def test_prediction_points_are_above_the_line_where_more_was_measured():
    svg = plots.prediction_plot([Round(0.1, 1e-3, 1e-3, 1e-2, 0.1, 1.0), Round(0.2, 1e-2, 1e-3, 1e-2, 0.1, 1.0)])
    (line,) = marks(svg, "line", "reference")
    above, on = sorted((dot for dot in marks(svg, "circle", "pruned") if "cy" in dot), key=lambda dot: dot["cx"])[1:]

    def height_of_line(x: float) -> float:
        return line["y1"] + (x - line["x1"]) / (line["x2"] - line["x1"]) * (line["y2"] - line["y1"])

    assert above["cy"] < height_of_line(above["cx"]) - 20
    assert on["cy"] == pytest.approx(height_of_line(on["cx"]), abs=0.2)


def test_the_prediction_with_cross_terms_is_drawn_beside_the_sum():
    together = replace(Round(0.1, 1e-3, 2e-3, 4e-3, 0.1, 1.0), predicted_together=2e-3)
    svg = plots.prediction_plot([together, Round(0.2, 1e-2, 1e-3, 1e-2, 0.1, 1.0)])
    (held_back,) = (dot for dot in marks(svg, "circle", "joint") if dot.get("r") == 3.5)
    (scoring,) = (dot for dot in marks(svg, "circle", "joint") if dot.get("r") == 6)
    alone = min((dot for dot in marks(svg, "circle", "pruned") if dot.get("r") == 3.5), key=lambda dot: dot["cx"])
    assert alone["cx"] < held_back["cx"] == scoring["cx"]
    assert alone["cy"] == held_back["cy"] < scoring["cy"]
    assert len([e for e in ElementTree.fromstring(svg).iter(f"{SVG}polyline") if "band" in e.get("class")]) == 2


def test_prediction_plot_needs_positive_numbers():
    assert plots.prediction_plot(REGRESSION.rounds) == ""
    assert plots.prediction_plot([Round(0.1, 0.0, -0.1, math.nan, 0.1, 1.0)]) == ""
    assert plots.prediction_plot([]) == ""


def test_loss_curve_rises_with_the_loss():
    svg = plots.loss_plot(CLASSIFIER.rounds, DENSE)
    (curve,) = (e for e in ElementTree.fromstring(svg).iter(f"{SVG}polyline"))
    points = [tuple(map(float, pair.split(","))) for pair in curve.get("points").split()]
    assert len(points) == 9
    assert points == sorted(points, key=lambda point: (point[0], -point[1]))
    assert all(a[1] > b[1] for a, b in pairwise(points))  # upwards on the page


def test_loss_plot_shows_the_original_where_it_can():
    supervised = [replace(each, loss_held_back=0.31 + 0.01 * n) for n, each in enumerate(CLASSIFIER.rounds)]
    assert len(marks(plots.loss_plot(supervised, replace(DENSE, loss=0.3)), "line", "reference")) == 1
    assert marks(plots.loss_plot(CLASSIFIER.rounds, DENSE), "line", "reference") == []  # 0 on a logarithmic axis


def test_candidate_bars_are_as_long_as_their_losses():
    svg = plots.candidate_loss_plot(CANDIDATES, "obd + refit")
    lengths = [bar["width"] for bar in [*marks(svg, "rect", "pruned"), *marks(svg, "rect", "muted")]]
    losses = sorted(each.loss for each in CANDIDATES)
    assert [length / lengths[-1] for length in lengths] == pytest.approx(
        [loss / losses[-1] for loss in losses], abs=2e-3
    )
    assert texts(svg, "strong") == ["obd + refit"]
    assert plots.candidate_loss_plot(CANDIDATES[:1], "obd") == ""
    assert plots.candidate_loss_plot([replace(each, loss=0.0) for each in CANDIDATES], "obd")


def test_agreement_has_intervals():
    svg = plots.agreement_plot(CANDIDATES[1:3], "obd", 225)
    (dot,) = marks(svg, "circle", "pruned")
    whisker, *_ = marks(svg, "line", "pruned")
    low, high = wilson_interval(CANDIDATES[1].agreement, 225)
    share = (dot["cx"] - whisker["x1"]) / (whisker["x2"] - whisker["x1"])
    assert share == pytest.approx((CANDIDATES[1].agreement - low) / (high - low), abs=2e-3)
    assert plots.agreement_plot(REGRESSION.candidates, "magnitude", 225) == ""


def test_size_bars_are_in_proportion():
    svg = plots.size_plot(244908, 48871)
    (before,), (after,) = marks(svg, "rect", "original"), marks(svg, "rect", "pruned")
    assert after["width"] / before["width"] == pytest.approx(48871 / 244908, abs=1e-3)
    assert texts(svg, "value") == ["245 kB", "48.9 kB"]
    assert plots.size_plot(0, 0) == ""


def test_latency_bars_start_at_zero():
    svg = plots.latency_plot(replace(LATENCY, original_flushed=Interval(0.0709, 0.07, 0.072)))
    original, flushed = marks(svg, "rect", "original")
    assert flushed["width"] / original["width"] == pytest.approx(0.5, abs=1e-3)
    assert texts(svg, "label") == ["original", "no subnormals", "exported"]
    assert plots.latency_plot(replace(LATENCY, pruned=Interval(math.nan, math.nan, math.nan))) == ""


def test_of_many_tensors_the_largest_are_drawn_in_graph_order():
    many = [WeightSummary(f"w{n}", (n % 50 + 1, 2), "", "MatMul", True, sparsity=0.5) for n in range(100)]
    names = texts(plots.sparsity_plot(many), "label")
    assert len(names) == plots.MAX_TENSORS
    assert set(names) == {f"w{n}" for n in range(100) if n % 50 >= 30}
    assert names == sorted(names, key=lambda name: int(name[1:]))


def test_tensor_bars_show_sparsity_before_and_after():
    svg = plots.sparsity_plot(WEIGHTS)
    full = marks(svg, "rect", "trough")[0]["width"]
    assert [bar["width"] / full for bar in marks(svg, "rect", "pruned")] == pytest.approx(
        [0.413, 0.722, 0.935, 0.834, 0.451], abs=1e-3
    )
    assert max(bar["width"] / full for bar in marks(svg, "rect", "original")) == pytest.approx(0.021, abs=1e-3)
    assert plots.sparsity_plot(WEIGHTS[5:]) == ""
