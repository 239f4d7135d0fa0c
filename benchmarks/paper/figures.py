"""The figures, as SVG files that stand alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

from onnx_obd.report.svg import WIDTH, Drawing, Scale

HEIGHT = 300
LEFT, RIGHT, TOP, BOTTOM = 66, WIDTH - 18, 30, HEIGHT - 44
COLOURS = {"one": "#0072b2", "two": "#d55e00", "three": "#8a8a8a", "four": "#009e73"}
STYLE = (
    "svg{font:11px sans-serif;background:#fff}.grid{stroke:#e4e4e4}.tick,.axis{fill:#444}"
    "polyline{fill:none;stroke-width:1.6}"
    + "".join(f"polyline.{name}{{stroke:{c}}}circle.{name}{{fill:{c}}}" for name, c in COLOURS.items())
)

Curve = Sequence[tuple[float, float]]


def draw(path: Path, title: str, y_title: str, curves: Mapping[str, Curve], total: int) -> None:
    """Curves over the number of parameters left, largest on the right as in the paper; the ordinate is logarithmic."""
    drawing = Drawing(HEIGHT, title)
    values = [y for curve in curves.values() for _, y in curve if y > 0]
    x = Scale(0, total, LEFT, RIGHT)
    y = Scale.around(values, BOTTOM, TOP, log=True)
    drawing.x_axis(x, TOP, BOTTOM, "parameters left")
    drawing.y_axis(y, LEFT, RIGHT, y_title)
    for css, curve in zip(COLOURS, curves.values(), strict=False):
        points = [(x(left), y(value)) for left, value in curve if value > 0]
        drawing.path(points, css)
        for point in points:
            drawing.dot(*point, css, radius=2.2)
    drawing.legend(list(zip(COLOURS, curves, strict=False)), LEFT + 4, 12)
    style = ElementTree.Element("style")
    style.text = STYLE
    drawing.root.insert(0, style)
    path.write_text(str(drawing) + "\n")
