"""Predicted against measured change of the loss, up to 30 % deletion, on every classifier of the corpus.

    python -m benchmarks.prediction CORPUS [--models a,b] [--sparsity 0.3] [--rounds 6] [--all-probes]

Deleted by ``obd`` in rounds, curvature estimated anew in each; 75 % of 256 unlabelled samples (fewer where the data
are) for scoring, the others held back. The temperature is 1, but for networks whose softmax then is saturated (*),
which get the automatic one. ``--all-probes``: every scoring sample gets a probe instead of 16.

Columns: measured rise of the loss since the original over
  the sum of saliencies, ½ Σ h w², of all rounds: on scoring samples, on held-back samples;
  the prediction with cross terms from the original weights alone;
  the sum over the rounds of the prediction with cross terms from the weights before each: on scoring, on held-back;
and the worst round: its measured rise over that of its prediction with cross terms, if either is not negligible.
"""

from __future__ import annotations

from pathlib import Path

import click
import torch

from benchmarks.corpus import LOADERS, load_task
from benchmarks.rows import split_at_commas
from onnx_obd.candidates import prune_by
from onnx_obd.curvature.prediction import predict_jointly
from onnx_obd.graph.load import load_model
from onnx_obd.options import Options
from onnx_obd.records import NEGLIGIBLE_LOSS, Round
from onnx_obd.run import Run, prepare
from onnx_obd.surgery.mask import restore

SATURATED = ("mnist_cntk_8", "mnist_cnn_pytorch_ortjava")
"""At temperature 1 they put out probabilities of exactly 0 and 1, and have no curvature."""

LARGE = ("mobilenetv2_fp32_derived", "mobilenetv2_fp32_derived@imagenette", "cifar10_marabou_medium")


def ratio(measured: float, predicted: float | None) -> str:
    return f"{measured / predicted:.2f}" if predicted else "-"


def worst(rounds: tuple[Round, ...]) -> str:
    def off(each: Round) -> float:
        r = each.measured_scoring / each.predicted_together
        return max(r, 1 / r) if r > 0 else float("inf")

    predicted = [each for each in rounds if each.predicted_together]
    counted = [r for r in predicted if max(r.predicted_together, r.measured_scoring) > NEGLIGIBLE_LOSS]
    if not counted:
        return "negligible"
    each = max(counted, key=off)
    return ratio(each.measured_scoring, each.predicted_together)


def row(name: str, run: Run, sparsity: float, rounds: int) -> list[str]:
    found = prune_by(run, "obd", sparsity, rounds)
    scoring, held_back = run.scoring.loss() - run.original_loss, run.held_back.loss()
    restore(run.mirror, run.original)
    deleted = {key: run.original[key] * mask for key, mask in found.plan.keep.items()}
    jointly = predict_jointly(run.scoring, run.original, deleted)
    summed = sum(each.predicted for each in found.rounds)
    together = sum(each.predicted_together or 0.0 for each in found.rounds)
    cells = [ratio(scoring, summed), ratio(held_back, summed), ratio(scoring, jointly)]
    cells += [ratio(scoring, together), ratio(held_back, together), worst(found.rounds)]
    star = " *" if name in SATURATED else ""
    return [f"{name}{star}", f"{scoring:.2g}", *cells]


@click.command()
@click.argument("corpus", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--models",
    callback=split_at_commas,
    default=",".join(name for name in LOADERS if name not in LARGE),
    show_default=True,
)
@click.option("--sparsity", default=0.3, show_default=True)
@click.option("--rounds", default=6, show_default=True)
@click.option("--all-probes", is_flag=True)
def main(corpus: Path, models: list[str], sparsity: float, rounds: int, all_probes: bool) -> None:
    torch.set_num_threads(1)
    titles = ["network", "measured", "½ Σ h w²: scoring", "held back", "cross terms, from the original"]
    titles += ["cross terms, round by round: scoring", "held back", "worst round"]
    click.echo(f"| {' | '.join(titles)} |\n{'|---' * len(titles)}|")
    for name in models:
        task = load_task(corpus, name)
        probes = len(task.calibration) if all_probes else 16
        temperature = None if name in SATURATED else 1.0
        options = Options(temperature=temperature, method="obd", probe_samples=probes)
        run = prepare(load_model(task.model), task.calibration, options)
        click.echo(f"| {' | '.join(row(name, run, sparsity, rounds))} |")


if __name__ == "__main__":
    main()
