"""How far the outputs of a pruned model are from the original's, and what that does to its decisions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from onnx_obd.errors import DataError, UsageError

Task = Literal["classification", "regression"]

_LEAST_PROBABILITY = float(np.finfo(np.float32).tiny)  # a float32 softmax underflows to 0; its logarithm must not


@dataclass(frozen=True)
class OutputError:
    """Differences in one graph output over all samples.

    Attributes:
        name: of the output.
        max_abs: max |b − a| over all elements, a from the original and b from the pruned model; NaN if only one of
            the two is finite somewhere. Infinite values of the same sign and NaN in both count as equal.
        relative: ||b − a|| / ||a||, Euclidean over all elements; infinite if only ||a|| is 0.
        incomparable: samples whose output has another shape in the pruned model; they are left out.
    """

    name: str
    max_abs: float
    relative: float
    incomparable: int = 0


@dataclass(frozen=True)
class Agreement:
    """What two models say on the same samples.

    Attributes:
        num_decisions: class decisions compared: one per sample, or per sample and position.
        top1_agreement: fraction of decisions that are the same, in [0, 1].
        kl: mean of KL(original || pruned) per decision, in nats.
        accuracy_original, accuracy_pruned: fraction of decisions that equal the label.
        broken, repaired: decisions that were right and became wrong, and the reverse.
        accuracy_change: accuracy_pruned − accuracy_original with a 95 % interval that knows the samples are the same
            (Agresti and Min 2005).
        rmse_original, rmse_pruned: root mean square error to the targets, for regression with labels.

    What does not apply is None.
    """

    outputs: tuple[OutputError, ...]
    num_samples: int
    num_decisions: int | None = None
    top1_agreement: float | None = None
    kl: float | None = None
    accuracy_original: float | None = None
    accuracy_pruned: float | None = None
    broken: int | None = None
    repaired: int | None = None
    accuracy_change: tuple[float, float, float] | None = None
    rmse_original: float | None = None
    rmse_pruned: float | None = None


def measure_agreement(
    names: Sequence[str],
    original: Sequence[np.ndarray],
    pruned: Sequence[np.ndarray],
    labels: np.ndarray | None = None,
    task: Task = "regression",
) -> Agreement:
    """Compares the outputs of two models on the same samples.

    Decisions are read from the first float output of rank 2 or more: logits or probabilities over the classes, which
    lie on the last axis, from rank 4 on axis 1 ([N, C, H, W]), or on the other of the two if only that fits the labels.
    A single column is the logit or probability of the second of two classes.

    Args:
        names: of the graph outputs.
        original, pruned: one array per output, samples along axis 0, as :func:`~onnx_obd.runtime.session.run_samples`
            returns them.
        labels: int64 class indices, one per decision, or float targets in the shape of the first output.
        task: what the first output means.

    Raises:
        UsageError: classification of a model without a float output of rank 2 or more.
        DataError: labels that do not fit that output.
    """
    outputs = tuple(_output_error(*columns) for columns in zip(names, original, pruned, strict=True))
    num_samples = len(original[0])
    if task == "regression":
        rmse = [None, None] if labels is None else [_rmse(values[0], labels) for values in (original, pruned)]
        return Agreement(outputs, num_samples, rmse_original=rmse[0], rmse_pruned=rmse[1])
    position = next((i for i, a in enumerate(original) if a.dtype.kind == "f" and a.ndim >= 2), None)
    if position is None:
        raise UsageError("classification needs a float output of rank 2 or more: [samples, classes]")
    a, b = _log_probabilities(original[position], pruned[position], labels)
    kl = float(np.mean(np.sum(np.exp(a) * (a - b), axis=1)))
    decisions = a.argmax(1), b.argmax(1)
    agreement = Agreement(outputs, num_samples, len(a), float(np.mean(decisions[0] == decisions[1])), kl)
    return agreement if labels is None else _with_labels(agreement, *decisions, labels)


def _output_error(name: str, a: np.ndarray, b: np.ndarray) -> OutputError:
    pairs = list(zip(a, b, strict=True)) if a.dtype == object or b.dtype == object else [(a, b)]
    pairs = [(np.asarray(x), np.asarray(y)) for x, y in pairs]
    alike = [(x, y) for x, y in pairs if x.shape == y.shape and x.dtype.kind in "fiub" and y.dtype.kind in "fiub"]
    squares, reference, largest = 0.0, 0.0, 0.0
    for x, y in alike:
        x, y = x.astype(np.float64), y.astype(np.float64)
        same = (x == y) | (np.isnan(x) & np.isnan(y))
        with np.errstate(invalid="ignore"):
            difference = np.where(same, 0.0, y - x)
        if not np.isfinite(difference).all():
            return OutputError(name, math.nan, math.nan, len(pairs) - len(alike))
        squares += float(np.sum(difference**2))
        reference += float(np.sum(x[np.isfinite(x)] ** 2))
        largest = max(largest, float(np.abs(difference).max(initial=0.0)))
    relative = math.sqrt(squares / reference) if reference else (math.inf if squares else 0.0)
    return OutputError(name, largest, relative, len(pairs) - len(alike))


def _rmse(values: np.ndarray, targets: np.ndarray) -> float:
    if values.size != targets.size:
        raise DataError(f"targets of shape {list(targets.shape)} do not fit an output of shape {list(values.shape)}")
    return float(np.sqrt(np.mean((values.astype(np.float64).reshape(targets.shape) - targets) ** 2)))


def _log_probabilities(a: np.ndarray, b: np.ndarray, labels: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Both outputs as log-probabilities [decisions, classes], float64."""
    axis = _class_axis(a, labels)
    rows = [np.moveaxis(x, axis, -1).reshape(-1, x.shape[axis]).astype(np.float64) for x in (a, b)]
    probabilities = bool(rows[0].size) and rows[0].min() >= 0 and rows[0].max() <= 1
    if rows[0].shape[1] == 1:  # binary: the other class is what remains
        rows = [np.hstack([1 - x, x] if probabilities else [np.zeros_like(x), x]) for x in rows]
    elif probabilities:
        probabilities = np.allclose(rows[0].sum(1), 1, atol=1e-3)
    if probabilities:
        return tuple(np.log(np.maximum(x, _LEAST_PROBABILITY)) for x in rows)
    return tuple(x - _log_sum_exp(x) for x in rows)


