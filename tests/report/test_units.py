from __future__ import annotations

import json
from dataclasses import replace

from onnx_obd.records import FrozenUnits, UnitFamily, Units, UnusedFeatures
from onnx_obd.report import render_units, to_json

CONVS = tuple(f"Conv '/blocks/blocks.{i}/conv/Conv'" for i in range(4))
UNITS = Units(
    model="/models/net.onnx",
    families=(
        UnitFamily("channel", CONVS[:1], 16, 1577, 0.0201, 3),
        UnitFamily("channel", CONVS[1:3], 16, 1577, 0.0201, 0),
        UnitFamily("head dimension", CONVS[3:], 8, 66, 0.0004, 0),
    ),
    frozen=(
        FrozenUnits("neuron", ("Gemm #9",), 10, "graph output 'y' keeps its shape"),
        FrozenUnits("channel", CONVS[:1], 64, "node Softmax #4 needs the whole axis"),
        FrozenUnits("head", CONVS[1:2], 2, "node Softmax #4 needs the whole axis"),
    ),
    elements=123456,
    elements_share=0.5,
    macs=10**9,
    macs_share=0.75,
    boundaries=("Custom #3",),
    samples=64,
    unused=(UnusedFeatures("x", 278, 784, ((0, 0), (1, 0), (2, 0))),),
)


def text(units: Units = UNITS, width: int = 100) -> str:
    return render_units(units, width=width, color=False, encoding="utf-8")


def test_families_that_are_alike_share_a_line() -> None:
    lines = [line for line in text().splitlines() if line.startswith(("  channel", "  head"))]
    assert [line.split()[:3] for line in lines] == [["channel", "2", "16"], ["head", "dimension", "1"]]
    assert "1,577" in lines[0] and "2.0 %" in lines[0] and "and 2 more" in lines[0]


def test_frozen_by_reason() -> None:
    page = text()
    first = page.index("64 channels, 2 heads of Conv '/blocks/blocks.0/conv/Conv', Conv '/blocks/blocks.1/conv/Conv':")
    assert "node Softmax #4 needs the whole axis" in " ".join(page[first:].split())
    assert first < page.index("10 neurons of Gemm #9: graph output 'y' keeps its shape")


def test_shares_and_what_is_not_followed() -> None:
    page = " ".join(text().split())
    assert "50.0 % of 123,456 weights and 75.0 % of 1,000,000,000 multiplications" in page
    assert "Custom #3 run in onnxruntime: nothing that reaches them is followed" in page


def test_idle() -> None:
    page = " ".join(text().split())
    assert "3 of 16 channels of Conv '/blocks/blocks.0/conv/Conv': never active" in page
    assert "278 of 784 features of input 'x' ([0, 0], [1, 0], [2, 0], ...)" in page
    assert page.count("never active") == 1
    assert "Idle" not in text(replace(UNITS, samples=None))


def test_width() -> None:
    for width in (60, 100):
        assert max(map(len, text(width=width).splitlines())) <= width


def test_nothing_to_remove() -> None:
    assert "none" in text(replace(UNITS, families=(), frozen=(), unused=(), boundaries=(), samples=None))


def test_json() -> None:
    found = json.loads(to_json(UNITS))
    assert found["families"][0]["idle"] == 3 and found["unused"][0]["first"][1] == [1, 0]
    assert found["macs_share"] == 0.75 and found["frozen"][2]["count"] == 2
