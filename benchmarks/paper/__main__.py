"""Train, export, delete, draw.

python -m benchmarks.paper [USPS_FOLDER] [--output build/paper] [--epochs 30]
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click
import onnx
import torch

from benchmarks.paper.digits import load_digits
from benchmarks.paper.experiments import Bench, Point, fractions
from benchmarks.paper.figures import draw
from benchmarks.paper.network import new_network, to_onnx, train

ESTIMATORS = ("lecun", "lecun_scaled", "ggn_exact")


@click.command()
@click.argument("folder", required=False, type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--output", type=click.Path(path_type=Path), default=Path("build/paper"), show_default=True)
@click.option("--epochs", default=30, show_default=True, help="Of the training; a tenth of them after each deletion.")
def main(folder: Path | None, output: Path, epochs: int) -> None:
    torch.manual_seed(0)
    output.mkdir(parents=True, exist_ok=True)
    train_digits, test_digits = load_digits(folder)
    network = new_network()
    train(network, train_digits, epochs)
    model = to_onnx(network)
    onnx.save(model, output / "digits.onnx")
    bench = Bench(model, train_digits, test_digits)
    steps = fractions(18, 0.9)
    once = {
        "OBD, scored once": bench.deletion("obd", steps, again=False)[0],
        "OBD, scored again": bench.deletion("obd", steps)[0],
        "magnitude": bench.deletion("magnitude", steps)[0],
        "random": bench.deletion("random", steps, again=False)[0],
    }
    predicted = bench.predictions(fractions(12, 0.6)[1:], ESTIMATORS)
    before, after = bench.deletion("obd", steps, retrain=max(1, epochs // 10))
    _figures(output, bench.total, once, predicted, before, after)
    found = {
        "data": train_digits.name,
        "parameters": bench.total,
        "without_retraining": {name: [asdict(p) for p in points] for name, points in once.items()},
        "predictions": [asdict(p) for p in predicted],
        "before_retraining": [asdict(p) for p in before],
        "after_retraining": [asdict(p) for p in after],
    }
    (output / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    _print(once, predicted, before, after)


def _figures(output: Path, total: int, once, predicted, before, after) -> None:
    objective = {name: [(p.left, p.train) for p in points] for name, points in once.items()}
    draw(output / "objective.svg", "Objective against parameters left", "training objective", objective, total)
    curves = {"measured": [(p.left, p.measured) for p in predicted]}
    curves |= {f"½ Σ h w², {n}": [(p.left, p.summed[n]) for p in predicted] for n in ("lecun", "ggn_exact")}
    curves["with cross terms"] = [(p.left, p.jointly) for p in predicted]
    draw(output / "prediction.svg", "Predicted and measured change", "change of the objective", curves, total)
    trained = {
        "train, before": [(p.left, p.train) for p in before],
        "test, before": [(p.left, p.test) for p in before],
        "train, after": [(p.left, p.train) for p in after],
        "test, after": [(p.left, p.test) for p in after],
    }
    draw(output / "retraining.svg", "Objective before and after retraining", "objective", trained, total)


def _print(once: dict[str, list[Point]], predicted, before: list[Point], after: list[Point]) -> None:
    click.echo("| parameters left | " + " | ".join(once) + " |\n|---|" + "---|" * len(once))
    for points in list(zip(*once.values(), strict=True))[::2]:
        cells = [f"{p.train:.4f} / {100 * p.accuracy:.1f}" for p in points]
        click.echo(f"| {points[0].left} | {' | '.join(cells)} |")
    names = ", ".join(ESTIMATORS)
    click.echo(f"\n| parameters left | measured | measured / predicted: {names} | with cross terms |")
    click.echo("|---|---|---|---|")
    for p in predicted:
        ratios = ", ".join(f"{p.measured / p.summed[n]:.2f}" for n in ESTIMATORS)
        click.echo(f"| {p.left} | {p.measured:.2e} | {ratios} | {p.measured / p.jointly:.2f} |")
    click.echo("\n| parameters left | before retraining: train, test, accuracy | after |\n|---|---|---|")
    for b, a in zip(before, after, strict=True):
        cells = [f"{p.train:.4f}, {p.test:.4f}, {100 * p.accuracy:.1f} %" for p in (b, a)]
        click.echo(f"| {b.left} | {cells[0]} | {cells[1]} |")


if __name__ == "__main__":
    main()