def _log_sum_exp(x: np.ndarray) -> np.ndarray:
    top = x.max(axis=1, keepdims=True)
    return top + np.log(np.exp(x - top).sum(axis=1, keepdims=True))


def _class_axis(output: np.ndarray, labels: np.ndarray | None) -> int:
    last = output.ndim - 1
    axes = (1, last) if output.ndim >= 4 else (last, 1)
    for axis in axes:
        if labels is None or labels.size * output.shape[axis] == output.size:
            return axis
    raise DataError(f"labels of shape {list(labels.shape)} do not fit an output of shape {list(output.shape)}")


def _with_labels(agreement: Agreement, a: np.ndarray, b: np.ndarray, labels: np.ndarray) -> Agreement:
    right_a, right_b = (decisions == labels.reshape(-1) for decisions in (a, b))
    broken, repaired = int(np.sum(right_a & ~right_b)), int(np.sum(~right_a & right_b))
    return replace(
        agreement,
        accuracy_original=float(right_a.mean()),
        accuracy_pruned=float(right_b.mean()),
        broken=broken,
        repaired=repaired,
        accuracy_change=paired_difference(repaired, broken, len(a)),
    )


def paired_difference(gained: int, lost: int, n: int) -> tuple[float, float, float]:
    """The change (gained − lost) / n of a proportion measured twice on the same n samples, with a 95 % interval.

    Wald's interval after adding 1/2 to each cell of the 2 x 2 table: with b = gained + 1/2, c = lost + 1/2, m = n + 2,
    (b − c) / m ± 1.96 · sqrt(b + c − (b − c)² / m) / m (Agresti and Min, Statistics in Medicine 24, 2005), cut to
    [−1, 1].
    """
    b, c, m = gained + 0.5, lost + 0.5, n + 2
    centre = (b - c) / m
    half = 1.96 * math.sqrt(b + c - (b - c) ** 2 / m) / m
    return (gained - lost) / n, max(-1.0, centre - half), min(1.0, centre + half)
