"""Records as JSON, for programs.

Schema 1 is the record (for a run, ``Report``) field by field, nested as the records are, with ``"schema": 1`` in front.
A field may be added without a new schema number; renaming, removing or changing the meaning of one needs a new number.
A number that JSON cannot write (NaN, infinity) is null; every other number reads back as exactly the same double.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Set
from dataclasses import fields, is_dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from onnx_obd.atomic import write_atomically
from onnx_obd.records import Report

SCHEMA = 1


def to_json(record: Any) -> str:
    """A dataclass record, a Report above all, as a JSON object: indented, keys in the order of its fields."""
    content = {"schema": SCHEMA, **_plain(record)}
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)


def write_json(report: Report, path: str | PathLike[str]) -> Path:
    """Write ``to_json`` to ``path``, whole or not at all.

    Raises:
        ExportError: the file cannot be written.
    """
    return write_atomically(path, f"{to_json(report)}\n".encode())


def _plain(value: Any) -> Any:
    """``value`` in the types JSON has. Anything else in the options (a path, an enum, a dtype) becomes its text."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {_text(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Set):
        return [_plain(item) for item in sorted(value, key=str)]
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):  # numpy and torch, scalars and arrays
        return _plain(value.tolist())
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return _text(value)


def _text(value: Any) -> str:
    """Lone surrogates, which undecodable file names carry, are no Unicode text: they become \\udc80 and the like."""
    return str(value).encode("utf-8", "backslashreplace").decode("utf-8")
