"""What `onnx-obd inspect --units` prints: the units of a model that could be removed, and why others cannot."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from onnx_obd.records import FrozenUnits, UnitFamily, Units
from onnx_obd.report.layout import Column, Page, table
from onnx_obd.report.quantities import count, percent, plural, printable

MAX_NODES = 2


def render_units(
    units: Units,
    *,
    width: int | None = None,
    color: bool | None = None,
    encoding: str | None = None,
) -> str:
    """The removable units of a model as text for a terminal; families that are alike but for their nodes in one line.

    Args:
        width, color, encoding: as in ``render_table``.
    """
    page = Page.of(width, color, encoding)
    lines = [page.style(printable(Path(units.model).name), bold=True), *page.heading("Removable units")]
    lines += _removable(page, units.families)
    lines += page.paragraph(
        f"A unit goes whole, and of every family at least one stays. In units that can go are "
        f"{percent(units.elements_share)} of {count(units.elements)} weights and {percent(units.macs_share)} of "
        f"{count(units.macs)} multiplications."
    )
    if units.frozen:
        lines += [*page.heading("Frozen"), *_frozen(page, units.frozen)]
    if units.samples is not None:
        lines += [*page.heading(f"Idle on {plural(units.samples, 'sample')}"), *_idle(page, units)]
    if units.boundaries:
        what = f"{_names(units.boundaries)} run in onnxruntime: nothing that reaches them is followed."
        lines += [*page.heading("Not followed"), *page.paragraph(what)]
    return page.finish(lines)


def _removable(page: Page, families: Sequence[UnitFamily]) -> list[str]:
    """Weights and multiplications of one unit; the families in the order of the graph."""
    columns = [
        Column("kind", "<"),
        Column("families", ">", drop=3),
        Column("units each", ">"),
        Column("weights each", ">", drop=1),
        Column("of multiplications", ">", drop=2),
        Column("made by", "<", flexible=True),
    ]
    alike: dict[tuple, list[UnitFamily]] = defaultdict(list)
    for family in families:
        alike[family.kind, family.count, family.elements_each, round(family.macs_share_each, 6)].append(family)
    rows = [
        [
            printable(kind),
            count(len(members)),
            count(size),
            count(elements),
            percent(members[0].macs_share_each),
            _names([node for family in members for node in family.nodes], 1),
        ]
        for (kind, size, elements, _), members in alike.items()
    ]
    return table(page, columns, rows) if rows else page.paragraph("none")


def _frozen(page: Page, frozen: Sequence[FrozenUnits]) -> list[str]:
    """One line for each reason, those that hold most first."""
    by_reason: dict[str, list[FrozenUnits]] = defaultdict(list)
    for group in frozen:
        by_reason[group.reason].append(group)
    lines = []
    for reason, groups in sorted(by_reason.items(), key=lambda item: -sum(group.count for group in item[1])):
        counts: dict[str, int] = defaultdict(int)
        for group in groups:
            counts[group.kind] += group.count
        what = ", ".join(plural(number, kind) for kind, number in counts.items())
        nodes = _names([node for group in groups for node in group.nodes])
        lines += page.paragraph(f"{what}{' of ' + nodes if nodes else ''}: {printable(reason)}")
    return lines


def _idle(page: Page, units: Units) -> list[str]:
    """What does nothing on the data: it can go for free, as far as these samples tell."""
    lines = []
    for family in units.families:
        if family.idle:
            what = f"{family.idle} of {plural(family.count, family.kind)} of {_names(family.nodes)}"
            lines += page.paragraph(f"{what}: never active, or heard by weights of 0 alone; free to go")
    for feature in units.unused:
        examples = ", ".join(str(list(index)) for index in feature.first)
        more = ", ..." if feature.count > len(feature.first) else ""
        lines += page.paragraph(
            f"{count(feature.count)} of {plural(feature.of, 'feature')} of input '{printable(feature.name)}' "
            f"({examples}{more}): always 0, or nothing depends on them"
        )
    return lines or page.paragraph("none")


def _names(nodes: Sequence[str], most: int = MAX_NODES) -> str:
    nodes = list(dict.fromkeys(nodes))
    shown = ", ".join(printable(node) for node in nodes[:most])
    return shown + (f" and {len(nodes) - most} more" if len(nodes) > most else "")
