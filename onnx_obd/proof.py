"""The proof: the candidate written back into the original graph, compared, timed and reported."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from onnx_obd._version import __version__
from onnx_obd.calibration.quality import assess
from onnx_obd.calibration.samples import Samples
from onnx_obd.candidates import UNITS_ALONE, Candidate, nm_axes
from onnx_obd.errors import ExportError
from onnx_obd.export import ExportReport, export_model
from onnx_obd.graph.weights import find_weights, write_weights
from onnx_obd.options import Options
from onnx_obd.plan.nm import WHO_PROFITS
from onnx_obd.records import FrontierPoint, Latency, Plan, Quality, Report, Round, WeightSummary
from onnx_obd.run import COMPARED_SAMPLES, Run
from onnx_obd.runtime.latency import measure_latency
from onnx_obd.runtime.verify import compare_with_onnxruntime, onnxruntime_values


@dataclass(frozen=True)
class Result:
    """What ``prune`` returns: where the model went and everything found out about it."""

    path: Path
    report: Report


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
    changed = run.changed_weights()
    pruned = onnx.ModelProto()
    pruned.CopyFrom(run.model.proto)
    write_weights(pruned, changed)
    pattern_note = _checked_pattern(run, pruned)
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
            original = run.origin.model.proto
            options = run.options
            latency = measure_latency(
                original,
                pruned,
                samples,
                batch=options.batch,
                threads=options.threads,
                provider=options.provider,
                progress=report,
            )
    report = _report(run, best, candidates, written, dense, exported, latency, export_error)
    notes = (*report.notes, *pattern_note, *slower_than_asked(run.options, run.frontier, latency))
    return Result(destination, replace(report, notes=notes))


def slower_than_asked(options: Options, frontier: Sequence[FrontierPoint], latency: Latency | None) -> tuple[str, ...]:
    """A note if the search saw the speed asked for and the last, longer measurement does not."""
    shipped = next((point for point in frontier if point.shipped), None)
    if shipped is None or latency is None:
        return ()
    if (wanted := options.target_milliseconds) is not None:
        short = shipped.milliseconds <= wanted < latency.pruned.low
        asked, saw, has = (f"{each:.3g} ms" for each in (wanted, shipped.milliseconds, latency.pruned.median))
    elif (wanted := options.speedup) is not None:
        short = latency.speedup.high < wanted <= shipped.speedup.median
        asked, saw, has = (f"{each:.2f}x" for each in (wanted, shipped.speedup.median, latency.speedup.median))
    else:
        return ()
    note = f"{asked} was asked for and {saw} measured on the way, but {has} at last: ask for a little more"
    return (note,) if short else ()


def _checked_pattern(run: Run, pruned: onnx.ModelProto) -> tuple[str, ...]:
    """The n:m pattern counted in the model that is written, and a note on it; nothing without a pattern."""
    pattern = run.options.pattern
    if pattern is None:
        return ()
    stored, axes = find_weights(pruned), nm_axes(run, pattern)
    for name, axis in axes.items():
        if pattern.violations(stored[name].read(pruned), axis):
            raise ExportError(f"weight '{name}' is not {pattern} along axis {axis}; please report this")
    dense = len(run.prunable) - len(axes)
    left = f"; {dense} cannot have it there and stay whole" if dense else ""
    what = f"{pattern} along the axis that is summed over, counted in the result: {len(axes)} tensors{left}"
    return (f"{what}. {WHO_PROFITS}",)


def _provenance(run: Run, samples: Samples) -> dict[str, str]:
    return {
        "version": __version__,
        "input_sha256": run.model.sha256,
        "calibration_sha256": samples.sha256,
        "options": json.dumps(run.options.to_dict(), sort_keys=True),
    }


def _measured(run: Run, pruned: onnx.ModelProto, best: Candidate) -> tuple[Quality, Quality]:
    """Original and result on the held-back samples, both in onnxruntime."""
    originals = onnxruntime_values(run.held_back, run.origin.model.proto)
    values = onnxruntime_values(run.held_back, pruned)
    zeros = sum(weight.sparsity_before * math.prod(weight.shape) for weight in run.weights if weight.prunable)
    before = zeros / sum(math.prod(weight.shape) for weight in run.weights if weight.prunable)
    dense = assess(run.held_back, originals, originals, method="original", sparsity=before)
    return dense, assess(run.held_back, values, originals, method=best.quality.method, sparsity=best.plan.sparsity)


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
    before = sum(weight.numel() for weight in run.origin.mirror.weights.values())
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
        target_sparsity=run.options.sparsity if run.options.states_sparsity else best.plan.sparsity,
        sparsity=best.plan.sparsity,
        sparsity_all_weights=zeros / total if total else 0.0,
        parameters=before,
        parameters_after=total if run.before is not None else None,
        frontier=run.frontier,
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
        notes=_notes(run, best, candidates[0].rounds),
    )


def _with_sparsity(weight: WeightSummary, plan: Plan) -> WeightSummary:
    if weight.name not in plan.keep:
        return weight
    mask = plan.keep[weight.name]
    return replace(weight, sparsity=1 - float(mask.double().mean()) if mask.numel() else 0.0)


def _trust(rounds: Sequence[Round]) -> list[str]:
    """Where the loss stopped to follow its second derivatives."""
    left = next((each for each in rounds if each.left_band), None)
    if left is None:
        return []
    return [
        f"up to {100 * left.sparsity:.0f} % the loss changed by {left.measured_since_original:.3g} where its "
        f"derivatives predict {left.predicted_jointly:.3g}: from there on trust what is measured, not what is predicted"
    ]


def _notes(run: Run, best: Candidate, rounds: Sequence[Round]) -> tuple[str, ...]:
    notes = [*run.objective.notes, *run.notes]
    if run.options.goal is not None and not best.quality.method.startswith(UNITS_ALONE):
        notes.append("the sparsity follows from the goal, measured on the held-back samples before repair and recovery")
    if run.mirror.boundaries:
        notes.append(f"run by onnxruntime, no gradient passes: {', '.join(run.mirror.boundaries)}")
    shipped, asked = best.quality.method.partition(" + ")[0], run.options.method
    if shipped != asked and shipped != UNITS_ALONE:
        notes.append(f"{shipped} had the lower held-back loss, so it was written instead of {asked}")
    notes += best.notes
    notes += _trust(rounds)
    if run.scoring.batch_size == 1:
        notes.append("samples went one by one: in a batch they would disturb each other")
    elif run.probed.batch_size == 1:
        notes.append("gradients were squared one sample at a time: in a batch they cannot be told apart")
    return tuple(notes)
