"""What an estimate of the curvature costs, in forward + backward passes of the same mirror over the same samples.

    python -m benchmarks.curvature_cost [lenet 3c3d MODEL.onnx ...] [--samples 128] [--batch-size 128] [--repeats 7]

Interleaved: every repeat times the plain pass and each estimator in turn, and the table shows the median over the
repeats of their ratio. All weights and biases are differentiated. Inputs are random. With ``--memory`` the peak of each
instead, in a process of its own: resident memory, samples included, beyond that of the warmed up libraries.
"""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import onnx
import torch

from benchmarks.networks import NETWORKS
from onnx_obd.calibration.inputs import is_batchable, read_inputs
from onnx_obd.calibration.measure import Calibration, feeds, mirror_batch_size
from onnx_obd.calibration.objective import choose_objective
from onnx_obd.calibration.samples import Samples
from onnx_obd.curvature import estimate_curvature
from onnx_obd.curvature.per_sample import probed_samples
from onnx_obd.mirror.mirror import Mirror

ESTIMATORS = ("lecun", "ggn_probes", "fisher_mc", "lecun_full", "ggn_exact", "hessian_diag")


def calibration_of(proto: onnx.ModelProto, count: int, batch_size: int) -> Calibration:
    rng = np.random.default_rng(0)
    inputs = read_inputs(proto)
    shapes = {value.name: [dim if isinstance(dim, int) else 1 for dim in value.shape] for value in inputs}
    rows = [{name: rng.random(shape, dtype=np.float32) for name, shape in shapes.items()} for _ in range(count)]
    samples = Samples.from_feeds(rows, source="random", batchable=is_batchable(inputs))
    mirror = Mirror(proto)
    batch_size = mirror_batch_size(mirror, samples, batch_size)
    some = [values for values, _, _ in feeds(mirror, samples.subset(range(min(8, count))), batch_size)]
    return Calibration(mirror, choose_objective(mirror, some, kind="auto"), samples, batch_size)


def plain_pass(calibration: Calibration) -> None:
    """Forward, loss and backward of every batch: what one epoch of training computes before its updates."""
    mirror, objective = calibration.mirror, calibration.objective
    weights = list(mirror.parameters())
    for batch in calibration.batches:
        values = mirror.evaluate(batch.inputs, outputs=objective.slots)
        torch.autograd.grad(objective.loss(values, batch.targets, batch.count), weights, allow_unused=True)


def seconds(run: Callable[[], object]) -> float:
    """CPU time, which other processes on the machine do not lengthen."""
    start = time.process_time()
    run()
    return time.process_time() - start


def cost(proto: onnx.ModelProto, names: tuple[str, ...], count: int, batch_size: int, repeats: int) -> list[float]:
    """Milliseconds of the plain pass, then the ratio of each estimator to it."""
    calibration = calibration_of(proto, count, batch_size)
    weights = list(calibration.mirror.weights)
    probed = probed_samples(calibration, count, weights)
    runs = [lambda: plain_pass(calibration)]
    runs += [lambda name=name: estimate_curvature(name, calibration, probed, weights) for name in names]
    for run in runs:
        run()
    times = [[seconds(run) for run in runs] for _ in range(repeats)]
    ratios = [statistics.median(row[i] / row[0] for row in times) for i in range(1, len(runs))]
    return [1e3 * statistics.median(row[0] for row in times), *ratios]


def network(model: str) -> onnx.ModelProto:
    return NETWORKS[model]() if model in NETWORKS else onnx.load(model)


def peak(model: str, name: str, count: int, batch_size: int) -> float:
    """MB that samples and one pass (``plain``, or an estimator) take beyond what a fresh process has."""
    torch.set_num_threads(1)

    def run(calibration: Calibration) -> None:
        if name == "plain":
            plain_pass(calibration)
        else:
            estimate_curvature(name, calibration, calibration, list(calibration.mirror.weights))

    run(calibration_of(network(model), 4, 4))  # what is loaded and set up once is not counted
    before = Path("/proc/self/statm").read_text().split()[1]
    run(calibration_of(network(model), count, batch_size))
    pages = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - int(before) * resource.getpagesize()
    return pages / 1e6


def peaks(model: str, names: tuple[str, ...], count: int, batch_size: int) -> list[float]:
    found = []
    for name in ("plain", *names):
        with multiprocessing.get_context("spawn").Pool(1) as fresh:
            found.append(fresh.apply(peak, (model, name, count, batch_size)))
    return found


@click.command()
@click.argument("models", nargs=-1)
@click.option("--estimators", default=",".join(ESTIMATORS), show_default=True)
@click.option("--samples", default=128, show_default=True)
@click.option("--batch-size", default=128, show_default=True)
@click.option("--repeats", default=7, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--memory", is_flag=True, help="Peak memory instead of time.")
def main(
    models: tuple[str, ...], estimators: str, samples: int, batch_size: int, repeats: int, threads: int, memory: bool
) -> None:
    torch.set_num_threads(threads)
    names = tuple(estimators.split(","))
    if memory:
        titles = ("network", "weights, MB", "forward + backward, MB", *names)
        click.echo(f"| {' | '.join(titles)} |\n{'|---' * len(titles)}|")
        for model in models or tuple(NETWORKS):
            weights = sum(w.numel() for w in Mirror(network(model)).parameters()) * 4e-6
            cells = [f"{megabytes:.0f}" for megabytes in peaks(model, names, samples, batch_size)]
            click.echo(f"| {Path(model).stem} | {weights:.1f} | {' | '.join(cells)} |")
        return
    click.echo(f"| network | forward + backward, ms | {' | '.join(names)} |")
    click.echo("|---|---|" + "---|" * len(names))
    for model in models or tuple(NETWORKS):
        base, *ratios = cost(network(model), names, samples, batch_size, repeats)
        click.echo(f"| {Path(model).stem} | {base:.1f} | {' | '.join(f'{ratio:.2f}' for ratio in ratios)} |")


if __name__ == "__main__":
    main()
