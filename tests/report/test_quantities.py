from __future__ import annotations

import math

import pytest

from onnx_obd.records import Interval
from onnx_obd.report.quantities import (
    duration,
    file_size,
    median,
    percent,
    plural,
    points,
    printable,
    shorten,
    significant,
    span,
)


@pytest.mark.parametrize(
    ("fraction", "text"),
    [
        (0.0, "0 %"),
        (1.0, "100 %"),
        (0.978, "97.8 %"),
        (0.9996, "99.96 %"),
        (0.999999999, "> 99.999 %"),
        (0.0004, "0.04 %"),
        (1e-9, "< 0.001 %"),
        (1.234, "123.4 %"),
        (None, "–"),
        (math.nan, "not finite"),
    ],
)
def test_percent_never_rounds_to_all_or_nothing(fraction, text):
    assert percent(fraction) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.012345678, "0.0123"),
        (1.2345678e-05, "1.23e-5"),
        (0.00123, "0.00123"),
        (0.09996, "0.100"),
        (-0.5, "-0.500"),
        (12345.6, "12,300"),
        (9.999, "10.0"),
        (1.5e9, "1.50e9"),
        (0, "0"),
        (None, "–"),
        (math.inf, "not finite"),
    ],
)
def test_significant(value, text):
    assert significant(value) == text


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (244908, "245 kB"), (999_600, "1.00 MB"), (5_000_000_000_000, "5,000 GB")],
)
def test_file_size(num_bytes, text):
    assert file_size(num_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.42, "0.42 s"),
        (0.999, "1.0 s"),
        (9.97, "10 s"),
        (59.7, "1 min 00 s"),
        (200, "3 min 20 s"),
        (3720, "1 h 02 min"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_points():
    assert points(-0.011) == "-1.1 points"
    assert points(0.0001) == "+0.010 points"
    assert points(0.0) == "no change"


def test_an_interval_has_the_decimals_its_width_supports():
    assert span(Interval(1.00213, 0.98121, 1.02144)) == "[0.981, 1.021]"
    assert median(Interval(1.00213, 0.98121, 1.02144)) == "1.002"
    assert span(Interval(151.2, 120.3, 180.9)) == "[120, 181]"
    assert span(Interval(1.0, 1.0, 1.0)) == "[1.000, 1.000]"


def test_plural():
    assert (plural(1, "tensor"), plural(0, "tensor"), plural(61706, "tensor")) == (
        "1 tensor",
        "0 tensors",
        "61,706 tensors",
    )


def test_printable_disarms_what_a_terminal_or_xml_would_act_on():
    assert printable("a\x1b[2J\u202eb\n\x00\udc80 é重") == "a\\x1b[2J\\u202eb\\n\\x00\\udc80 é重"


def test_shorten_keeps_both_ends():
    assert shorten("encoder.layer.11.attention.weight", 15) == "encoder….weight"
    assert len(shorten("x" * 99, 12)) == 12
    assert shorten("short", 5) == "short"
    assert shorten("abcdef", 1) == "…"
