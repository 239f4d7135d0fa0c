"""What re-estimating in rounds, and repairing in between, are worth.

    python -m benchmarks.rounds CORPUS [--models A,B] [--rounds 1,3,6,12,24] [--sparsity 0.8]

Test accuracy in per cent (held-back loss) of ``auto``: deletion in so many rounds without repair, with repair once at
the end, and with repair after every round of the second half, as the command does it; and the seconds of the last.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import numpy as np
import torch

from benchmarks.corpus import Task, load_task
from benchmarks.rows import split_at_commas
from onnx_obd.candidates import prune_by, repair
from onnx_obd.graph.load import load_model
from onnx_obd.options import Options
from onnx_obd.run import Run, prepare

MODELS = ("mnist_fc_256x4", "cifar10_marabou_large", "cifar10_vit_pgd_2_3_16", "hand_keypoint_classifier")


def accuracy(run: Run, task: Task) -> float:
    """Of the mirror as it is, on the test samples."""
    step, inputs = run.scoring.batch_size, torch.from_numpy(np.ascontiguousarray(task.inputs))
    chunks = inputs.split(step)
    with torch.no_grad():
        found = np.concatenate([run.mirror.evaluate((chunk,))[0].numpy() for chunk in chunks])
    return float((task.to_class(found) == task.labels).mean())


def rows(corpus: Path, model: str, rounds: Sequence[int], sparsity: float) -> Iterator[str]:
    task = load_task(corpus, model)
    run = prepare(load_model(task.model), task.calibration, Options(sparsity=sparsity))
    for count in rounds:
        cells = []
        plain = prune_by(run, "auto", sparsity, count)
        cells.append(f"{100 * accuracy(run, task):.1f} ({plain.quality.loss:.4f})")
        late = repair(run, plain)
        cells.append(f"{100 * accuracy(run, task):.1f} ({late.quality.loss:.4f})")
        start = time.perf_counter()
        found = prune_by(run, "auto", sparsity, count, repaired=True)
        seconds = time.perf_counter() - start
        cells.append(f"{100 * accuracy(run, task):.1f} ({found.quality.loss:.4f})")
        yield f"| {model} | {count} | {' | '.join(cells)} | {seconds:.1f} |"


@click.command()
@click.argument("corpus", type=click.Path(path_type=Path, exists=True))
@click.option("--models", callback=split_at_commas, default=",".join(MODELS), show_default=True)
@click.option("--rounds", callback=split_at_commas, default="1,3,6,12,24", show_default=True)
@click.option("--sparsity", type=float, default=0.8, show_default=True)
def main(corpus: Path, models: list[str], rounds: list[str], sparsity: float) -> None:
    click.echo("| model | rounds | no repair | repair at the end | repair on the way | seconds |\n|" + "---|" * 6)
    for model in models:
        for row in rows(corpus, model, [*map(int, rounds)], sparsity):
            click.echo(row)


if __name__ == "__main__":
    main()
