from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from onnx_obd.records import Interval
from onnx_obd.report import render_latency
from onnx_obd.report.layout import display_width
from tests.report.example import HOSTILE, LATENCY


def render(latency, names=("a.onnx", Path("b.onnx")), width=90) -> str:
    return " ".join(render_latency(latency, names, width=width, color=False, encoding="utf-8").split())


def test_no_measurable_difference():
    text = render(LATENCY)
    assert "a.onnx 0.142 ms [0.1387, 0.1449] b.onnx 0.141 ms [0.1391, 0.1442]" in text
    assert "ratio, first to second 1.002× [0.981, 1.021]" in text
    assert "No measurable difference: the interval of the ratio includes 1." in text
    assert "2,000 runs of each model, interleaved in one process; batch 1, 1 thread" in text


def test_faster_and_slower():
    faster = replace(LATENCY, speedup=Interval(1.5, 1.4, 1.6))
    assert "b.onnx: faster, 1.50× [1.40, 1.60]." in render(faster) and "No measurable" not in render(faster)
    assert "b.onnx: slower, 2.00× [1.60, 2.50]." in render(replace(LATENCY, speedup=Interval(0.5, 0.4, 0.625)))


def test_subnormal_weights():
    text = render(replace(LATENCY, subnormal_weights=12, original_flushed=Interval(0.08, 0.079, 0.081)))
    assert "a.onnx, subnormal weights set to zero 0.0800 ms [0.0790, 0.0810]" in text
    assert "a.onnx holds 12 subnormal weights" in text


def test_narrow_and_untrusted():
    text = render_latency(LATENCY, (HOSTILE * 2, HOSTILE * 3), width=40, color=False, encoding="utf-8")
    assert "\x1b" not in text and max(map(display_width, text.splitlines())) <= 40
