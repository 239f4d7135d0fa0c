"""OBD beside global magnitude on real networks: test accuracy in onnxruntime after the whole command.

    python -m benchmarks.one_shot CORPUS [--models A,B] [--sparsities 0.5,0.7,0.8,0.9] [-- options of onnx-obd]

Calibrates on 256 unlabelled samples. "magnitude" is the textbook control: one global threshold on |w|.
"""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import numpy as np

from benchmarks.corpus import LOADERS, accuracy, load_task
from onnx_obd.graph.session import open_session
from onnx_obd.pipeline import prune

MODELS = (
    "mnist_fc_256x2,mnist_fc_256x4,mnist_fc_256x6,mnist_cntk_8,mnist_cnn_pytorch_ortjava,cifar10_sri_resnet_3b2,"
    "cifar10_biasfield_base,cifar10_marabou_small,cifar10_marabou_large,hand_keypoint_classifier,"
    "iris_mstutorial_mlp,intent_mlp_aria"
)


@click.command()
@click.argument("corpus", type=click.Path(path_type=Path, exists=True))
@click.option("--models", default=MODELS)
@click.option("--sparsities", default="0.5,0.7,0.8,0.9")
@click.option("--methods", default="obd,magnitude")
def main(corpus: Path, models: str, sparsities: str, methods: str) -> None:
    wanted = [float(s) for s in sparsities.split(",")]
    click.echo(f"| model (dense) | method | {' | '.join(f'{s:g}' for s in wanted)} | file, smallest | seconds |")
    click.echo("|---|---|" + "---|" * (len(wanted) + 2))
    for name in models.split(","):
        if name not in LOADERS:
            raise click.UsageError(f"no data for {name}; there are {', '.join(LOADERS)}")
        task = load_task(corpus, name)
        dense = accuracy(task, open_session(task.model))
        with TemporaryDirectory() as folder:
            data = Path(folder) / "calibration.npz"
            feeds = task.calibration.feeds
            np.savez(data, **{name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]})
            for method in methods.split(","):
                cells, seconds, ratio = [], 0.0, 1.0
                for sparsity in wanted:
                    output = Path(folder) / "pruned.onnx"
                    start = time.perf_counter()
                    result = prune(
                        task.model,
                        data,
                        output,
                        sparsity=sparsity,
                        method=method,
                        rounds=1 if method == "magnitude" else 12,
                        benchmark=False,
                    )
                    seconds += time.perf_counter() - start
                    shipped = "" if result.report.shipped == method else " (ships magnitude)"
                    cells.append(f"{100 * accuracy(task, open_session(output)):.1f}{shipped}")
                    ratio = min(ratio, result.report.bytes_after / result.report.bytes_before)
                click.echo(
                    f"| {name} ({100 * dense:.1f}) | {method} | {' | '.join(cells)} | {ratio:.2f} | "
                    f"{seconds / len(wanted):.1f} |"
                )


if __name__ == "__main__":
    main()
