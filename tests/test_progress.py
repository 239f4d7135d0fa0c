from __future__ import annotations

import io
import os

import pytest

from onnx_obd.progress import Progress


class Terminal(io.StringIO):
    """A stream that says it is a terminal of 80 columns (its real size cannot be asked)."""

    encoding = "ascii"

    def isatty(self) -> bool:
        return True

    def screen(self) -> str:
        """What is on the line now, a carriage return going back to its start."""
        line = ""
        for part in self.getvalue().split("\r"):
            line = part + line[len(part) :]
        return line.rstrip()


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_one_line_with_the_share_done_and_the_time_left():
    stream, clock = Terminal(), Clock()
    with Progress(stream=stream, clock=clock).stage("curvature, round 3 of 12") as report:
        assert stream.screen() == "curvature, round 3 of 12"
        clock.now = 30.0
        report(1, 4)
        assert stream.screen() == f"curvature, round 3 of 12  [{'=' * 6}{' ' * 18}]  25%  1 min 30 s left"
        clock.now = 40.5
        report(3, 4)
        assert stream.screen().endswith("75%  14 s left")
    assert stream.screen() == "" and "\n" not in stream.getvalue()


def test_redraws_at_most_ten_times_a_second():
    stream, clock = Terminal(), Clock()
    with Progress(stream=stream, clock=clock).stage("x") as report:
        for step in range(1000):
            clock.now = step / 1000
            report(step, 1000)
    assert 8 <= stream.getvalue().count("[") <= 10


@pytest.mark.parametrize(("done", "total"), [(0, 0), (3, -1), (9, 3), (-1, 3), (0, 3)])
def test_odd_counts(done, total):
    stream, clock = Terminal(), Clock()
    with Progress(stream=stream, clock=clock).stage("x") as report:
        clock.now = 5.0
        report(done, total)
        assert stream.screen().startswith("x")
        assert len(stream.screen()) < 80


def test_the_line_goes_away_on_an_interrupt():
    stream = Terminal()
    with pytest.raises(KeyboardInterrupt), Progress(stream=stream).stage("training"):
        raise KeyboardInterrupt
    assert "training" in stream.getvalue() and stream.screen() == ""


def test_quiet_and_not_a_terminal_are_silent(capfd):
    quiet, file = Terminal(), io.StringIO()
    for progress in (Progress(quiet=True, stream=quiet), Progress(stream=file), Progress()):
        with progress.stage("x") as report:
            report(1, 2)
    assert quiet.getvalue() == "" and file.getvalue() == ""
    assert capfd.readouterr() == ("", "")


def test_labels_are_cut_and_disarmed():
    stream = Terminal()
    with Progress(stream=stream).stage("é\x1b[2J" + "x" * 200):
        assert stream.screen().startswith("?\\x1b[2Jxxx") and len(stream.screen()) == 79
    assert "\x1b" not in stream.getvalue()


def test_a_lost_terminal_does_not_stop_the_work():
    class Gone(Terminal):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    with Progress(stream=Gone()).stage("x") as report:
        report(1, 2)


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs pseudo-terminals")
def test_the_width_is_the_terminals():
    import fcntl
    import struct
    import termios

    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 30, 0, 0))
    with os.fdopen(slave, "w") as stream:
        with Progress(stream=stream).stage("x" * 100):
            written = os.read(master, 4096).decode()
        assert max(map(len, written.split("\r"))) == 29
    os.close(master)
