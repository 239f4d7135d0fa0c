"""Plain-text layout: columns that fit the terminal, wrapped paragraphs, styles that can be switched off."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click

from onnx_obd.report.quantities import shorten

NARROWEST, WIDEST = 40, 120
COMFORTABLE, TIGHT = 24, 12
"""A flexible column is narrowed to the first before any column is dropped, to the second when none is left to drop."""

ASCII = str.maketrans({"→": "->", "×": "x", "–": "-", "…": "~", "½": "1/2", "▸": ">", "─": "-", "·": "."})
"""Stand-ins for terminals that cannot show these."""


@dataclass(frozen=True)
class Page:
    """Where the text goes: its width in columns, whether styles are wanted, and its encoding."""

    width: int
    color: bool
    encoding: str

    @classmethod
    def of(cls, width: int | None, color: bool | None, encoding: str | None) -> Page:
        """What is None is taken from standard output: its width, whether it is a terminal, its encoding."""
        if width is None:
            width = shutil.get_terminal_size(fallback=(100, 24)).columns
        if color is None:
            plain = "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
            color = not plain and sys.stdout.isatty()
        encoding = encoding or getattr(sys.stdout, "encoding", None) or "utf-8"
        return cls(min(WIDEST, max(NARROWEST, width)), color, encoding)

    def style(self, text: str, **styles: Any) -> str:
        return click.style(text, **styles) if self.color and styles and text else text

    def paragraph(self, text: str, indent: int = 2, **styles: Any) -> list[str]:
        """``text`` wrapped to the width, every line indented."""
        lines = textwrap.wrap(text, self.width - indent, break_on_hyphens=False)
        return [" " * indent + self.style(line, **styles) for line in lines]

    def heading(self, text: str) -> list[str]:
        return ["", self.style(shorten(text, self.width), bold=True)]

    def finish(self, lines: Sequence[str]) -> str:
        """The page as one string that its encoding can carry."""
        text = "\n".join(line.rstrip() for line in lines)
        try:
            text.encode(self.encoding)
            return text
        except (UnicodeEncodeError, LookupError):
            return text.translate(ASCII).encode("ascii", "replace").decode("ascii")


@dataclass(frozen=True)
class Column:
    """One column. When the page is too narrow, droppable columns go, the highest ``drop`` first; then ``flexible``
    cells are shortened, or wrapped if ``wrap``."""

    title: str
    align: str = ">"
    drop: int = 0
    flexible: bool = False
    wrap: bool = False


def table(
    page: Page,
    columns: Sequence[Column],
    rows: Sequence[Sequence[str]],
    *,
    indent: int = 2,
    styles: Sequence[dict[str, Any]] = (),
) -> list[str]:
    """Lines of a table two spaces between columns. Empty columns are left out; ``styles`` is one for each row."""
    kept = [i for i in range(len(columns)) if any(row[i] for row in rows)]
    while True:
        widths = {i: max(display_width(text) for text in [columns[i].title, *(row[i] for row in rows)]) for i in kept}
        excess = indent + sum(widths.values()) + 2 * (len(kept) - 1) - page.width
        droppable = [i for i in kept if columns[i].drop]
        squeezed = sum(max(0, widths[i] - COMFORTABLE) for i in kept if columns[i].flexible)
        if excess <= squeezed or not droppable:
            break
        kept.remove(max(droppable, key=lambda i: columns[i].drop))
    for i in kept:
        if columns[i].flexible and excess > 0:
            cut = min(excess, max(0, widths[i] - TIGHT))
            widths[i] -= cut
            excess -= cut
    lines = []
    if any(columns[i].title for i in kept):
        titles = _line([column.title for column in columns], columns, kept, widths, indent)
        lines += [page.style(line, dim=True) for line in titles]
    for number, row in enumerate(rows):
        style = styles[number] if styles else {}
        lines += [page.style(line, **style) for line in _line(row, columns, kept, widths, indent)]
    return lines


def _line(
    cells: Sequence[str], columns: Sequence[Column], kept: Sequence[int], widths: dict[int, int], indent: int
) -> list[str]:
    """One row: several lines if a cell is wrapped."""
    stacks = []
    for i in kept:
        lines = textwrap.wrap(cells[i], widths[i]) if columns[i].wrap else [shorten(cells[i], widths[i])]
        stacks.append([pad(line, widths[i], columns[i].align) for line in lines or [""]])
    height = max(len(stack) for stack in stacks)
    for stack, i in zip(stacks, kept, strict=True):
        stack += [" " * widths[i]] * (height - len(stack))
    return [(" " * indent + "  ".join(parts)).rstrip() for parts in zip(*stacks, strict=True)]


def pad(text: str, width: int, align: str) -> str:
    space = " " * (width - display_width(text))
    return space + text if align == ">" else text + space


def display_width(text: str) -> int:
    """Columns that the text takes on a terminal: East Asian wide characters take two, combining marks none."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) != 0 for c in text)
