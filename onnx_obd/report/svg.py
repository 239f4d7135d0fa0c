"""Inline SVG, drawn without a plotting library: scales, axes and marks.

Colours are style classes (``original``, ``pruned``, ``control``, ``muted``), so that the page's light and dark schemes
apply. Elements are built as a tree: every text is escaped by the serialiser.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from onnx_obd.report.quantities import printable, significant

Element = ElementTree.Element
WIDTH = 460


@dataclass(frozen=True)
class Scale:
    """Maps values from [low, high] to pixels from ``start`` to ``stop``, linearly or in the logarithm."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.stop - self.start)

    def ticks(self) -> list[float]:
        return _log_ticks(self.low, self.high) if self.log else _linear_ticks(self.low, self.high, self._room())

    def _room(self) -> int:
        """How many labels there is room for."""
        return max(2, round(abs(self.stop - self.start) / 55))

    @classmethod
    def around(cls, values: Sequence[float], start: float, stop: float, *, log: bool = False) -> Scale:
        """Covers the values with a little room; a linear one starts at 0 if none is negative."""
        low, high = min(values), max(values)
        if log:
            return cls(low / 1.5, high * 1.5, start, stop, True)
        room = 0.06 * (high - min(low, 0.0)) or 1.0
        return cls(low - room if low < 0 else 0.0, high + room, start, stop)


def _linear_ticks(low: float, high: float, wanted: int) -> list[float]:
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    decades = last - first
    factors = (1, 2, 5) if decades <= 2 else (1, 3) if decades <= 3 else (1,)
    step = max(1, math.ceil(decades / 7))
    ticks = [factor * 10.0**power for power in range(first, last + 1, step) for factor in factors]
    return [tick for tick in ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]


class Drawing:
    """One figure, ``WIDTH`` units wide; the page scales it."""

    def __init__(self, height: float, title: str) -> None:
        self.height = height
        self.root = Element(
            "svg",
            {
                "xmlns": "http://www.w3.org/2000/svg",
                "viewBox": f"0 0 {WIDTH} {_number(height)}",
                "role": "img",
                "aria-label": printable(title),
            },
        )

    def __str__(self) -> str:
        return ElementTree.tostring(self.root, encoding="unicode")

    def _add(self, tag: str, css: str, tooltip: str = "", **attributes: float | str) -> Element:
        given = {name.replace("_", "-"): v if isinstance(v, str) else _number(v) for name, v in attributes.items()}
        element = ElementTree.SubElement(self.root, tag, {"class": css, **given})
        if tooltip:
            ElementTree.SubElement(element, "title").text = printable(tooltip)
        return element

    def text(self, x: float, y: float, text: str, css: str = "label", anchor: str = "start", turn: float = 0) -> None:
        """``y`` is the middle of the line of text."""
        turned = {"transform": f"rotate({_number(turn)} {_number(x)} {_number(y)})"} if turn else {}
        element = self._add("text", css, x=x, y=y, text_anchor=anchor, dominant_baseline="central", **turned)
        element.text = printable(text)

    def line(self, x1: float, y1: float, x2: float, y2: float, css: str) -> None:
        self._add("line", css, x1=x1, y1=y1, x2=x2, y2=y2)

    def path(self, points: Sequence[tuple[float, float]], css: str) -> None:
        self._add("polyline", css, points=" ".join(f"{_number(x)},{_number(y)}" for x, y in points))

    def dot(self, x: float, y: float, css: str, tooltip: str = "", radius: float = 4) -> None:
        self._add("circle", css, tooltip, cx=x, cy=y, r=radius)

    def bar(self, x: float, y: float, width: float, height: float, css: str, tooltip: str = "") -> None:
        self._add("rect", css, tooltip, x=x, y=y, width=max(0.0, width), height=height, rx=min(2.0, width / 2))

    def whisker(self, low: float, high: float, y: float, css: str) -> None:
        """A horizontal interval with end strokes."""
        self.line(low, y, high, y, css)
        for x in (low, high):
            self.line(x, y - 6, x, y + 6, css)

    def x_axis(self, scale: Scale, top: float, bottom: float, title: str = "", percent: bool = False) -> None:
        """Grid lines from ``top`` to ``bottom``, labels below."""
        for tick in scale.ticks():
            self.line(scale(tick), top, scale(tick), bottom, "grid")
            self.text(scale(tick), bottom + 12, tick_label(tick, percent), "tick", "middle")
        if title:
            self.text((scale.start + scale.stop) / 2, bottom + 30, title, "axis", "middle")

    def y_axis(self, scale: Scale, left: float, right: float, title: str = "", percent: bool = False) -> None:
        for tick in scale.ticks():
            self.line(left, scale(tick), right, scale(tick), "grid")
            self.text(left - 6, scale(tick), tick_label(tick, percent), "tick", "end")
        if title:
            self.text(10, (scale.start + scale.stop) / 2, title, "axis", "middle", turn=-90)

    def legend(self, entries: Sequence[tuple[str, str]], x: float, y: float) -> None:
        """A row of (class, text) entries, dots before texts."""
        for css, text in entries:
            self.dot(x, y, css)
            self.text(x + 9, y, text, "tick")
            x += 26 + 6.2 * len(text)


def tick_label(value: float, percent: bool = False) -> str:
    if percent:
        return f"{value * 100:.6g} %"
    return "0" if value == 0 else f"{value:.6g}" if 1e-3 <= abs(value) < 1e6 else significant(value, 1)


def _number(value: float) -> str:
    """A coordinate to a tenth of a unit."""
    return f"{value:.1f}".removesuffix(".0")
