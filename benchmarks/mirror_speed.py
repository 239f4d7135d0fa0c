"""How long the mirror takes over onnxruntime, and how much memory, on the models of a corpus folder.

    python -m benchmarks.mirror_speed CORPUS [--only REGEX] [--rounds 7]

One thread each, without gradients, random inputs. Each batch size is run in a process of its own, where onnxruntime
and the mirror take turns; a figure is the fastest of the rounds, in processor time, so that other work on the machine
disturbs less. Memory is the growth of the peak resident size while a process loads the model from its file and runs it
three times, at the largest batch; the libraries are in memory already and have run another model. What is less than
1 MB counts as that. A dash: the model's batch is fixed, or the input would be too large for the table to be made in
minutes.
"""

from __future__ import annotations

import ctypes
import math
import multiprocessing
import os
import re
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import onnxruntime as ort
import torch

from onnx_obd.calibration.inputs import ModelInput, read_inputs
from onnx_obd.graph.session import open_session
from onnx_obd.mirror.mirror import Mirror
from onnx_obd.mirror.values import to_torch

BATCHES = (1, 32)
LEAST_SECONDS = 0.02
"""A round repeats a run until this much time has passed."""

OPEN = 64
"""Length of an open axis that is not the batch."""

LARGEST_INPUT = 1 << 23
"""Elements of an input beyond which a batch is left out."""

LENGTHS = {"sequence": 576, "sequence_length": 12}
"""... and of those that a model reads in windows."""

VALUES = {"sr": 16000, "score_threshold": 0.5}
"""Inputs that are settings, not data."""


@dataclass(frozen=True)
class Timing:
    onnxruntime: float
    mirror: float

    @property
    def ratio(self) -> float:
        return self.mirror / self.onnxruntime


@dataclass(frozen=True)
class Row:
    name: str
    import_seconds: float
    timings: dict[int, Timing]
    megabytes: tuple[float, float]

    @property
    def memory_ratio(self) -> float:
        onnxruntime, mirror = (max(1.0, size) for size in self.megabytes)
        return mirror / onnxruntime


def feeds(proto: onnx.ModelProto, batch: int) -> dict[str, np.ndarray] | None:
    """Random inputs, or None if the model does not take this batch."""
    rng, found, takes = np.random.default_rng(0), {}, batch == 1
    for value in read_inputs(proto):
        takes |= value.has_open_batch
        shape = _shape(value, batch)
        if batch > 1 and math.prod(shape) > LARGEST_INPUT:
            return None
        found[value.name] = _array(value, shape, rng)
    return found if takes else None


def _shape(value: ModelInput, batch: int) -> list[int]:
    lengths = enumerate(value.shape or ())
    open_axis = batch if value.has_open_batch else 1
    return [
        dim if isinstance(dim, int) and dim > 0 else open_axis if axis == value.batch_axis else LENGTHS.get(dim, OPEN)
        for axis, dim in lengths
    ]


def _array(value: ModelInput, shape: list[int], rng: np.random.Generator) -> np.ndarray:
    if value.name in VALUES:
        return np.full(shape, VALUES[value.name], value.dtype)
    return (rng.random(shape) if value.dtype.kind == "f" else rng.integers(0, 256, shape)).astype(value.dtype)


# ---- in a process of its own


def _runners(path: Path, batch: int) -> tuple[Callable[[], Any], Callable[[], Any]] | None:
    proto = onnx.load(path)
    values = feeds(proto, batch)
    if values is None:
        return None
    session, mirror = open_session(path), Mirror(proto)
    inputs = [to_torch(value) for value in values.values()]
    return lambda: session.run(None, values), lambda: mirror(*inputs)


def _time(path: Path, batch: int, rounds: int) -> Timing | None:
    torch.set_num_threads(1)
    with torch.no_grad():
        runners = _runners(path, batch)
        if runners is None:
            return None
        try:
            for run in (*runners, *runners):
                run()
        except (ort.capi.onnxruntime_pybind11_state.Fail, ort.capi.onnxruntime_pybind11_state.InvalidArgument):
            return None  # a batch of 1 is written into the graph after all
        best = [float("inf")] * 2
        for _ in range(rounds):
            best = [min(seconds, _seconds(run)) for seconds, run in zip(best, runners, strict=True)]
    return Timing(*best)


def _seconds(run: Callable[[], Any]) -> float:
    count, start = 0, time.process_time()
    while True:
        run()
        count += 1
        elapsed = time.process_time() - start
        if elapsed > LEAST_SECONDS:
            return elapsed / count


