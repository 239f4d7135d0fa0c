"""How good the pruned networks of a corpus are in onnxruntime: one-shot and recovered, beside the controls.

    python -m benchmarks.quality CORPUS [--models A,B] [--methods obd,magnitude] [--sparsities 0.5,0.9] [--minutes 2]
    python -m benchmarks.quality CORPUS --output docs/benchmarks.md     replaces the section "Quality" of that file

Calibrates on 256 unlabelled samples, of which a quarter is held back; everything printed is measured on the labelled
test samples, which no run sees. "textbook magnitude" is one global threshold on |w| and nothing else.

With --results a run adds to the rows in that JSON file, does not repeat what is there, and prints them all.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
import onnxruntime

from benchmarks.corpus import LOADERS, Task, load_task, model_path
from benchmarks.rows import check_known, read_rows, split_at_commas, write_rows
from onnx_obd.atomic import write_atomically
from onnx_obd.graph.session import open_session
from onnx_obd.pipeline import prune

ORIGINAL, TEXTBOOK = "original", "textbook magnitude"
FLOOR = 1e-7
"""Probabilities below this count as this in a divergence."""


@dataclass(frozen=True)
class Row:
    """One model on the test samples: fractions, nats, minutes of recovery, seconds in all, bytes over those before."""

    model: str
    method: str
    minutes: float
    sparsity: float
    accuracy: float
    divergence: float | None
    agreement: float
    seconds: float
    bytes: float
    shipped: str = ""

    @property
    def key(self) -> tuple[str, str, float, float]:
        return self.model, self.method, self.sparsity, self.minutes

    @property
    def name(self) -> str:
        return f"{self.method} + {self.minutes:g} min recovery" if self.minutes else self.method


def outputs(task: Task, session: onnxruntime.InferenceSession) -> np.ndarray:
    """The first output on all test samples."""
    value = session.get_inputs()[0]
    step = 1 if isinstance(value.shape[0], int) else 50
    chunks = (task.inputs[start : start + step] for start in range(0, len(task.inputs), step))
    return np.concatenate([session.run(None, {value.name: chunk})[0] for chunk in chunks])


def log_probabilities(values: np.ndarray) -> np.ndarray | None:
    """Rows of log-probabilities from logits, probabilities or their logarithms; None where the output is a class."""
    if values.ndim == 1 or values.dtype.kind != "f":
        return None
    rows = values.reshape(len(values), -1).astype(np.float64)
    if (rows >= 0).all() and np.allclose(rows.sum(1), 1, atol=1e-3):
        return np.log(np.maximum(rows, FLOOR))
    rows = rows - rows.max(1, keepdims=True)
    return rows - np.log(np.exp(rows).sum(1, keepdims=True))


def divergence(original: np.ndarray, pruned: np.ndarray) -> float | None:
    """Mean KL(original ‖ pruned) per sample in nats, at temperature 1."""
    p, q = log_probabilities(original), log_probabilities(pruned)
    return None if p is None or q is None else float((np.exp(p) * (p - q)).sum(1).mean())


def measure(task: Task, original: np.ndarray, path: Path) -> tuple[float, float | None, float]:
    """Accuracy, divergence and agreement of a model file."""
    found = outputs(task, open_session(path))
    ours, theirs = task.to_class(found), task.to_class(original)
    return float((ours == task.labels).mean()), divergence(original, found), float((ours == theirs).mean())


def prepare(task: Task, folder: Path) -> tuple[Path, np.ndarray]:
    """The calibration samples as a file, and the outputs of the original on the test samples."""
    data, feeds = folder / "calibration.npz", task.calibration.feeds
    np.savez(data, **{name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]})
    return data, outputs(task, open_session(task.model))


def pruned_row(
    task: Task, data: Path, original: np.ndarray, method: str, sparsity: float, minutes: float, **options: Any
) -> Row:
    """One run of the whole command, with further ``options``."""
    options["method"] = method
    if method == TEXTBOOK:
        options |= {"method": "magnitude", "rounds": 1, "repair": False}
    output, start = data.with_name("pruned.onnx"), time.perf_counter()
    report = prune(
        task.model, data, output, sparsity=sparsity, recover_minutes=minutes, benchmark=False, **options
    ).report
    seconds, ratio = time.perf_counter() - start, report.bytes_after / report.bytes_before
    return Row(task.name, method, minutes, sparsity, *measure(task, original, output), seconds, ratio, report.shipped)


def run_all(
    corpus: Path, models: Sequence[str], methods: Sequence[str], sparsities: Sequence[float], minutes: Sequence[float],
    known: Sequence[Row], **options: Any,
) -> Iterator[Row]:  # fmt: skip
    """Every method at every sparsity with every length of recovery, but for what is known. ``options``: of each run."""
    done = {row.key for row in known}
    for model in models:
        wanted = [(method, s, m) for method in methods for m in minutes for s in sparsities]
        wanted = [each for each in wanted if (model, *each) not in done and (each[0] != TEXTBOOK or not each[2])]
        if not wanted:
            continue
        with TemporaryDirectory() as folder:
            task = load_task(corpus, model)
            data, original = prepare(task, Path(folder))
            if (model, ORIGINAL, 0.0, 0.0) not in done:
                accuracy = float((task.to_class(original) == task.labels).mean())
                yield Row(model, ORIGINAL, 0.0, 0.0, accuracy, 0.0, 1.0, 0.0, 1.0)
            for method, sparsity, length in wanted:
                yield pruned_row(task, data, original, method, sparsity, length, **options)


def overview(found: list[Row], sparsities: list[float]) -> list[str]:
    """One line for each model and method: the accuracies, and the time of one run."""
    lines = [f"| model (dense) | method | {' | '.join(f'{s:g}' for s in sparsities)} | seconds |"]
    lines.append("|---|---|" + "---|" * (len(sparsities) + 1))
    dense = {row.model: row.accuracy for row in found if row.method == ORIGINAL}
    groups: dict[tuple, dict[float, Row]] = {}
    for row in found:
        if row.method != ORIGINAL:
            groups.setdefault((row.model, row.name), {})[row.sparsity] = row
    for (model, name), group in groups.items():
        cells = [f"{100 * group[s].accuracy:.1f}" if s in group else "" for s in sparsities]
        mean = sum(row.seconds for row in group.values()) / len(group)
        lines.append(f"| {model} ({100 * dense[model]:.1f}) | {name} | {' | '.join(cells)} | {mean:.1f} |")
    return lines


def details(found: list[Row]) -> list[str]:
    """One line for each run. Shipped is what the command wrote: the control where it did better when held back."""
    lines = ["| model | method | sparsity | accuracy | KL | agreement | file | seconds | shipped |", "|---" * 9 + "|"]
    for row in found:
        if row.method == ORIGINAL:
            continue
        kl = "" if row.divergence is None else f"{row.divergence:.4f}"
        lines.append(
            f"| {row.model} | {row.name} | {row.sparsity:g} | {100 * row.accuracy:.1f} | {kl} | "
            f"{100 * row.agreement:.1f} | {row.bytes:.2f} | {row.seconds:.1f} | {row.shipped} |"
        )
    return lines


def replace_section(text: str, title: str, body: str) -> str:
    """The text with the section of that title (or a new one at the end) holding ``body``."""
    section = f"## {title}\n\n{body.strip()}\n"
    pattern = re.compile(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", re.M | re.S)
    if pattern.search(text):
        return pattern.sub(lambda match: section + ("\n" if match.end() < len(text) else ""), text)
    return (text.rstrip() + "\n\n" if text.strip() else "# Benchmarks\n\n") + section


def describe(found: list[Row]) -> str:
    """The whole section in Markdown."""
    found = sorted(found, key=lambda row: list(LOADERS).index(row.model))
    sparsities = sorted({row.sparsity for row in found if row.method != ORIGINAL})
    said = (__doc__ or "").split("\n\n")[2].replace("\n", " ")
    what = "Test accuracy in per cent at each sparsity; further down everything measured of each run."
    return "\n".join([said, what, "", *overview(found, sparsities), "", *details(found)])


@click.command()
@click.argument("corpus", type=click.Path(path_type=Path, exists=True))
@click.option("--models", callback=split_at_commas, default="", help="All of the corpus by default.")
@click.option("--methods", callback=split_at_commas, default=f"auto,obd,magnitude,{TEXTBOOK}", show_default=True)
@click.option("--sparsities", callback=split_at_commas, default="0.5,0.7,0.8,0.9", show_default=True)
@click.option(
    "--minutes", callback=split_at_commas, default="0", show_default=True, help="Lengths of recovery; 0: one-shot."
)
@click.option("--rounds", type=int, help="Of each run; the command's default if not given.")
@click.option("--samples", type=int, help="To calibrate on; all 256 if not given.")
@click.option("--results", type=click.Path(path_type=Path), help="JSON file of rows to add to.")
@click.option("--output", type=click.Path(path_type=Path), help="Markdown file; standard output by default.")
def main(
    corpus: Path,
    models: list[str],
    methods: list[str],
    sparsities: list[str],
    minutes: list[str],
    rounds: int | None,
    samples: int | None,
    results: Path | None,
    output: Path | None,
) -> None:
    models = models or [name for name in LOADERS if model_path(corpus, name).is_file()]
    check_known(models)
    found = [Row(**row) for row in read_rows(results)]
    options = {name: value for name, value in (("rounds", rounds), ("samples", samples)) if value is not None}
    numbers = [*map(float, sparsities)], [*map(float, minutes)]
    for row in run_all(corpus, models, methods, *numbers, tuple(found), **options):
        click.echo(f"{row.model}: {row.name} {row.sparsity:g}: {100 * row.accuracy:.1f}", err=True)
        found.append(row)
        write_rows(results, found)
    if output is None:
        click.echo(describe(found))
    else:
        old = output.read_text("utf-8") if output.exists() else ""
        write_atomically(output, replace_section(old, "Quality", describe(found)).encode())


if __name__ == "__main__":
    main()
