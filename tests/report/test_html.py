from __future__ import annotations

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from onnx_obd.report import to_html, write_html
from tests.report.example import CLASSIFIER, HOSTILE, REGRESSION, UNTRUSTED

SVG = "{http://www.w3.org/2000/svg}"
NOT_FINITE = replace(
    CLASSIFIER,
    rounds=tuple(replace(each, predicted=math.nan, loss_held_back=math.inf) for each in CLASSIFIER.rounds),
    candidates=tuple(replace(each, loss=math.nan) for each in CLASSIFIER.candidates),
)
BARE = replace(REGRESSION, candidates=(), rounds=(), weights=(), seconds={}, options={}, bytes_before=0, bytes_after=0)
REPORTS = {
    "classifier": CLASSIFIER,
    "regression": REGRESSION,
    "untrusted": UNTRUSTED,
    "not finite": NOT_FINITE,
    "bare": BARE,
}


def page(report) -> ElementTree.Element:
    return ElementTree.fromstring(to_html(report))


def words(report) -> str:
    return " ".join(" ".join(page(report).itertext()).split())


def titles(report) -> list[str]:
    return [heading.text for heading in page(report).iter("h3")]


@pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS.keys())
def test_well_formed_and_free_of_numbers_that_are_none(report):
    root = page(report)
    for svg in root.iter(f"{SVG}svg"):
        for element in svg.iter():
            assert not any(re.search(r"nan|inf", value) for name, value in element.items() if name != "aria-label")


def test_where_only_units_went_the_page_tells_of_parameters():
    weights = [replace(weight, sparsity=0.0) for weight in CLASSIFIER.weights]
    units = replace(CLASSIFIER, sparsity=0.0, target_sparsity=0.0, parameters_after=20111, weights=weights)
    assert "of the prunable weights are zero" not in words(units)
    assert "67.4 % of the parameters went with units" in words(units)
    assert "Sparsity of each tensor" in titles(CLASSIFIER) and "Sparsity of each tensor" not in titles(units)


def test_the_facts_are_there():
    text = words(CLASSIFIER)
    for fact in (
        "lenet_digits.onnx",
        "97.3 % of the held-back answers are unchanged",
        "5.01× smaller",
        "latency ratio [0.981, 1.021]: no measurable difference",
        "Element sparsity does not speed up onnxruntime",
        "obd + refit (shipped) 90.0 % 0.0291",
        "features.3.weight 16×6×5×5 2,400 /features/3/Conv 0 % 72.2 % prunable",
        "anchors 3×4 12 NonMaxSuppression '/nms' 0 % 0 % not prunable: no gradient passes node '/nms'",
        "curvature lecun_scaled",
        "9c56cc51b374c3ba189210d5b6d4bf57790d351c96c47c02190ecf1e430635ab",
        "244,908 (245 kB)",
        "its top probability is above 0.5",
        "total 12 s",
    ):
        assert fact in text


def test_figures_appear_only_with_something_to_draw():
    assert titles(CLASSIFIER) == [
        "Prediction",
        "Loss against sparsity",
        "Candidates: loss",
        "Candidates: agreement",
        "Sparsity of each tensor",
        "File size",
        "Latency in onnxruntime",
    ]
    assert titles(REGRESSION) == ["Loss against sparsity", "Sparsity of each tensor", "File size"]
    assert titles(BARE) == []
    assert "Prediction" not in titles(NOT_FINITE)


@pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS.keys())
def test_nothing_is_loaded_and_nothing_runs(report):
    class Tags(HTMLParser):
        seen: set[str] = set()

        def handle_starttag(self, tag, attrs):
            self.seen.add(tag)
            for name, value in attrs:
                assert not name.startswith("on") and name not in ("src", "href", "srcset", "style"), (tag, name)
                assert "://" not in (value or "") or name == "xmlns"

    parser = Tags()
    parser.feed(to_html(report))
    assert "table" in parser.seen and ("svg" in parser.seen or report is BARE)
    assert not parser.seen & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    assert "url(" not in to_html(report) and "@import" not in to_html(report)


def test_names_are_text_everywhere():
    source = to_html(UNTRUSTED)
    assert "<script" not in source and "\x1b" not in source and "\u202e" not in source
    shown = HOSTILE.encode("ascii", "backslashreplace").decode().replace("\x1b", "\\x1b").replace("\x00", "\\x00")
    assert words(UNTRUSTED).count(shown) > 10


def test_both_colour_schemes():
    source = to_html(CLASSIFIER)
    assert "color-scheme: light dark" in source and "prefers-color-scheme: dark" in source
    light, dark = (set(re.findall(r"(--[\w-]+):", block)) for block in re.findall(r":root {(.*?)}", source, re.DOTALL))
    assert set(re.findall(r"var\((--[\w-]+)\)", source)) == light == dark


def test_written(tmp_path):
    target = write_html(UNTRUSTED, tmp_path / "report.html")
    assert target.read_text("utf-8") == to_html(UNTRUSTED)
