"""Numbers, sizes and names as a person wants to read them."""

from __future__ import annotations

import math

from onnx_obd.records import Interval

MISSING = "–"


def printable(text: object) -> str:
    """``str(text)`` with every control, format and surrogate character spelled as an escape.

    Names come from model files: unchecked they could carry terminal escape sequences, reverse the reading direction,
    or break XML, in which most control characters cannot be written at all.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))


def shorten(text: str, length: int) -> str:
    """``text`` cut in the middle to ``length`` characters: both ends of a tensor name or a path tell something."""
    if len(text) <= length:
        return text
    tail = (length - 1) // 2
    return text[: length - 1 - tail] + "…" + text[len(text) - tail :] if length > 1 else "…"[:length]


def percent(fraction: float | None) -> str:
    """0.978 -> "97.8 %". Rounds to one decimal, but never to 0 % or 100 % what is neither."""
    if fraction is None:
        return MISSING
    if not math.isfinite(fraction):
        return "not finite"
    if fraction in (0, 1):
        return f"{fraction * 100:.0f} %"
    for decimals in (1, 2, 3):
        rounded = f"{fraction * 100:.{decimals}f}"
        if float(rounded) not in (0, 100):
            return f"{rounded} %"
    return "> 99.999 %" if fraction > 0.5 else "< 0.001 %"


def points(difference: float) -> str:
    """A difference of two fractions in percentage points: -0.011 -> "-1.1 points"."""
    if abs(difference) < 5e-6:
        return "no change"
    decimals = 1 if abs(difference) >= 5e-4 else 3
    return f"{difference * 100:+.{decimals}f} points"


def significant(value: float | None, digits: int = 3) -> str:
    """0.012345 -> "0.0123", 1.2345e-7 -> "1.23e-7": a few significant digits, plain where plain is short."""
    if value is None:
        return MISSING
    if not math.isfinite(value):
        return "not finite"
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    if not -3 <= int(exponent) < 6:
        return f"{mantissa}e{int(exponent)}"
    return f"{float(f'{value:.{digits - 1}e}'):,.{max(0, digits - 1 - int(exponent))}f}"


def count(number: int) -> str:
    """61706 -> "61,706"."""
    return f"{number:,}"


def plural(number: int, noun: str) -> str:
    """(1, "tensor") -> "1 tensor", (4, "tensor") -> "4 tensors"."""
    return f"{count(number)} {noun}{'' if number == 1 else 's'}"


def file_size(num_bytes: int) -> str:
    """244908 -> "245 kB" (decimal: 1 kB = 1000 bytes)."""
    value = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5 or unit == "GB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" else f"{significant(value)} {unit}"


def duration(seconds: float) -> str:
    """Time a person waited: "0.42 s", "12 s", "3 min 20 s", "1 h 02 min"."""
    if not math.isfinite(seconds):
        return "not finite"
    if seconds < 9.95:
        return f"{seconds:.2f} s" if seconds < 0.995 else f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def milliseconds(value: float) -> str:
    """A latency given in milliseconds: "0.142 ms", "12.3 ms"."""
    return f"{significant(value)} ms"


def span(interval: Interval) -> str:
    """The 95 % interval alone, with as many decimals as its width supports: "[0.981, 1.021]"."""
    decimals = _decimals(interval)
    return f"[{interval.low:.{decimals}f}, {interval.high:.{decimals}f}]"


def median(interval: Interval) -> str:
    """The median with the same decimals as ``span``."""
    return f"{interval.median:.{_decimals(interval)}f}"


def _decimals(interval: Interval) -> int:
    width = interval.high - interval.low
    if not (math.isfinite(width) and width > 0):
        return 3
    return min(6, max(0, 1 - math.floor(math.log10(width))))
