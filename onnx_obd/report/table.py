"""The final table: the result of a run, to be read in ten seconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from onnx_obd.records import Report, Round
from onnx_obd.report.frontier import TITLES, frontier_note, frontier_rows
from onnx_obd.report.layout import Column, Page, table
from onnx_obd.report.quantities import duration, percent, plural, printable, shorten, significant
from onnx_obd.report.summary import (
    before_after,
    by_reason,
    headline,
    latency_remarks,
    prediction_verdict,
    ranked,
    shipped_because,
    size,
    total_seconds,
)

MAX_CANDIDATES = 10
DROPS = (3, 1, 2, None, 5, None, None, None)
"""In this order columns of the frontier are left out where the terminal is narrow."""
MAX_ROUNDS = 5


def render_table(
    report: Report, *, width: int | None = None, color: bool | None = None, encoding: str | None = None
) -> str:
    """The report as text for a terminal.

    Args:
        width: columns of the terminal, used between 40 and 120; None for that of standard output.
        color: emphasise with terminal styles; None for "if standard output is a terminal and NO_COLOR is not set".
        encoding: of the terminal; None for that of standard output. One that lacks "×" gets "x", and so on.
    """
    page = Page.of(width, color, encoding)
    lines = _title(page, report)
    lines += ["", *_before_after(page, report)]
    for remark in latency_remarks(report):
        lines += page.paragraph(printable(remark), dim=True)
    lines += _frontier(page, report) + _candidates(page, report) + _prediction(page, report) + _unprunable(page, report)
    if report.notes:
        lines += page.heading("Notes")
        for note in report.notes:
            lines += page.paragraph(printable(note), fg="yellow")
    lines += ["", *page.paragraph(_effort(report), indent=0, dim=True)]
    return page.finish(lines)


def _title(page: Page, report: Report) -> list[str]:
    model, output = printable(Path(report.model).name), printable(report.output)
    line = f"{model} → {output}"
    if len(line) > page.width:
        room = page.width - 2
        lines = [shorten(model, page.width), "→ " + shorten(output, room)]
    else:
        lines = [line]
    return [page.style(line, bold=True) for line in lines] + page.paragraph(headline(report), indent=0)


def _before_after(page: Page, report: Report) -> list[str]:
    rows = [[printable(cell) for cell in row] for row in before_after(report)]
    numbers = [Column("", "<"), Column("before"), Column("after")]
    if page.width >= 72:
        return table(page, [*numbers, Column("", "<", flexible=True, wrap=True)], rows)
    lines = []
    for position, line in enumerate(table(page, numbers, rows)):
        lines.append(line)
        if position:  # line 0 is the heading; on narrow pages the remark goes below its row
            lines += page.paragraph(rows[position - 1][3], indent=4, dim=True)
    return lines


def _frontier(page: Page, report: Report) -> list[str]:
    if len(report.frontier) < 2:
        return []
    columns = [Column("", "<")] + [Column(title, drop=drop) for title, drop in zip(TITLES, DROPS, strict=True)]
    marks = ["▸" * point.shipped + "*" * point.trained for point in report.frontier]
    rows = [[mark, *map(printable, row)] for mark, row in zip(marks, frontier_rows(report), strict=True)]
    styles = [{"bold": True} if point.shipped else {} for point in report.frontier]
    lines = page.heading("On the way to the speed")
    return lines + table(page, columns, rows, styles=styles) + page.paragraph(frontier_note(report), dim=True)


def _candidates(page: Page, report: Report) -> list[str]:
    if not report.candidates:
        return []
    order = ranked(report.candidates)
    shown = [
        each
        for position, each in enumerate(order)
        if position < MAX_CANDIDATES or each.method == report.shipped or each.method.startswith("magnitude")
    ]
    columns = [
        Column("", "<"),
        Column("candidate", "<", flexible=True),
        Column("sparsity", drop=2),
        Column("loss"),
        Column("agreement"),
        Column("accuracy", drop=1),
        Column("output change", drop=3),
        Column("time", drop=4),
    ]
    rows = [
        [
            "▸" if each.method == report.shipped else "",
            printable(each.method),
            percent(each.sparsity),
            significant(each.loss),
            percent(each.agreement) if each.agreement is not None else "",
            percent(each.accuracy) if each.accuracy is not None else "",
            percent(each.relative_error),
            duration(each.seconds) if each.seconds else "",
        ]
        for each in shown
    ]
    styles = [{"bold": True} if each.method == report.shipped else {} for each in shown]
    lines = page.heading(f"Candidates, on {plural(report.num_held_back, 'held-back sample')}")
    lines += table(page, columns, rows, styles=styles)
    if len(order) > len(shown):
        lines += page.paragraph(f"and {len(order) - len(shown)} more of higher loss", dim=True)
    return lines + page.paragraph(printable(shipped_because(report)))


def _prediction(page: Page, report: Report) -> list[str]:
    if not report.rounds:
        return []
    numbered = list(enumerate(report.rounds, start=1))
    columns = [
        Column("round"),
        Column("sparsity"),
        Column("predicted"),
        Column("½ Σ h w²", drop=3),
        Column("on scoring", drop=2),
        Column("held back"),
        Column("loss", drop=1),
    ]
    rows = [
        [
            str(number),
            percent(each.sparsity),
            significant(each.predicted_together) if each.predicted_together is not None else "",
            significant(each.predicted) if each.predicted is not None else "",
            significant(each.measured_scoring),
            significant(each.measured_held_back),
            significant(each.loss_held_back),
        ]
        for number, each in _spread(numbered)
    ]
    lines = page.heading(f"Loss change per round of {printable(report.method)}")
    return lines + table(page, columns, rows) + page.paragraph(prediction_verdict(report.rounds))


def _spread(rounds: Sequence[tuple[int, Round]]) -> list[tuple[int, Round]]:
    """At most MAX_ROUNDS of them, evenly spread, the first and the last included."""
    if len(rounds) <= MAX_ROUNDS:
        return list(rounds)
    step = (len(rounds) - 1) / (MAX_ROUNDS - 1)
    return [rounds[round(n * step)] for n in range(MAX_ROUNDS)]


def _unprunable(page: Page, report: Report) -> list[str]:
    groups = by_reason(report.weights)
    if not groups:
        return []
    lines = page.heading("Left as they are")
    rows = [
        [plural(len(group), "tensor"), plural(sum(map(size, group)), "parameter"), printable(reason)]
        for reason, group in groups
    ]
    return lines + table(page, [Column(""), Column("", drop=1), Column("", "<", flexible=True, wrap=True)], rows)


def _effort(report: Report) -> str:
    proof = f"onnxruntime agrees with the mirror to {significant(report.mirror_error, 2)} before pruning"
    proof += f" and to {significant(report.export_error, 2)} on the exported model"
    samples = f"{plural(report.num_scoring, 'sample')} for scoring, {report.num_held_back} held back"
    return f"{samples}; {proof}; {duration(total_seconds(report))}; onnx-obd {printable(report.version)}."