def _import_seconds(path: Path) -> float:
    start = time.process_time()
    Mirror(path)
    return time.process_time() - start


ANOTHER_MODEL = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[2, 3, 8, 8] x, float[4, 3, 3, 3] w) => (float[2, 4, 6, 6] y) { a = Conv (x, w) y = Relu (a) }"""

MADV_POPULATE_READ = 22


def _peak_growth(path: Path, values: dict[str, np.ndarray], use_mirror: bool) -> int:
    """Bytes by which the peak resident size exceeds what the process held before (Linux)."""
    torch.set_num_threads(1)
    other = onnx.parser.parse_model(ANOTHER_MODEL)
    for mirror in (True, False):
        _load_and_run(other, feeds(other, 1), mirror)
    _fault_libraries_in()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _status("VmHWM")
    _load_and_run(path, values, use_mirror)
    return _status("VmHWM") - before


def _load_and_run(model: Path | onnx.ModelProto, values: dict[str, np.ndarray], use_mirror: bool) -> None:
    if use_mirror:
        mirror, inputs = Mirror(model), [to_torch(value) for value in values.values()]
        with torch.no_grad():
            for _ in range(3):
                mirror(*inputs)
    else:
        session = open_session(model)
        for _ in range(3):
            session.run(None, values)


def _fault_libraries_in() -> None:
    """Have all pages of shared libraries in memory: which of them a model touches first is not its memory."""
    madvise = ctypes.CDLL(None).madvise
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, access, *_, name = line.split(maxsplit=5)
        if ".so" in name and access[0] == "r":
            start, end = (int(part, 16) for part in span.split("-"))
            madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), MADV_POPULATE_READ)


def _status(field: str) -> int:
    return int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def _apart(function: Callable, *arguments: Any) -> Any:
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(function, arguments)


# ---- the table


def measure(path: Path, rounds: int) -> Row:
    proto = onnx.load(path)
    timings = {batch: _apart(_time, path, batch, rounds) for batch in BATCHES}
    largest = max(batch for batch in BATCHES if timings[batch])
    peaks = [_apart(_peak_growth, path, feeds(proto, largest), use_mirror) / 1e6 for use_mirror in (False, True)]
    return Row(path.stem, _apart(_import_seconds, path), timings, tuple(peaks))


def table(rows: Iterable[Row]) -> list[str]:
    heads = [f"batch {batch}: {what}" for batch in BATCHES for what in ("onnxruntime, ms", "mirror, ms", "ratio")]
    heads += ["import, s", *(f"memory: {what}" for what in ("onnxruntime, MB", "mirror, MB", "ratio"))]
    lines = [f"| model | {' | '.join(heads)} |", "|---" + "|--:" * len(heads) + "|"]
    for row in rows:
        cells = []
        for timing in row.timings.values():
            known = timing and (timing.onnxruntime * 1e3, timing.mirror * 1e3, timing.ratio)
            cells += [f"{known[0]:.3g}", f"{known[1]:.3g}", f"{known[2]:.2f}"] if known else ["-"] * 3
        cells.append(f"{row.import_seconds:.2f}")
        cells += [*(f"{size:.1f}" for size in row.megabytes), f"{row.memory_ratio:.2f}"]
        lines.append(f"| {row.name} | {' | '.join(cells)} |")
    return lines


@click.command(help=__doc__)
@click.argument("corpus", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--only", default="", help="Models whose name matches.")
@click.option("--rounds", default=7, show_default=True)
def main(corpus: Path, only: str, rounds: int) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    folder = corpus / "models" if (corpus / "models").is_dir() else corpus
    rows = []
    for path in sorted(folder.glob("*.onnx")):
        if re.search(only, path.stem):
            rows.append(measure(path, rounds))
            click.echo(table(rows)[-1], err=True)
    click.echo("\n".join(table(rows)))
    for batch in BATCHES:
        ratios = [row.timings[batch].ratio for row in rows if row.timings[batch]]
        if ratios:
            mean = statistics.geometric_mean(ratios)
            click.echo(f"\nbatch {batch}: geometric mean {mean:.2f}, worst {max(ratios):.2f}, of {len(ratios)} models")
    memory = statistics.geometric_mean(row.memory_ratio for row in rows)
    slowest = max(row.import_seconds for row in rows)
    click.echo(f"\nimport: at most {slowest:.2f} s; memory: geometric mean {memory:.2f}")


if __name__ == "__main__":
    main()
