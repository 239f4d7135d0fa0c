"""What `onnx-obd inspect` prints: what of a model can be pruned, what cannot, and why. No data is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

from onnx_obd.records import WeightSummary
from onnx_obd.report.layout import Column, Page, table
from onnx_obd.report.quantities import count, percent, plural, printable
from onnx_obd.report.summary import by_reason, size, used_by

MAX_NAMES = 4


def render_inspection(
    model: str | PathLike[str],
    weights: Sequence[WeightSummary],
    boundaries: Sequence[str] = (),
    totals: Mapping[str, object] | None = None,
    *,
    width: int | None = None,
    color: bool | None = None,
    encoding: str | None = None,
) -> str:
    """The weights of a model as text for a terminal.

    Args:
        model: path of the model.
        weights: all of its float tensors.
        boundaries: descriptions of the nodes that gradients do not pass.
        totals: whatever else is known of the model, printed as it is: {"nodes": 12, "file size": "245 kB"}.
        width, color, encoding: as in ``render_table``.
    """
    page = Page.of(width, color, encoding)
    prunable = [weight for weight in weights if weight.prunable]
    everything, scored = sum(map(size, weights)), sum(map(size, prunable))
    lines = [page.style(printable(Path(model).name), bold=True)]
    facts = {"float tensors": count(len(weights)), "parameters": count(everything), **(totals or {})}
    share = f", {percent(scored / everything)} of all" if everything else ""
    facts["prunable"] = f"{plural(scored, 'parameter')} in {plural(len(prunable), 'tensor')}{share}"
    columns = [Column("", "<"), Column("", "<", flexible=True, wrap=True)]
    lines += table(page, columns, [_fact(*fact) for fact in facts.items()])
    lines += _prunable(page, prunable) + _unprunable(page, weights)
    if boundaries:
        lines += page.heading("Nodes that gradients do not pass")
        for boundary in boundaries:
            lines += page.paragraph(printable(boundary), fg="yellow")
    return page.finish(lines)


def _fact(label: str, value: object) -> list[str]:
    return [printable(label), count(value) if isinstance(value, int) else printable(value)]


def _prunable(page: Page, weights: Sequence[WeightSummary]) -> list[str]:
    if not weights:
        return [*page.heading("Prunable"), *page.paragraph("nothing: no weight of this model can be scored")]
    columns = [
        Column("tensor", "<", flexible=True),
        Column("shape"),
        Column("parameters", drop=1),
        Column("zeros", drop=2),
        Column("used by", "<", drop=3, flexible=True),
    ]
    rows = [
        [
            printable(weight.name),
            "×".join(map(str, weight.shape)) or "scalar",
            count(size(weight)),
            percent(weight.sparsity_before),
            printable(used_by(weight)),
        ]
        for weight in weights
    ]
    return page.heading("Prunable") + table(page, columns, rows)


def _unprunable(page: Page, weights: Sequence[WeightSummary]) -> list[str]:
    groups = by_reason(weights)
    if not groups:
        return []
    lines = page.heading("Not prunable")
    for reason, group in groups:
        amount = f"{plural(len(group), 'tensor')}, {plural(sum(map(size, group)), 'parameter')}"
        lines += page.paragraph(f"{printable(reason)}: {amount}")
        names = ", ".join(printable(weight.name) for weight in group[:MAX_NAMES])
        more = f" and {count(len(group) - MAX_NAMES)} more" if len(group) > MAX_NAMES else ""
        lines += page.paragraph(names + more, indent=4, dim=True)
    return lines
