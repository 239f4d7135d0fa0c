"""Progress of long stages on a terminal: one line on standard error that is gone when the stage is done."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import TextIO

from onnx_obd.report.quantities import duration, printable, shorten

Callback = Callable[[int, int], None]
"""``progress(done, total)``: so many steps of so many are done."""

BAR_WIDTH = 24
REDRAW_SECONDS = 0.1
ESTIMATE_AFTER_SECONDS = 1.0


class Progress:
    """Shows what is going on, how far it is and how long it will take.

    Writes only if ``stream`` (standard error by default) is a terminal and ``quiet`` is not asked for, and never to
    standard output. ``clock`` returns seconds.
    """

    def __init__(
        self, *, quiet: bool = False, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._clock = clock
        self._visible = not quiet and self._stream is not None and self._stream.isatty()

    @contextlib.contextmanager
    def stage(self, label: str) -> Iterator[Callback]:
        """A stage named ``label``; what it yields is called with (steps done, steps in all).

        However the stage ends, an interrupt included, the line is removed.
        """
        started = drawn = self._clock()

        def report(done: int, total: int) -> None:
            nonlocal drawn
            now = self._clock()
            if now - drawn >= REDRAW_SECONDS:
                drawn = now
                self._draw(_line(label, done, total, now - started))

        self._draw(label)
        try:
            yield report
        finally:
            self._draw("")

    def _draw(self, text: str) -> None:
        """Replaces the line; plain spaces erase the old one, since not every terminal knows escape sequences."""
        if not self._visible:
            return
        encoding = self._stream.encoding or "ascii"
        room = _columns(self._stream) - 1  # writing to the last column would wrap
        line = shorten(printable(text), room).encode(encoding, "replace").decode(encoding)
        try:
            self._stream.write(f"\r{' ' * room}\r{line}")
            self._stream.flush()
        except OSError:  # the terminal is gone; the work goes on
            self._visible = False


def _line(label: str, done: int, total: int, elapsed: float) -> str:
    if total <= 0:
        return label
    fraction = min(1.0, max(0.0, done / total))
    filled = round(BAR_WIDTH * fraction)
    line = f"{label}  [{'=' * filled}{' ' * (BAR_WIDTH - filled)}] {fraction:4.0%}"
    if fraction > 0 and elapsed >= ESTIMATE_AFTER_SECONDS:
        left = math.ceil(elapsed / fraction - elapsed)
        line += f"  {f'{left} s' if left < 60 else duration(left)} left"
    return line


def _columns(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80
