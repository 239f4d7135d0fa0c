"""The recipe, end to end (Le Cun, Denker, Solla 1989, section 2.2):

1. take a trained network           load, mirror, compare with onnxruntime    ``run.prepare``
2. compute the second derivatives   curvature                                  ``candidates.prune_by``
3. compute the saliencies           s = 1/2 h w^2
4. sort and delete some             plan, mask
5. iterate                          rounds, with retraining between them if asked
   recover                          masked training of the best                ``recover``
6. prove it                         write back, compare, measure, report       ``proof.finish``
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx_obd.calibration.folder import load_samples
from onnx_obd.calibration.image_options import ImageOptions
from onnx_obd.calibration.inputs import read_inputs
from onnx_obd.calibration.made_up import made_up_samples
from onnx_obd.choice import choose
from onnx_obd.errors import UsageError
from onnx_obd.export import check_destination
from onnx_obd.graph.load import load_model
from onnx_obd.graph.session import CPU, check_provider
from onnx_obd.mirror.mirror import Mirror
from onnx_obd.options import Options
from onnx_obd.plan.selection import select_weights
from onnx_obd.progress import Progress
from onnx_obd.proof import Result, finish
from onnx_obd.records import Latency, WeightSummary
from onnx_obd.recover import recover, resume
from onnx_obd.removal import remove_units
from onnx_obd.run import prepare
from onnx_obd.runtime.latency import measure_latency


def prune(
    model: str | Path,
    data: str | Path,
    output: str | Path | None = None,
    *,
    labels: str | Path | None = None,
    image_options: ImageOptions | None = None,
    overwrite_input: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> Result:
    """Prune an ONNX model with Optimal Brain Damage and prove the result in onnxruntime.

    Args:
        model: path of the .onnx file.
        data: samples: a folder, a file, or "module:function".
        output: where the result goes; beside the model as NAME.obd.onnx by default.
        labels: a file of labels, if they do not stand with the data.
        image_options: how images become inputs.
        overwrite_input: allow the output to replace the model.
        progress: where progress is shown; nowhere by default.
        **options: see ``Options``.

    Raises:
        OnnxObdError: one line that says what is wrong, where, and what to do. Nothing is then left behind.
    """
    chosen = Options(**options)
    progress = progress or Progress(quiet=True)
    check_provider(chosen.provider)
    destination = Path(output) if output is not None else default_output(Path(model))
    check_destination(Path(model), destination, overwrite_input=overwrite_input)
    source = load_model(model)
    with progress.stage("reading samples") as report:
        samples = load_samples(
            data,
            source.proto,
            options=image_options,
            labels=labels,
            limit=chosen.samples,
            model_path=source.path,
            progress=report,
        )
    run = prepare(source, samples, chosen, progress)
    if chosen.removes_units:
        run = remove_units(run)
    best, candidates = resume(run) if chosen.resume else choose(run)
    if chosen.recovers and not chosen.resume:
        best, candidates = recover(run, best, candidates)
    return finish(run, best, candidates, destination, samples, overwrite_input)


def default_output(model: Path) -> Path:
    return model.with_name(f"{model.stem}.obd.onnx")


@dataclass(frozen=True)
class Inspection:
    """What can be told of a model without data."""

    model: str
    weights: tuple[WeightSummary, ...]
    boundaries: tuple[str, ...]
    nodes: int
    bytes: int
    opsets: dict[str, int]


def inspect(model: str | Path) -> Inspection:
    """What of a model could be pruned, what not and why; and the nodes that hide weights from the gradient.

    Raises:
        ModelError: the model cannot be read or run.
    """
    source = load_model(model)
    mirror = Mirror(source.proto)
    return Inspection(
        model=str(model),
        weights=tuple(select_weights(mirror)),
        boundaries=mirror.boundaries,
        nodes=len(source.proto.graph.node),
        bytes=source.size,
        opsets={o.domain or "ai.onnx": o.version for o in source.proto.opset_import},
    )


def bench(
    original: str | Path,
    other: str | Path,
    data: str | Path | None = None,
    *,
    batch: int = 1,
    threads: int = 1,
    provider: str = CPU,
    seconds: float = 4.0,
    image_options: ImageOptions | None = None,
    progress: Progress | None = None,
) -> Latency:
    """Time two models with the same inputs against each other in onnxruntime, interleaved.

    Args:
        data: samples to run on; made-up ones (uniform in [0, 1), integers 0, open axes of length 1) if None.
        batch: samples per run.
        threads: onnxruntime's threads within an operator.
        provider: onnxruntime's execution provider.
        seconds: how long to measure.

    Raises:
        UsageError: the models take different inputs.
    """
    progress = progress or Progress(quiet=True)
    models = [load_model(path).proto for path in (original, other)]
    names = [[value.name for value in read_inputs(proto)] for proto in models]
    if names[0] != names[1]:
        raise UsageError(f"the models take different inputs: {names[0]} and {names[1]}")
    if data is None:
        samples = made_up_samples(models[0], batch)
    else:
        samples = load_samples(data, models[0], options=image_options, limit=max(batch, 8), model_path=Path(original))
    with progress.stage("timing") as report:
        return measure_latency(
            *models, samples, batch=batch, threads=threads, provider=provider, seconds=seconds, progress=report
        )
