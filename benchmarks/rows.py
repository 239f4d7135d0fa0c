"""What the benchmarks have in common: lists on the command line, and rows in a JSON file to which runs add."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from benchmarks.corpus import LOADERS
from onnx_obd.atomic import write_atomically


def split_at_commas(context: click.Context, parameter: click.Parameter, value: str) -> list[str]:
    """A click callback."""
    return [each for each in value.split(",") if each]


def check_known(names: Iterable[str], known: Iterable[str] = tuple(LOADERS), what: str = "data for") -> None:
    """
    Raises:
        click.UsageError: one of the names is not known.
    """
    if unknown := [name for name in names if name not in known]:
        raise click.UsageError(f"no {what} {unknown[0]}; there are {', '.join(known)}")


def read_rows(path: Path | None) -> list[dict[str, Any]]:
    """The fields of the rows in the file, if there is one."""
    return json.loads(path.read_text("utf-8")) if path and path.exists() else []


def write_rows(path: Path | None, rows: Iterable[Any]) -> None:
    """Dataclasses, to the file if one is asked for."""
    if path:
        write_atomically(path, json.dumps([asdict(row) for row in rows], indent=1).encode())
