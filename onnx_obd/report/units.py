"""What `onnx-obd inspect --units` prints: the units of a model that could be removed, and why others cannot."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from onnx_obd.records import FrozenUnits, UnitFamily
from onnx_obd.report.layout import Column, Page, table
from onnx_obd.report.quantities import count, percent, plural, printable

MAX_NODES = 3


def render_units(
    model: str | PathLike[str],
    families: Sequence[UnitFamily],
    frozen: Sequence[FrozenUnits],
    *,
    width: int | None = None,
    color: bool | None = None,
    encoding: str | None = None,
) -> str:
    """The removable units of a model as text for a terminal.

    Args:
        families: units that are alike, such as the channels of one Conv.
        frozen: what would be units but for a reason.
        width, color, encoding: as in ``render_table``.
    """
    page = Page.of(width, color, encoding)
    lines = [page.style(printable(Path(model).name), bold=True), *page.heading("Removable units")]
    columns = [
        Column("kind", "<"),
        Column("units", ">"),
        Column("weights each", ">"),
        Column("of all multiplications, each", ">"),
        Column("made by", "<", flexible=True),
    ]
    rows = [
        [
            printable(family.kind),
            count(family.count),
            count(family.elements_each),
            percent(family.macs_share_each),
            _names(family.nodes),
        ]
        for family in families
    ]
    lines += table(page, columns, rows) if rows else page.paragraph("none")
    if frozen:
        lines += page.heading("Frozen")
        for group in frozen:
            what = f"{plural(group.count, group.kind)} of {_names(group.nodes)}"
            lines += page.paragraph(f"{what}: {printable(group.reason)}")
    return page.finish(lines)


def _names(nodes: Sequence[str]) -> str:
    shown = ", ".join(printable(node) for node in nodes[:MAX_NODES])
    return shown + (f" and {len(nodes) - MAX_NODES} more" if len(nodes) > MAX_NODES else "")
