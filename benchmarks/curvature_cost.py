"""What an estimate of the curvature costs, in forward + backward passes of the same mirror over the same samples.

    python -m benchmarks.curvature_cost [lenet 3c3d MODEL.onnx ...] [--samples 128] [--batch-size 128] [--repeats 7]
                                        [--backpack] [--memory]

Interleaved: every repeat times the plain pass and each estimator in turn, and the table shows the median over the
repeats of their ratio. All weights and biases are differentiated. Inputs are random. With ``--backpack`` the same loss
is differentiated by BackPACK too, in turn with the others, each over BackPACK's own plain pass; and how far its exact
diagonal is from ours. With ``--memory`` the peak of each instead, in a process of its own: resident memory, samples
included, beyond that of the warmed up libraries.
"""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import torch

from benchmarks.networks import NETWORKS
from onnx_obd.calibration.inputs import is_batchable, read_inputs
from onnx_obd.calibration.measure import Calibration, feeds, mirror_for_batches
from onnx_obd.calibration.objective import choose_objective
from onnx_obd.calibration.samples import Samples
from onnx_obd.curvature import estimate_curvature
from onnx_obd.curvature.per_sample import probed_samples
from onnx_obd.mirror.mirror import Mirror

ESTIMATORS = ("lecun", "ggn_probes", "fisher_mc", "lecun_full", "ggn_exact", "hessian_diag")


def calibration_of(proto: onnx.ModelProto, count: int, batch_size: int, **objective: Any) -> Calibration:
    """Random samples; ``objective`` as for ``choose_objective``."""
    rng = np.random.default_rng(0)
    inputs = read_inputs(proto)
    shapes = {value.name: [dim if isinstance(dim, int) else 1 for dim in value.shape] for value in inputs}
    rows = [{name: rng.random(shape, dtype=np.float32) for name, shape in shapes.items()} for _ in range(count)]
    samples = Samples.from_feeds(rows, source="random", batchable=is_batchable(inputs))
    mirror = Mirror(proto)
    mirror, batch_size = mirror_for_batches(mirror, samples, batch_size)
    some = [values for values, _, _ in feeds(mirror, samples.subset(range(min(8, count))), batch_size)]
    return Calibration(mirror, choose_objective(mirror, some, **objective), samples, batch_size)


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


WARM_UP = 3
"""Rounds that are not counted: until the C library's heap has the size that all of them need."""

Runs = dict[str, Callable[[], object]]
"""By name; a plain pass first."""


def our_runs(calibration: Calibration, names: tuple[str, ...]) -> Runs:
    weights = list(calibration.mirror.weights)
    probed = probed_samples(calibration, calibration.num_samples, weights)
    runs: Runs = {"forward + backward": lambda: plain_pass(calibration)}
    return runs | {name: lambda n=name: estimate_curvature(n, calibration, probed, weights) for name in names}


def costs(*groups: Runs, repeats: int) -> list[list[float]]:
    """Of each group of runs: milliseconds of the plain pass, then the ratio of the others to it."""
    for _ in range(WARM_UP):
        for runs in groups:
            for run in runs.values():
                run()
    times = [[[seconds(run) for run in runs.values()] for runs in groups] for _ in range(repeats)]
    found = []
    for rows in zip(*times, strict=True):
        ratios = [statistics.median(row[i] / row[0] for row in rows) for i in range(1, len(rows[0]))]
        found.append([1e3 * statistics.median(row[0] for row in rows), *ratios])
    return found


def beside_backpack(model: str, names: tuple[str, ...], count: int, batch_size: int, repeats: int) -> None:
    from benchmarks.backpack import EXTENSIONS, Chain

    proto = network(model)
    calibration = calibration_of(proto, count, batch_size, kind="kl", temperature=1.0)  # its GGN is the cross-entropy's
    images = torch.cat([batch.inputs[0] for batch in calibration.batches])
    chain = Chain(proto, images, torch.randint(0, 10, (count,), generator=torch.Generator().manual_seed(0)))
    theirs: Runs = {"BackPACK's forward + backward": chain.plain_pass}
    theirs |= {name: lambda n=name: chain.diagonal(n) for name in EXTENSIONS}
    groups = our_runs(calibration, names), theirs
    for runs, (base, *ratios) in zip(groups, costs(*groups, repeats=repeats), strict=True):
        titles = [f"{title}, ms" if i == 0 else title for i, title in enumerate(runs)]
        click.echo(f"| {model} | {' | '.join(titles)} |\n{'|---' * (len(runs) + 1)}|")
        click.echo(f"| | {base:.1f} | {' | '.join(f'{ratio:.2f}' for ratio in ratios)} |\n")
    ours = estimate_curvature("ggn_exact", calibration, calibration, list(calibration.mirror.weights)).diag
    pairs = list(zip(ours.values(), chain.diagonal("DiagGGNExact"), strict=True))
    worst = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
    click.echo(f"exact GGN, largest difference in a tensor over its largest element: {worst:.1e}\n")


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
@click.option("--backpack", is_flag=True, help="BackPACK beside it, if it is installed.")
def main(
    models: tuple[str, ...],
    estimators: str,
    samples: int,
    batch_size: int,
    repeats: int,
    threads: int,
    memory: bool,
    backpack: bool,
) -> None:
    torch.set_num_threads(threads)
    names = tuple(estimators.split(","))
    if backpack:
        for model in models or tuple(NETWORKS):
            beside_backpack(model, names, samples, batch_size, repeats)
        return
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
        runs = our_runs(calibration_of(network(model), samples, batch_size), names)
        ((base, *ratios),) = costs(runs, repeats=repeats)
        click.echo(f"| {Path(model).stem} | {base:.1f} | {' | '.join(f'{ratio:.2f}' for ratio in ratios)} |")


if __name__ == "__main__":
    main()
