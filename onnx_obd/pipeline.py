"""The recipe, end to end (Le Cun, Denker, Solla 1989, section 2.2):

1. take a trained network           load, mirror, compare with onnxruntime
2. compute the second derivatives   curvature
3. compute the saliencies           s = 1/2 h w^2
4. sort and delete some             plan, mask
5. iterate                          rounds, with retraining between them if asked
6. prove it                         write back, compare, measure, report
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from onnx_obd._version import __version__
from onnx_obd.calibration.folder import load_samples
from onnx_obd.calibration.image_options import ImageOptions
from onnx_obd.calibration.measure import Calibration, feeds, mirror_batch_size
from onnx_obd.calibration.objective import Objective, choose_objective
from onnx_obd.calibration.quality import assess, head_values
from onnx_obd.calibration.samples import Samples
from onnx_obd.curvature import estimate_curvature
from onnx_obd.errors import ModelError, NumericalError
from onnx_obd.export import ExportReport, check_destination, export_model
from onnx_obd.finetune import finetune
from onnx_obd.graph.load import Model, load_model, non_finite_weights
from onnx_obd.graph.weights import write_weights
from onnx_obd.mirror.mirror import Mirror
from onnx_obd.options import Options
from onnx_obd.plan.elementwise import plan_elements, schedule
from onnx_obd.plan.selection import select_weights
from onnx_obd.progress import Progress
from onnx_obd.records import Latency, Plan, Quality, Report, Round, WeightSummary
from onnx_obd.runtime.latency import measure_latency
from onnx_obd.runtime.verify import compare_with_onnxruntime, onnxruntime_values
from onnx_obd.saliency import CRITERIA, score
from onnx_obd.surgery.mask import apply_masks, restore, snapshot

CONTROL = "magnitude"
"""What is always measured beside the chosen method."""

COMPARED_SAMPLES = 8
"""Samples on which mirror and onnxruntime are compared: enough to meet every branch, few enough to be quick."""


@dataclass
class Run:
    """One model on one set of samples, ready to be pruned: what every stage works on.

    The mirror holds the original weights until a stage changes them; ``original`` is a copy.
    """

    model: Model
    mirror: Mirror
    objective: Objective
    scoring: Calibration
    held_back: Calibration
    singles: Calibration
    weights: list[WeightSummary]
    options: Options
    progress: Progress
    mirror_error: float
    original: dict[str, Tensor] = field(default_factory=dict)
    original_values: list[tuple[Tensor, ...]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def prunable(self) -> list[str]:
        return [weight.name for weight in self.weights if weight.prunable]

    @contextmanager
    def timed(self, stage: str):
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


@dataclass(frozen=True)
class Candidate:
    """One pruned variant: its weights, how it came about, and how good it is on the held-back samples."""

    quality: Quality
    plan: Plan
    weights: Mapping[str, Tensor]
    rounds: tuple[Round, ...]


def prepare(model: Model, samples: Samples, options: Options, progress: Progress | None = None) -> Run:
    """Steps up to the first derivative: mirror, comparison with onnxruntime, objective, targets.

    Raises:
        ModelError: no weight can be pruned, or weights are not finite.
        MirrorMismatchError: the mirror does not compute what onnxruntime computes.
    """
    progress = progress or Progress(quiet=True)
    broken = non_finite_weights(model.proto)
    if broken:
        raise ModelError(f"weight '{broken[0]}' holds NaN or infinity; such a model cannot be scored")
    start = time.perf_counter()
    mirror = Mirror(model.proto)
    scoring_samples, held_back_samples = samples.split(options.held_back, options.seed)
    with progress.stage("comparing with onnxruntime"):
        some = scoring_samples.subset(range(min(COMPARED_SAMPLES, len(scoring_samples))))
        mirror_error = compare_with_onnxruntime(mirror, model.proto, some)
    batch_size = mirror_batch_size(mirror, scoring_samples, options.batch_size)
    objective = _objective(mirror, scoring_samples, batch_size, options)
    scoring = Calibration(mirror, objective, scoring_samples, batch_size)
    weights = select_weights(
        mirror,
        objective.slots,
        include=options.include,
        exclude=options.exclude,
        prune_biases=options.prune_biases,
    )
    if not any(weight.prunable for weight in weights):
        raise ModelError("no weight can be pruned; 'onnx-obd inspect' says why for each")
    run = Run(
        model=model,
        mirror=mirror,
        objective=objective,
        scoring=scoring,
        held_back=Calibration(mirror, objective, held_back_samples, batch_size),
        singles=scoring.singles(options.probe_samples),
        weights=weights,
        options=options,
        progress=progress,
        mirror_error=mirror_error,
        original=snapshot(mirror),
    )
    run.original_values = head_values(run.held_back)
    run.seconds["prepare"] = time.perf_counter() - start
    return run


def _objective(mirror: Mirror, samples: Samples, batch_size: int, options: Options) -> Objective:
    some = samples.subset(range(min(len(samples), 4 * batch_size if batch_size > 1 else 16)))
    batches = [inputs for inputs, _, _ in feeds(mirror, some, batch_size)]
    labels = None if samples.labels is None else torch.from_numpy(samples.labels)
    return choose_objective(mirror, batches, labels, kind=options.objective, temperature=options.temperature)


def prune_by(run: Run, method: str, sparsity: float, rounds: int) -> Candidate:
    """Delete weights by a criterion in rounds, its curvature re-estimated before each.

    The mirror starts from the original weights and is left with the result.
    """
    start = time.perf_counter()
    options, criterion = run.options, CRITERIA[method]
    restore(run.mirror, run.original)
    keep: dict[str, Tensor] = {name: run.original[name] != 0 for name in run.prunable}
    targets = schedule(sparsity, rounds, start=_zeros(keep))
    history: list[Round] = []
    loss = (run.scoring.loss(), run.held_back.loss())
    plan = None
    for number, target in enumerate(targets, 1):
        began = time.perf_counter()
        with run.progress.stage(f"{method}: round {number} of {len(targets)}") as report, run.timed("curvature"):
            curvature = None
            if criterion.needs_curvature:
                curvature = estimate_curvature(
                    options.curvature,
                    run.scoring,
                    run.singles,
                    run.prunable,
                    num_probes=options.num_probes,
                    seed=options.seed + number,
                    progress=report,
                )
        saliency = score(method, {name: run.mirror.weights[name] for name in run.prunable}, curvature)
        plan = plan_elements(saliency, target, keep)
        keep = dict(plan.keep)
        apply_masks(run.mirror, keep)
        after = (run.scoring.loss(), run.held_back.loss())
        history.append(
            Round(
                sparsity=plan.sparsity,
                predicted=plan.predicted_loss_change,
                measured_scoring=after[0] - loss[0],
                measured_held_back=after[1] - loss[1],
                loss_held_back=after[1],
                seconds=time.perf_counter() - began,
            )
        )
        last = number == len(targets)
        _train(run, keep, options.finetune_epochs if last else options.retrain_epochs, f"{method}: training")
        loss = (run.scoring.loss(), run.held_back.loss()) if not last else after
    quality = assess(
        run.held_back,
        head_values(run.held_back),
        run.original_values,
        method=method,
        sparsity=plan.sparsity,
        seconds=time.perf_counter() - start,
    )
    return Candidate(quality, plan, snapshot(run.mirror), tuple(history))


def _zeros(keep: Mapping[str, Tensor]) -> float:
    total = sum(mask.numel() for mask in keep.values())
    return 1 - sum(int(mask.sum()) for mask in keep.values()) / total


def _train(run: Run, keep: Mapping[str, Tensor], epochs: int, label: str) -> None:
    if epochs:
        with run.progress.stage(label) as report, run.timed("training"):
            finetune(
                run.scoring,
                run.held_back,
                keep,
                epochs=epochs,
                learning_rate=run.options.learning_rate,
                seed=run.options.seed,
                progress=report,
            )


def choose(run: Run) -> tuple[Candidate, list[Candidate]]:
    """The method asked for and the control, and which of them has the lower held-back loss."""
    options = run.options
    candidates = [prune_by(run, options.method, options.sparsity, options.rounds)]
    if options.method != CONTROL:
        candidates.append(prune_by(run, CONTROL, options.sparsity, 1))
    best = min(candidates, key=lambda candidate: candidate.quality.loss)
    if not np.isfinite(best.quality.loss):
        raise NumericalError("the pruned model's loss is not finite")
    restore(run.mirror, best.weights)
    return best, candidates


@dataclass(frozen=True)
class Result:
    """What ``prune`` returns: where the model went and everything found out about it."""

    path: Path
    report: Report


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
    destination = Path(output) if output is not None else default_output(Path(model))
    check_destination(Path(model), destination, overwrite_input=overwrite_input)
    source = load_model(model)
    with progress.stage("reading samples") as report:
        samples = load_samples(
            data, source.proto, options=image_options, labels=labels, limit=chosen.samples, progress=report
        )
    run = prepare(source, samples, chosen, progress)
    best, candidates = choose(run)
    return finish(run, best, candidates, destination, samples, overwrite_input)


def default_output(model: Path) -> Path:
    return model.with_name(f"{model.stem}.obd.onnx")


def finish(
    run: Run,
    best: Candidate,
    candidates: Sequence[Candidate],
    destination: Path,
    samples: Samples,
    overwrite_input: bool = False,
) -> Result:
    """Write the candidate back into the original graph, prove it in onnxruntime, time it, and report.

    The mirror holds the candidate's weights.
    """
    changed = _changed_weights(run)
    pruned = onnx.ModelProto()
    pruned.CopyFrom(run.model.proto)
    write_weights(pruned, changed)
    with run.progress.stage("comparing with onnxruntime"):
        some = run.held_back.samples.subset(range(min(COMPARED_SAMPLES, len(run.held_back.samples))))
        export_error = compare_with_onnxruntime(run.mirror, pruned, some)
    with run.progress.stage("writing"):
        written = export_model(
            run.model,
            changed,
            destination,
            format=run.options.format,
            provenance=_provenance(run, samples),
            overwrite_input=overwrite_input,
        )
    with run.progress.stage("measuring in onnxruntime"):
        dense, exported = _measured(run, pruned, best)
    latency = None
    if run.options.benchmark:
        with run.progress.stage("timing") as report, run.timed("timing"):
            latency = measure_latency(
                run.model.proto, pruned, samples, threads=run.options.threads, progress=report
            )
    return Result(destination, _report(run, best, candidates, written, dense, exported, latency, export_error))


def _changed_weights(run: Run) -> dict[str, np.ndarray]:
    state = run.mirror.state()
    return {
        name: state[name]
        for name, value in run.original.items()
        if not torch.equal(run.mirror.weights[name].detach(), value)
    }


def _provenance(run: Run, samples: Samples) -> dict[str, str]:
    return {
        "version": __version__,
        "input_sha256": run.model.sha256,
        "calibration_sha256": samples.sha256,
        "options": json.dumps(run.options.to_dict(), sort_keys=True),
    }


def _measured(run: Run, pruned: onnx.ModelProto, best: Candidate) -> tuple[Quality, Quality]:
    """Original and result on the held-back samples, both in onnxruntime."""
    originals = onnxruntime_values(run.held_back, run.model.proto)
    values = onnxruntime_values(run.held_back, pruned)
    dense = assess(run.held_back, originals, originals, method="original", sparsity=0.0)
    return dense, assess(
        run.held_back, values, originals, method=best.quality.method, sparsity=best.plan.sparsity
    )


def _report(
    run: Run,
    best: Candidate,
    candidates: Sequence[Candidate],
    written: ExportReport,
    dense: Quality,
    exported: Quality,
    latency: Latency | None,
    export_error: float,
) -> Report:
    total = sum(weight.numel() for weight in run.mirror.weights.values())
    zeros = sum(int((weight == 0).sum()) for weight in run.mirror.weights.values())
    return Report(
        model=str(run.model.path or ""),
        output=str(written.path),
        version=__version__,
        method=run.options.method,
        shipped=best.quality.method,
        options=run.options.to_dict(),
        objective=run.objective.describe(),
        num_scoring=run.scoring.num_samples,
        num_held_back=run.held_back.num_samples,
        target_sparsity=run.options.sparsity,
        sparsity=best.plan.sparsity,
        sparsity_all_weights=zeros / total if total else 0.0,
        parameters=total,
        dense=dense,
        candidates=tuple(candidate.quality for candidate in candidates),
        exported=exported,
        rounds=candidates[0].rounds,
        weights=tuple(_with_sparsity(weight, best.plan) for weight in run.weights),
        bytes_before=written.bytes_before,
        bytes_after=written.bytes_after,
        sparse_tensors=len(written.sparse_tensors),
        latency=latency,
        mirror_error=run.mirror_error,
        export_error=export_error,
        seconds=dict(run.seconds),
        notes=_notes(run, best),
    )


def _with_sparsity(weight: WeightSummary, plan: Plan) -> WeightSummary:
    if weight.name not in plan.keep:
        return weight
    mask = plan.keep[weight.name]
    return replace(weight, sparsity=1 - float(mask.double().mean()) if mask.numel() else 0.0)


def _notes(run: Run, best: Candidate) -> tuple[str, ...]:
    notes = list(run.objective.notes)
    if run.mirror.boundaries:
        notes.append(f"run by onnxruntime, no gradient passes: {', '.join(run.mirror.boundaries)}")
    if best.quality.method != run.options.method:
        notes.append(f"{best.quality.method} had the lower held-back loss, so it was written instead of {run.options.method}")
    if run.scoring.batch_size == 1:
        notes.append("samples went one by one: in a batch they would disturb each other")
    return tuple(notes)
