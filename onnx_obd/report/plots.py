"""The figures of the HTML report. Each function returns an SVG element, or "" if there is nothing to draw."""

from __future__ import annotations

import math
from collections.abc import Sequence

from onnx_obd.records import Interval, Latency, Quality, Round, WeightSummary
from onnx_obd.report.quantities import (
    count,
    file_size,
    milliseconds,
    percent,
    printable,
    shorten,
    significant,
    span,
)
from onnx_obd.report.summary import ranked, size, wilson_interval
from onnx_obd.report.svg import WIDTH, Drawing, Scale

MAX_TENSORS = 40
MAX_CANDIDATES = 12
BOTTOM = 40
NAME_LENGTH = 23
NAME_WIDTH = 172


def prediction_plot(rounds: Sequence[Round]) -> str:
    """Measured over predicted loss change of each round, both logarithmic: on and within a factor of two of equality.

    Each round stands once for the sum of saliencies and once for the prediction with cross terms.
    """
    kinds = (
        ("joint", "with cross terms, held back", [(r.predicted_together, r.measured_held_back, r) for r in rounds]),
        ("ring joint", "on scoring", [(r.predicted_together, r.measured_scoring, r) for r in rounds]),
        ("pruned", "½ Σ h w² alone, held back", [(r.predicted, r.measured_held_back, r) for r in rounds]),
        ("ring", "on scoring", [(r.predicted, r.measured_scoring, r) for r in rounds]),
    )
    drawable = [(css, name, [point for point in points if _positive(*point[:2])]) for css, name, points in kinds]
    drawable = [kind for kind in drawable if kind[2]]
    values = [value for _, _, points in drawable for point in points for value in point[:2]]
    if not values:
        return ""
    drawing = Drawing(340, "Predicted and measured loss change of each round")
    left, right, top, bottom = 74, WIDTH - 22, 30, 340 - BOTTOM
    x = Scale.around(values, left, right, log=True)
    y = Scale.around(values, bottom, top, log=True)
    drawing.x_axis(x, top, bottom, "predicted loss change")
    drawing.y_axis(y, left, right, "measured loss change")
    drawing.line(left, bottom, right, top, "reference")
    low, high = min(values), max(values)
    for factor in (0.5, 2.0):
        drawing.path([(x(v), y(factor * v)) for v in (max(low, low / factor), min(high, high / factor))], "curve band")
    drawing.text(left + 0.86 * (right - left) + 8, bottom - 0.86 * (bottom - top) + 8, "equal", "tick")
    for css, _, points in drawable:
        for predicted, measured, each in points:
            tooltip = f"to {percent(each.sparsity)}: predicted {significant(predicted)}, {significant(measured)}"
            drawing.dot(x(predicted), y(measured), css, tooltip, radius=6 if "ring" in css else 3.5)
    drawing.legend([(css, name) for css, name, _ in drawable], left + 4, 12)
    return str(drawing)


def _positive(*values: float | None) -> bool:
    return all(value is not None and math.isfinite(value) and value > 0 for value in values)


def loss_plot(rounds: Sequence[Round], dense: Quality) -> str:
    """The held-back loss after each round against the sparsity, with that of the original."""
    points = [(each.sparsity, each.loss_held_back) for each in rounds if math.isfinite(each.loss_held_back)]
    if not points:
        return ""
    losses = [loss for _, loss in points]
    log = min(losses) > 0 and max(losses) > 20 * min(losses)
    drawing = Drawing(340, "Held-back loss against sparsity")
    left, right, top, bottom = 74, WIDTH - 22, 30, 340 - BOTTOM
    x = Scale(0.0, 1.0, left, right)
    shown_dense = math.isfinite(dense.loss) and (dense.loss > 0 or not log)
    y = Scale.around([*losses, dense.loss] if shown_dense else losses, bottom, top, log=log)
    drawing.x_axis(x, top, bottom, "sparsity of the prunable weights", percent=True)
    drawing.y_axis(y, left, right, "held-back loss")
    entries = [("pruned", "after each round")]
    if shown_dense:
        drawing.line(left, y(dense.loss), right, y(dense.loss), "reference")
        entries.append(("original", "original (dashed)"))
    drawing.path([(x(sparsity), y(loss)) for sparsity, loss in points], "curve pruned")
    for sparsity, loss in points:
        drawing.dot(x(sparsity), y(loss), "pruned", f"{percent(sparsity)}: {significant(loss)}")
    drawing.legend(entries, left + 4, 12)
    return str(drawing)


def candidate_loss_plot(candidates: Sequence[Quality], shipped: str) -> str:
    """The held-back loss of the candidates, the best first."""
    chosen = [each for each in ranked(candidates) if math.isfinite(each.loss)][:MAX_CANDIDATES]
    if len(chosen) < 2:
        return ""
    drawing, bottom = _rows(len(chosen), "Held-back loss of the candidates")
    x = Scale.around([each.loss for each in chosen], NAME_WIDTH, WIDTH - 58)
    drawing.x_axis(x, 8, bottom, "held-back loss")
    for row, each in enumerate(chosen):
        middle = _middle(row)
        _candidate_name(drawing, middle, each, shipped)
        css = "pruned" if each.method == shipped else "muted"
        start, stop = sorted((x(0.0), x(each.loss)))
        drawing.bar(start, middle - 8, stop - start, 16, css, each.method)
        drawing.text(stop + 6, middle, significant(each.loss), "value")
    return str(drawing)


