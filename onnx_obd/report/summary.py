"""What a report says in words: the sentences that the terminal table and the HTML share."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from onnx_obd.graph.session import CPU
from onnx_obd.records import NEGLIGIBLE_LOSS, Interval, Latency, Quality, Report, Round, WeightSummary
from onnx_obd.report.quantities import (
    count,
    file_size,
    median,
    milliseconds,
    percent,
    plural,
    points,
    significant,
    span,
)

ZEROS_DO_NOT_SPEED_UP = (
    "Element sparsity does not speed up onnxruntime: it expands sparse tensors to dense when a session is created, "
    "and its kernels multiply the zeros too."
)


class Row(NamedTuple):
    """One line of the before/after table."""

    label: str
    before: str
    after: str
    remark: str


def headline(report: Report) -> str:
    """The result in one sentence."""
    parts = [f"{percent(report.sparsity)} of the prunable weights are zero"]
    if report.parameters_after is not None:
        parts = [f"{count(report.parameters)} parameters became {count(report.parameters_after)}"]
    if report.exported.agreement is not None:
        parts.append(f"{percent(report.exported.agreement)} of the held-back answers are unchanged")
    else:
        parts.append(f"the outputs moved by {percent(report.exported.relative_error)} of their spread")
    parts.append(f"the file is {size_change(report.bytes_before, report.bytes_after)}")
    return "; ".join(parts) + "."


def before_after(report: Report) -> list[Row]:
    """Every measured quantity of the original and of the exported model; rows without a measurement are left out."""
    dense, exported = report.dense, report.exported
    rows = []
    if deletes_weights(report):
        zeros = percent(sparsity_before(report)), percent(report.sparsity)
        rows.append(Row("sparsity", *zeros, _sparsity_remark(report)))
    if report.parameters_after is not None:
        rows.append(Row("parameters", count(report.parameters), count(report.parameters_after), "units removed"))
    stored = f"; {plural(report.sparse_tensors, 'tensor')} stored sparse" if report.sparse_tensors else ""
    change = size_change(report.bytes_before, report.bytes_after)
    rows.append(Row("file size", file_size(report.bytes_before), file_size(report.bytes_after), change + stored))
    if exported.agreement is not None:
        low, high = wilson_interval(exported.agreement, report.num_held_back)
        remark = f"same class as the original; 95 % interval {percent(low)} to {percent(high)}"
        rows.append(Row("agreement", percent(dense.agreement), percent(exported.agreement), remark))
    if exported.accuracy is not None:
        remark = points(exported.accuracy - dense.accuracy) if dense.accuracy is not None else ""
        rows.append(Row("accuracy", percent(dense.accuracy), percent(exported.accuracy), remark))
    rows.append(Row("loss", significant(dense.loss), significant(exported.loss), report.objective))
    error = "root mean square change, as a share of the outputs' spread"
    rows.append(Row("output change", percent(dense.relative_error), percent(exported.relative_error), error))
    if report.latency is not None:
        timed = report.latency
        before, after = milliseconds(timed.original.median), milliseconds(timed.pruned.median)
        rows.append(Row("latency", before, after, latency_verdict(timed.speedup)))
    return rows


def deletes_weights(report: Report) -> bool:
    """Were single weights to go, or only whole units?"""
    return report.parameters_after is None or report.target_sparsity > 0


def sparsity_before(report: Report) -> float:
    """Fraction of zeros among the prunable weights of the original."""
    prunable = [weight for weight in report.weights if weight.prunable]
    total = sum(size(weight) for weight in prunable)
    zeros = sum(size(weight) * weight.sparsity_before for weight in prunable)
    return zeros / total if total else report.dense.sparsity


def _sparsity_remark(report: Report) -> str:
    reached = "" if report.sparsity >= report.target_sparsity - 5e-4 else " not reached"
    everywhere = f"{percent(report.sparsity_all_weights)} of all {count(report.parameters)} parameters"
    return f"target {percent(report.target_sparsity)}{reached}; {everywhere}"


def size_change(before: int, after: int) -> str:
    """The change of a size in words: "5.01× smaller", "1.50× larger", "the same size"."""
    if before <= 0 or after <= 0:
        return f"{file_size(after)} instead of {file_size(before)}"
    factor = max(before, after) / min(before, after)
    if factor < 1.005:
        return "the same size"
    return f"{significant(factor)}× {'smaller' if after < before else 'larger'}"


def latency_verdict(speedup: Interval) -> str:
    """In words, from the ratio of the latencies, original / pruned, and its 95 % interval."""
    ratio = f"{median(speedup)}× {span(speedup)}"
    if not (math.isfinite(speedup.low) and math.isfinite(speedup.high)):
        return "not measurable"
    if speedup.low <= 1 <= speedup.high:
        return f"no measurable difference, {ratio}"
    if speedup.low > 1:
        return f"faster, {ratio}"
    slower = Interval(1 / speedup.median, 1 / speedup.high, 1 / speedup.low)
    return f"slower, {median(slower)}× {span(slower)}"


def latency_conditions(latency: Latency) -> str:
    """How the latencies were measured."""
    where = "" if latency.provider == CPU else f", {latency.provider}"
    return (
        f"{plural(latency.runs, 'run')} of each model, interleaved in one process; batch {latency.batch}, "
        f"{plural(latency.threads, 'thread')}{where}; medians with 95 % intervals."
    )


def subnormal_remark(latency: Latency, original: str = "The original") -> str:
    """What subnormal weights do to the comparison; empty if there are none."""
    if not latency.subnormal_weights:
        return ""
    many = latency.subnormal_weights != 1
    held = plural(latency.subnormal_weights, "subnormal weight")
    start = f"{original} holds {held}, which processors multiply slowly"
    flushed = latency.original_flushed
    if flushed is None:
        return f"{start}: setting {'those' if many else 'that one'} to zero may be all that a speed-up comes from."
    with_zeros = f"with {'these' if many else 'it'} set to zero it takes {milliseconds(flushed.median)} {span(flushed)}"
    gained = flushed.median < latency.original.low
    effect = "and that much of a speed-up is not pruning's" if gained else "so they make no difference here"
    return f"{start}; {with_zeros}, {effect}."


def latency_remarks(report: Report) -> list[str]:
    """The plain truth about the latency of this result."""
    remarks = [ZEROS_DO_NOT_SPEED_UP] if report.parameters_after is None else []
    if report.latency is not None:
        remarks += [latency_conditions(report.latency), subnormal_remark(report.latency)]
    return [remark for remark in remarks if remark]


def ranked(candidates: Iterable[Quality]) -> list[Quality]:
    """By held-back loss, the lowest first; what is not finite last."""
    return sorted(candidates, key=lambda each: (not math.isfinite(each.loss), each.loss))


def shipped_because(report: Report) -> str:
    """Which candidate was shipped, and how its held-back loss compares with the others'."""
    others = ranked(each for each in report.candidates if each.method != report.shipped)
    chosen = next((each for each in report.candidates if each.method == report.shipped), None)
    if chosen is None:
        return f"Shipped: {report.shipped}."
    if not others:
        return f"Shipped: {report.shipped}, the only candidate."
    best = others[0]
    figures = f"{significant(chosen.loss)} against {significant(best.loss)} ({best.method})"
    if chosen.loss < best.loss or not math.isfinite(best.loss):
        field = f"{len(report.candidates)} candidates"
        return f"Shipped: {report.shipped}, the lowest held-back loss of {field}: {figures}."
    if chosen.loss == best.loss:
        return f"Shipped: {report.shipped}; its held-back loss equals that of {best.method}."
    return f"Shipped: {report.shipped}, although its held-back loss is not the lowest: {figures}."


