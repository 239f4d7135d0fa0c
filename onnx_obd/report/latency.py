"""What `onnx-obd bench` prints: the latencies of two models side by side, and a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike, fspath

from onnx_obd.records import Latency
from onnx_obd.report.layout import Column, Page, table
from onnx_obd.report.quantities import median, milliseconds, printable, span
from onnx_obd.report.summary import latency_conditions, latency_verdict, subnormal_remark


def render_latency(
    latency: Latency,
    names: Sequence[str | PathLike[str]],
    *,
    width: int | None = None,
    color: bool | None = None,
    encoding: str | None = None,
) -> str:
    """A comparison of two models as text for a terminal.

    Args:
        latency: the comparison; its "original" is the first model, its "pruned" the second.
        names: of the two models, in this order.
        width, color, encoding: as in ``render_table``.
    """
    page = Page.of(width, color, encoding)
    first, second = (printable(fspath(name)) for name in names)
    timed = [(first, latency.original), (second, latency.pruned)]
    if latency.original_flushed is not None:
        timed.insert(1, (f"{first}, subnormal weights set to zero", latency.original_flushed))
    rows = [[name, milliseconds(interval.median), span(interval)] for name, interval in timed]
    rows.append(["ratio, first to second", f"{median(latency.speedup)}×", span(latency.speedup)])
    columns = [Column("model", "<", flexible=True), Column("median"), Column("95 % interval")]
    lines = table(page, columns, rows, indent=0)
    verdict = f"{second}: {latency_verdict(latency.speedup)}."
    if latency.speedup.low <= 1 <= latency.speedup.high:
        verdict = "No measurable difference: the interval of the ratio includes 1."
    lines += ["", *page.paragraph(verdict, indent=0, bold=True)]
    for remark in (subnormal_remark(latency, first), latency_conditions(latency)):
        lines += page.paragraph(printable(remark), indent=0, dim=True)
    return page.finish(lines)
