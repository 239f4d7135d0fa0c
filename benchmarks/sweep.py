"""Every model of the corpus made faster by the command, and what came of it.

    python -m benchmarks.sweep CORPUS [--data FOLDER] [--speedup 1.2] [--minutes 0] [--limit 300] [--only NAMES]

The units found, frozen and removed, the speed that the run measured, how often the class is the same (or, without
classes, how far the outputs moved), how far the result is from a mirror built of it anew, what the checker says of it,
and what the command said where it declined or did not get there. Without labels.

Samples are DATA/NAME (a folder or file as for ``--data``), else the corpus's own for the networks with labelled data,
else made up: these show that it works, not what it is worth.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import numpy as np
import onnx
import torch

from benchmarks.corpus import LOADERS, load_task
from benchmarks.rows import read_rows, split_at_commas, write_rows
from benchmarks.units import AS_BEFORE, checked, difference, samples_of, small
from onnx_obd.calibration.made_up import made_up_samples
from onnx_obd.calibration.measure import feeds
from onnx_obd.calibration.samples import Feed, Samples
from onnx_obd.errors import OnnxObdError
from onnx_obd.graph.load import load_model
from onnx_obd.graph.session import open_session
from onnx_obd.mirror.mirror import Mirror
from onnx_obd.mirror.values import to_numpy, to_torch
from onnx_obd.surgery.shrink_confirm import confirmed_units

HEAD = (
    "| model | units | frozen | removed | times faster | held-back samples | mirror off | checker | seconds "
    "| what it says |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)
COMMAND, RESULT = "from onnx_obd.cli import main; main()", "smaller.onnx"


@dataclass(frozen=True)
class Row:
    """What came of one model.

    ``moved``: the relative error of the outputs; ``agreement`` None where they are no classes; ``off``: a mirror's
    largest difference over an output's largest element; None where nothing was written. ``said``: the command's one
    line where it declined, or why it did not reach the speed.
    """

    model: str
    units: int
    frozen: int
    removed: int = 0
    speed: float | None = None
    agreement: float | None = None
    moved: float | None = None
    off: float | None = None
    checker: str = ""
    seconds: float = 0.0
    said: str = ""
    made_up: bool = False


def run(corpus: Path, path: Path, data: Path | None, arguments: Sequence[str], count: int, limit: float) -> Row:
    """One model, by the command in a process of its own."""
    proto = load_model(path).proto
    real = samples_of(proto, path, data, count)
    if real is None and path.stem in LOADERS:
        real = load_task(corpus, path.stem).calibration.subset(range(count))
    samples = real or made_up_samples(proto, count)
    mirror = Mirror(proto)
    units = confirmed_units(mirror, feeds(mirror, samples.subset([0]), 1)[0][0])
    row = Row(path.stem, len(units.units), sum(group.count for group in units.frozen), made_up=real is None)
    if not units.units:
        return replace(row, said="all frozen" if row.frozen else "has no weights that could be in a unit")
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        row = _faster(row, path, _write(samples, folder / "samples"), folder, arguments, limit)
        return replace(row, off=_off(folder / RESULT, samples.feeds[0])) if row.speed else row


def _faster(row: Row, path: Path, data: Path, folder: Path, arguments: Sequence[str], limit: float) -> Row:
    result, report = folder / RESULT, folder / "report.json"
    command = [sys.executable, "-c", COMMAND, "prune", str(path), "--data", str(data), "--labels", "none"]
    command += ["--output", str(result), "--json", str(report), "--quiet", *arguments]
    start = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return replace(row, seconds=limit, said=f"not done after {limit:g} s")
    row = replace(row, seconds=time.perf_counter() - start)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit {done.returncode}"]
        return replace(row, said=lines[-1].removeprefix("onnx-obd: "))
    told = json.loads(report.read_text("utf-8"))
    why = [note.partition("was not reached: ")[2] for note in told["notes"]]
    why += [note for note in told["notes"] if "was asked for" in note]
    return replace(
        row,
        removed=next((point["units"] for point in told["frontier"] if point["shipped"]), 0),
        speed=told["latency"]["speedup"]["median"],
        agreement=told["exported"]["agreement"],
        moved=told["exported"]["relative_error"],
        checker=checked(onnx.load(path), onnx.load(result)),
        said=next(filter(None, why), ""),
    )


def _off(result: Path, sample: Feed) -> float:
    """A mirror built of the result against onnxruntime, by ``difference``."""
    proto = load_model(result).proto
    mirror = Mirror(proto)
    with torch.no_grad():
        found = mirror.evaluate([to_torch(sample.get(name)) for name in mirror.input_names])
    return difference(list(map(to_numpy, found)), open_session(proto, optimize=False).run(None, sample))


def _write(samples: Samples, folder: Path) -> Path:
    folder.mkdir()
    for number, feed in enumerate(samples.feeds):
        np.savez(folder / f"{number:04}.npz", **feed)
    return folder


def describe(row: Row) -> str:
    same = f"{100 * row.agreement:.0f} % the same class" if row.agreement is not None else ""
    if row.moved is not None and not same:
        same = f"moved by {100 * row.moved:.1f} %"
    cells = [
        row.model,
        str(row.units),
        str(row.frozen),
        str(row.removed) if row.speed else "",
        f"{row.speed:.2f}" if row.speed else "",
        f"{same}{' (made up)' if same and row.made_up else ''}",
        small(row.off) if row.off is not None else "",
        row.checker,
        f"{row.seconds:.0f}",
        row.said,
    ]
    return f"| {' | '.join(cells)} |"


def summary(rows: Sequence[Row], speedup: float) -> str:
    came = [row for row in rows if row.speed]
    there = sum(row.speed >= speedup for row in came)
    worst = max((row.off for row in came), default=0.0)
    newly = sum(bool(row.checker) and row.checker != AS_BEFORE for row in came)
    return (
        f"{len(came)} of {len(rows)} came out, {there} of them {speedup:g} times as fast or faster; off by {worst:.1g} "
        f"at most; the checker newly objects to {newly}."
    )


@click.command()
@click.argument("corpus", type=click.Path(path_type=Path, exists=True))
@click.option("--data", type=click.Path(path_type=Path, exists=True), help="Folder with samples by model name.")
@click.option("--speedup", default=1.2, show_default=True)
@click.option("--minutes", default=0.0, show_default=True, help="Of recovery.")
@click.option("--samples", default=24, show_default=True)
@click.option("--limit", default=300.0, show_default=True, help="Seconds for each model.")
@click.option("--only", callback=split_at_commas, default="", help="Names, separated by commas.")
@click.option("--results", type=click.Path(path_type=Path), help="JSON file of rows to add to.")
def main(
    corpus: Path,
    data: Path | None,
    speedup: float,
    minutes: float,
    samples: int,
    limit: float,
    only: list[str],
    results: Path | None,
) -> None:
    rows = [Row(**row) for row in read_rows(results)]
    done = {row.model for row in rows}
    arguments = ["--speedup", str(speedup), "--recover-minutes", str(minutes)]
    for path in sorted((corpus / "models").rglob("*.onnx")):
        if path.stem in done or (only and path.stem not in only):
            continue
        try:
            row = run(corpus, path, data, arguments, samples, limit)
        except OnnxObdError as error:
            row = Row(path.stem, 0, 0, said=" ".join(str(error).split()))
        click.echo(describe(row), err=True)
        rows.append(row)
        write_rows(results, rows)
    ordered = sorted(rows, key=lambda row: row.model)
    click.echo("\n".join([HEAD, *map(describe, ordered), "", summary(rows, speedup)]))


if __name__ == "__main__":
    main()