def measured_over_predicted(pairs: Iterable[tuple[float, float | None]]) -> list[float]:
    """Of (measured, predicted) loss changes the ratio, wherever a rise was predicted and either could be noticed."""
    ratios = [
        measured / predicted
        for measured, predicted in pairs
        if predicted and predicted > 0 and max(abs(measured), predicted) >= NEGLIGIBLE_LOSS
    ]
    return [ratio for ratio in ratios if math.isfinite(ratio)]


def prediction_verdict(rounds: Sequence[Round]) -> str:
    """Measured over predicted loss change of all rounds, the prediction with cross terms first; empty without rounds.

    That one knows all there is to know of the scoring samples; what others add is told by the held-back samples, and
    what the cross terms add by the paper's sum of saliencies.
    """
    together = measured_over_predicted((each.measured_scoring, each.predicted_together) for each in rounds)
    elsewhere = measured_over_predicted((each.measured_held_back, each.predicted_together) for each in rounds)
    summed = measured_over_predicted((each.measured_scoring, each.predicted) for each in rounds)
    told = (("predicted", together), ("that on held-back samples", elsewhere), ("½ Σ h w² alone", summed))
    told = [f"over {what}: {_spread(ratios)}" for what, ratios in told if ratios]
    if told:
        return f"Measured {'; '.join(told)}. 1 would be exact."
    if rounds and all(each.predicted is None for each in rounds):
        return "This criterion predicts no loss change."
    changes = [abs(each.measured_scoring) for each in rounds] + [abs(each.predicted or 0.0) for each in rounds]
    if max(changes, default=0.0) >= NEGLIGIBLE_LOSS:
        return "No rise of the loss was predicted."
    return f"No round changed the loss by {NEGLIGIBLE_LOSS} or was predicted to." if rounds else ""


def _spread(ratios: Sequence[float]) -> str:
    median, low, high = (significant(value, 2) for value in (statistics.median(ratios), min(ratios), max(ratios)))
    return median if len(ratios) == 1 else f"{median} (median of {len(ratios)} rounds, from {low} to {high})"


def by_reason(weights: Iterable[WeightSummary]) -> list[tuple[str, list[WeightSummary]]]:
    """The tensors that were not prunable, grouped by reason, the group with most parameters first."""
    groups: dict[str, list[WeightSummary]] = {}
    for weight in weights:
        if not weight.prunable:
            groups.setdefault(weight.reason or "no reason given", []).append(weight)
    return sorted(groups.items(), key=lambda group: -sum(size(weight) for weight in group[1]))


def used_by(weight: WeightSummary) -> str:
    """The node that the weight belongs to, with its operator."""
    return weight.node if weight.op_type in weight.node else f"{weight.op_type} {weight.node}".strip()


def total_seconds(report: Report) -> float:
    """Of the whole run: the stage called "total" where there is one, else the sum of the stages."""
    return report.seconds.get("total", sum(report.seconds.values()))


def size(weight: WeightSummary) -> int:
    """Number of elements."""
    return math.prod(weight.shape)


def wilson_interval(fraction: float, trials: int) -> tuple[float, float]:
    """95 % interval of a proportion observed on ``trials`` samples (Wilson 1927): sane at 0 and 1, unlike p ± 2σ."""
    if trials <= 0:
        return 0.0, 1.0
    z = 1.959964
    centre = (fraction + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(fraction * (1 - fraction) / trials + z * z / (4 * trials**2))
    return max(0.0, centre - half), min(1.0, centre + half)