def agreement_plot(candidates: Sequence[Quality], shipped: str, num_held_back: int) -> str:
    """The agreement of the candidates with the original, with 95 % intervals."""
    chosen = [each for each in ranked(candidates) if each.agreement is not None][:MAX_CANDIDATES]
    if not chosen:
        return ""
    intervals = [wilson_interval(each.agreement, num_held_back) for each in chosen]
    drawing, bottom = _rows(len(chosen), "Agreement of the candidates with the original")
    lowest = max(0.0, min(low for low, _ in intervals) - 0.02)
    x = Scale(lowest, 1.0, NAME_WIDTH, WIDTH - 58)
    drawing.x_axis(x, 8, bottom, "held-back samples of unchanged class", percent=True)
    for row, (each, (low, high)) in enumerate(zip(chosen, intervals, strict=True)):
        middle = _middle(row)
        _candidate_name(drawing, middle, each, shipped)
        css = "pruned" if each.method == shipped else "muted"
        drawing.whisker(x(low), x(high), middle, f"whisker {css}")
        drawing.dot(x(each.agreement), middle, css, f"{percent(low)} to {percent(high)}", radius=5)
        drawing.text(WIDTH - 50, middle, percent(each.agreement), "value")
    return str(drawing)


def _candidate_name(drawing: Drawing, y: float, candidate: Quality, shipped: str) -> None:
    css = "label strong" if candidate.method == shipped else "label"
    drawing.text(NAME_WIDTH - 8, y, shorten(printable(candidate.method), NAME_LENGTH), css, "end")


def size_plot(before: int, after: int) -> str:
    """Bytes on disk of the original and of the exported model."""
    return _two_bars([("original", before, "original"), ("exported", after, "pruned")])


def _two_bars(rows: Sequence[tuple[str, int, str]]) -> str:
    largest = max(value for _, value, _ in rows)
    if largest <= 0:
        return ""
    drawing = Drawing(2 * 34 + 8, "File size")
    for position, (name, value, css) in enumerate(rows):
        middle = 21 + 34 * position
        width = (WIDTH - 80 - 86) * value / largest
        drawing.text(72, middle, name, "label", "end")
        drawing.bar(80, middle - 11, width, 22, css, f"{count(value)} bytes")
        drawing.text(80 + width + 6, middle, file_size(value), "value")
    return str(drawing)


def latency_plot(latency: Latency) -> str:
    """Median latencies with their 95 % intervals, from zero."""
    rows: list[tuple[str, Interval, str]] = [("original", latency.original, "original")]
    if latency.original_flushed is not None:
        rows.append(("no subnormals", latency.original_flushed, "original"))
    rows.append(("exported", latency.pruned, "pruned"))
    highs = [interval.high for _, interval, _ in rows]
    if not all(math.isfinite(high) for high in highs) or max(highs) <= 0:
        return ""
    drawing, bottom = _rows(len(rows), "Latency")
    x = Scale.around(highs, 100, WIDTH - 80)
    drawing.x_axis(x, 8, bottom, "milliseconds per run")
    for row, (name, interval, css) in enumerate(rows):
        middle = _middle(row)
        drawing.text(92, middle, name, "label", "end")
        drawing.bar(x.start, middle - 8, x(interval.median) - x.start, 16, css, f"95 % interval {span(interval)} ms")
        drawing.whisker(x(interval.low), x(interval.high), middle, "whisker ink")
        drawing.text(WIDTH - 72, middle, milliseconds(interval.median), "value")
    return str(drawing)


def sparsity_plot(weights: Sequence[WeightSummary]) -> str:
    """The sparsity of each prunable tensor, in graph order; of many, the largest tensors. Empty without a zero."""
    prunable = [weight for weight in weights if weight.prunable]
    if not any(weight.sparsity for weight in prunable):
        return ""
    largest = sorted(range(len(prunable)), key=lambda n: -size(prunable[n]))[:MAX_TENSORS]
    chosen = [prunable[n] for n in sorted(largest)]
    drawing, bottom = _rows(len(chosen), "Sparsity of each tensor", pitch=20)
    x = Scale(0.0, 1.0, NAME_WIDTH, WIDTH - 122)
    drawing.x_axis(x, 8, bottom, "fraction of zeros", percent=True)
    for row, weight in enumerate(chosen):
        middle = _middle(row, pitch=20)
        name, shape = printable(weight.name), "×".join(map(str, weight.shape))
        drawing.text(NAME_WIDTH - 8, middle, shorten(name, NAME_LENGTH), "label", "end")
        drawing.bar(x.start, middle - 6, x.stop - x.start, 12, "trough")
        drawing.bar(x.start, middle - 6, x(weight.sparsity) - x.start, 12, "pruned", f"{name}, {shape}")
        drawing.bar(x.start, middle - 6, x(weight.sparsity_before) - x.start, 12, "original", "zero before pruning")
        drawing.text(x.stop + 8, middle, percent(weight.sparsity), "value")
        drawing.text(WIDTH - 4, middle, f"of {count(size(weight))}", "tick", "end")
    return str(drawing)


def _rows(number: int, title: str, pitch: float = 28) -> tuple[Drawing, float]:
    """A drawing with that many rows, and the y coordinate of its horizontal axis."""
    bottom = 8 + pitch * number + 4
    return Drawing(bottom + BOTTOM, title), bottom


def _middle(row: int, pitch: float = 28) -> float:
    return 10 + pitch * (row + 0.5)
