"""The models on the way to a faster one: latency against what it costs, as rows and as a figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from onnx_obd.records import FrontierPoint, Report
from onnx_obd.report.quantities import MISSING, count, median, milliseconds, percent, significant, span
from onnx_obd.report.svg import WIDTH, Drawing, Scale

TITLES = ("units removed", "parameters", "latency", "times faster", "loss", "agreement", "accuracy", "drop at most")

HEIGHT, BOTTOM = 340, 40


def frontier_rows(report: Report) -> list[list[str]]:
    """One row for each model under ``TITLES``, in the order in which they were made."""
    return [
        [
            count(point.units),
            count(point.parameters),
            milliseconds(point.milliseconds),
            f"{median(point.speedup)}× {span(point.speedup)}" if point.units else "1×",
            significant(point.loss),
            percent(point.agreement),
            percent(point.accuracy),
            MISSING if point.drop is None or point.accuracy is not None else percent(point.drop),
        ]
        for point in report.frontier
    ]


def frontier_note(report: Report) -> str:
    """How the rows were measured."""
    trained = " Those marked with * were trained." if any(point.trained for point in report.frontier) else ""
    estimated = (
        "" if all(point.accuracy is not None or point.drop is None for point in report.frontier)
        else " Without labels, what the accuracy drops by at most is estimated, one standard error included."
    )  # fmt: skip
    samples = f"On {report.num_held_back} held-back samples"
    return f"{samples}; each timed for a second beside the original.{estimated}{trained}"


def frontier_plot(points: Sequence[FrontierPoint]) -> str:
    """Each model's latency against its accuracy (without labels: agreement; without classes: loss), and the front."""
    if len(points) < 2:
        return ""
    value, title, better = _measure(points)
    drawing = Drawing(HEIGHT, "Latency against quality")
    left, right, top, bottom = 74, WIDTH - 22, 30, HEIGHT - BOTTOM
    x = Scale.around([point.milliseconds for point in points], left, right)
    values = [value(point) for point in points]
    if better > 0:
        lowest = max(0.0, min(values) - 0.05)
        y = Scale(lowest, max(1.0, lowest + 0.05), bottom, top)
    else:
        y = Scale.around(values, bottom, top)
    drawing.x_axis(x, top, bottom, "milliseconds per run")
    drawing.y_axis(y, left, right, title)
    front = _front(points, value, better)
    drawing.path([(x(point.milliseconds), y(value(point))) for point in front], "curve pruned")
    for point in points:
        css = "original" if not point.units else "pruned" if point.shipped else "muted"
        tooltip = f"{median(point.speedup)}×: {significant(value(point))}, {count(point.units)} units removed"
        drawing.dot(x(point.milliseconds), y(value(point)), css, tooltip, radius=6 if point.shipped else 4)
    drawing.legend([("original", "original"), ("muted", "on the way"), ("pruned", "shipped")], left + 4, 12)
    return str(drawing)


def _measure(points: Sequence[FrontierPoint]) -> tuple[Callable[[FrontierPoint], float], str, int]:
    """What to draw, what it is called, and 1 if more of it is better, -1 if less is."""
    if all(point.accuracy is not None for point in points):
        return lambda point: point.accuracy, "held-back accuracy", 1
    if all(point.agreement is not None for point in points):
        return lambda point: point.agreement, "held-back agreement", 1
    return lambda point: point.loss, "held-back loss", -1


def _front(
    points: Sequence[FrontierPoint], value: Callable[[FrontierPoint], float], better: int
) -> list[FrontierPoint]:
    """Those than which no other is faster and no worse."""
    front: list[FrontierPoint] = []
    for point in sorted(points, key=lambda each: (each.milliseconds, -better * value(each))):
        if not front or better * value(point) > better * value(front[-1]):
            front.append(point)
    return front
