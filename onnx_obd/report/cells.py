"""What `onnx-obd inspect --saliency` prints: what the inputs, neurons and channels of a model are worth."""

from __future__ import annotations

from pathlib import Path

from onnx_obd.records import Cells, CellSaliency
from onnx_obd.report.layout import Column, Page, table
from onnx_obd.report.quantities import count, plural, printable, significant

SHOWN = 3


def render_cells(
    cells: Cells, *, width: int | None = None, color: bool | None = None, encoding: str | None = None
) -> str:
    """The saliency of input variables, neurons and channels as text for a terminal.

    Args:
        width, color, encoding: as in ``render_table``.
    """
    page = Page.of(width, color, encoding)
    columns = [
        Column("value", "<", flexible=True),
        Column("", "<"),
        Column("count"),
        Column("unused"),
        Column("median", drop=2),
        Column("largest"),
        Column("of index", "<", drop=1),
        Column("read by", "<", drop=3, flexible=True),
    ]
    lines = [page.style(printable(Path(cells.model).name), bold=True)]
    lines += page.heading(f"Saliency on {plural(cells.samples, 'sample')}")
    lines += table(page, columns, [_row(each) for each in cells.values])
    lines += page.paragraph(
        f"½ Σ h a²: the predicted rise of the loss ({printable(cells.objective)}) if the variable, neuron or channel "
        "is set to zero. Unused: zero on every sample, or without any effect. Compare within a row."
    )
    return page.finish(lines)


def _row(each: CellSaliency) -> list[str]:
    order = sorted(each.saliency)
    return [
        printable(each.value),
        each.kind,
        count(len(order)),
        count(len(each.unused)),
        significant(order[len(order) // 2]),
        significant(order[-1]),
        ", ".join("·".join(map(str, index)) for index in each.largest(SHOWN)),
        printable(each.read_by),
    ]
