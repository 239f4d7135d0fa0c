"""Units removed: measured speed and test accuracy on real networks, label-free.

    python -m benchmarks.speed CORPUS [--models A,B] [--max-drop 0.01] [--minutes 5]     the fastest within the drop
    python -m benchmarks.speed CORPUS --speedup 1.5 [--models A,B] [--minutes 5]         as fast as asked for

256 samples without labels, batch 1, one thread. Accuracy is that of the labelled test samples, which no run sees.
Original and result are timed interleaved; the median of the ratio is given with its 95 % interval.

With --results a run adds to the rows in that JSON file, does not repeat what is there, and prints them all. With --keep
the models are kept, and --time-again measures only their speed anew (on a machine that does nothing else).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import numpy as np

from benchmarks.corpus import LOADERS, Task, accuracy, load_task, model_path
from benchmarks.rows import check_known, read_rows, split_at_commas, write_rows
from onnx_obd.errors import OnnxObdError
from onnx_obd.graph.session import open_session
from onnx_obd.pipeline import bench, prune

MODELS = (
    "mnist_fc_256x2,mnist_fc_256x4,mnist_fc_256x6,mnist_cnn_pytorch_ortjava,cifar10_sri_resnet_3b2,cifar10_biasfield_base,"
    "cifar10_marabou_medium,cifar10_marabou_large,cifar10_vit_pgd_2_3_16,magika_fast_v2_1,mobilenetv2_fp32_derived"
)

UNLIMITED = 10.0
"""Times faster: more than any network gets within the drop."""


@dataclass(frozen=True)
class Row:
    """One run: accuracies as fractions, the speed with its interval, minutes in all, bytes after over before.

    ``asked``: the speed that was asked for; None for the fastest within ``max_drop``.
    """

    model: str
    max_drop: float | None
    minutes: float
    before: float
    after: float
    speed: tuple[float, float, float]
    bytes: float
    took: float
    refused: str = ""
    asked: float | None = None

    @property
    def key(self) -> tuple:
        return self.model, self.max_drop, self.asked, self.minutes

    @property
    def name(self) -> str:
        kind = f"drop-{self.max_drop:g}" if self.asked is None else f"speedup-{self.asked:g}"
        return f"{self.model}.{kind}.{self.minutes:g}min.onnx"


def run(task: Task, wanted: Row, folder: Path) -> Row:
    """One run of the whole command; the model goes to ``folder``."""
    feeds = task.calibration.feeds
    speedup = wanted.asked or UNLIMITED
    options = {"speedup": speedup, "max_drop": wanted.max_drop, "recover_minutes": wanted.minutes}
    before = accuracy(task, open_session(task.model))
    with TemporaryDirectory() as temporary:
        data = Path(temporary) / "calibration.npz"
        np.savez(data, **{value: np.concatenate([feed[value] for feed in feeds]) for value in feeds[0]})
        start = time.perf_counter()
        try:
            report = prune(task.model, data, folder / wanted.name, **options).report
        except OnnxObdError as error:
            return replace(wanted, before=before, refused=str(error))
    ratio = report.latency.speedup
    return replace(
        wanted,
        before=before,
        after=accuracy(task, open_session(folder / wanted.name)),
        speed=(ratio.median, ratio.low, ratio.high),
        bytes=report.bytes_after / report.bytes_before,
        took=(time.perf_counter() - start) / 60,
    )


def run_all(corpus: Path, wanted: Sequence[Row], known: Sequence[Row], folder: Path) -> Iterator[Row]:
    done = {row.key for row in known}
    for row in wanted:
        if row.key not in done:
            yield run(load_task(corpus, row.model), row, folder)


def fastest(rows: Sequence[Row]) -> list[str]:
    """The table of the fastest models within the drop or of those asked for, and the geometric mean of their speeds."""
    if not rows:
        return []
    lines = ["| model | accuracy before | after | times faster | file, times smaller | recovery, minutes | in all |"]
    lines.append("|---" * 7 + "|")
    for row in rows:
        if row.refused:
            lines.append(f"| {row.model} | {100 * row.before:.1f} | {row.refused} | | | | |")
            continue
        median, low, high = row.speed
        lines.append(
            f"| {row.model} | {100 * row.before:.1f} | {100 * row.after:.1f} | {median:.2f} [{low:.2f}, {high:.2f}] | "
            f"{1 / row.bytes:.2f} | {row.minutes:g} | {row.took:.1f} |"
        )
    speeds = [row.speed[0] for row in rows if not row.refused]
    within = sum(row.before - row.after <= 0.01 + 1e-9 for row in rows if not row.refused)
    if speeds:
        mean = math.exp(float(np.log(speeds).mean()))
        lines += ["", f"Geometric mean of the speed: {mean:.2f}; {within} of {len(speeds)} lose one point at most."]
    return lines


def timed_again(corpus: Path, row: Row, folder: Path) -> Row:
    """The same row with the speed of the kept model measured anew."""
    if row.refused or not (folder / row.name).exists():
        return row
    ratio = bench(model_path(corpus, row.model), folder / row.name).speedup
    return replace(row, speed=(ratio.median, ratio.low, ratio.high))


def describe(rows: Sequence[Row]) -> str:
    rows = sorted(rows, key=lambda row: list(LOADERS).index(row.model))
    asked = [row for row in rows if row.asked is not None]
    within = [row for row in rows if row.max_drop is not None]
    parts = [fastest(within), fastest(asked)]
    return "\n\n".join("\n".join(part) for part in parts if part)


@click.command()
@click.argument("corpus", type=click.Path(path_type=Path, exists=True))
@click.option("--models", callback=split_at_commas, default=MODELS, show_default=True)
@click.option("--max-drop", default=0.01, show_default=True)
@click.option("--speedup", type=float, help="Ask for this speed and no drop.")
@click.option("--minutes", default=0.0, show_default=True, help="Of recovery.")
@click.option("--results", type=click.Path(path_type=Path), help="JSON file of rows to add to.")
@click.option("--keep", type=click.Path(path_type=Path), help="Folder for the models.")
@click.option("--time-again", is_flag=True, help="Only time the kept models of the rows there are.")
def main(
    corpus: Path,
    models: list[str],
    max_drop: float,
    speedup: float | None,
    minutes: float,
    results: Path | None,
    keep: Path | None,
    time_again: bool,
) -> None:
    check_known(models)
    rows = [Row(**{**row, "speed": tuple(row["speed"])}) for row in read_rows(results)]
    if time_again:
        for number, row in enumerate(rows):
            if row.model in models:
                rows[number] = timed_again(corpus, row, keep or Path())
                write_rows(results, rows)
    else:
        empty = Row("", max_drop, minutes, 0.0, 0.0, (1.0, 1.0, 1.0), 1.0, 0.0)
        wanted = [replace(empty, model=name) for name in models]
        if speedup:
            wanted = [replace(row, asked=speedup, max_drop=None) for row in wanted]
        with TemporaryDirectory() as temporary:
            folder = keep or Path(temporary)
            folder.mkdir(parents=True, exist_ok=True)
            for row in run_all(corpus, wanted, tuple(rows), folder):
                accuracies = f"{100 * row.before:.1f} -> {100 * row.after:.1f}"
                click.echo(f"{row.model}: {accuracies}, {row.speed[0]:.2f}x", err=True)
                rows.append(row)
                write_rows(results, rows)
    click.echo(describe(rows))


if __name__ == "__main__":
    main()
