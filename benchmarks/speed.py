"""Units removed until onnxruntime is as fast as asked: measured speed and test accuracy on real networks.

    python -m benchmarks.speed CORPUS [--models A,B] [--speedup 1.5] [--retrain-epochs 10] [--recover-minutes 1]

Label-free, 256 samples, batch 1, one thread. Original and result are timed interleaved; the median of the ratio is
given with its 95 % interval.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import numpy as np

from benchmarks.corpus import LOADERS, accuracy, load_task
from onnx_obd.errors import OnnxObdError
from onnx_obd.graph.session import open_session
from onnx_obd.pipeline import prune

MODELS = (
    "mnist_fc_256x2,mnist_fc_256x4,mnist_fc_256x6,mnist_cnn_pytorch_ortjava,cifar10_sri_resnet_3b2,cifar10_biasfield_base,"
    "cifar10_marabou_medium,cifar10_marabou_large,cifar10_vit_pgd_2_3_16"
)


@click.command()
@click.argument("corpus", type=click.Path(path_type=Path, exists=True))
@click.option("--models", default=MODELS, show_default=True)
@click.option("--speedup", default=1.5, show_default=True)
@click.option("--retrain-epochs", default=0, show_default=True)
@click.option("--recover-minutes", default=0.0, show_default=True)
def main(corpus: Path, models: str, speedup: float, retrain_epochs: int, recover_minutes: float) -> None:
    click.echo("| model | accuracy before | after | times faster | file, times smaller | minutes |")
    click.echo("|---|---|---|---|---|---|")
    speeds = []
    for name in models.split(","):
        if name not in LOADERS:
            raise click.UsageError(f"no data for {name}; there are {', '.join(LOADERS)}")
        task = load_task(corpus, name)
        feeds = task.calibration.feeds
        with TemporaryDirectory() as folder:
            data, output = Path(folder) / "calibration.npz", Path(folder) / "fast.onnx"
            np.savez(data, **{value: np.concatenate([feed[value] for feed in feeds]) for value in feeds[0]})
            start = time.perf_counter()
            try:
                report = prune(
                    task.model,
                    data,
                    output,
                    speedup=speedup,
                    retrain_epochs=retrain_epochs,
                    recover_minutes=recover_minutes,
                ).report
            except OnnxObdError as error:
                click.echo(f"| {name} | {error} | | | | |")
                continue
            minutes = (time.perf_counter() - start) / 60
            before, after = (100 * accuracy(task, open_session(path)) for path in (task.model, output))
        ratio = report.latency.speedup
        speeds.append(ratio.median)
        click.echo(
            f"| {name} | {before:.1f} | {after:.1f} | {ratio.median:.2f} [{ratio.low:.2f}, {ratio.high:.2f}] | "
            f"{report.bytes_before / report.bytes_after:.2f} | {minutes:.1f} |"
        )
    if speeds:
        click.echo(f"\nGeometric mean of the speed: {math.exp(np.log(speeds).mean()):.2f}.")


if __name__ == "__main__":
    main()
