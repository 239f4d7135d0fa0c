"""What one stage hands to the next: frozen records, no behaviour beyond reading themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Curvature:
    """Diagonal second derivatives of the mean loss over the scoring samples.

    ``diag[name]`` has the weight's shape; unit: loss / weight². ``estimator`` is the name under which it was asked
    for. ``estimated_nodes`` are the nodes whose own rule was replaced by random probes, ``scale`` the factor by
    which each tensor of a recursion was scaled to an unbiased estimate (empty if none was).
    """

    diag: Mapping[str, Tensor]
    estimator: str
    num_samples: int
    estimated_nodes: tuple[str, ...] = ()
    scale: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Saliency:
    """Scores per weight, of the weight's shape: the lower, the sooner it goes.

    ``loss_change`` predicts the rise of the mean loss if this one weight is deleted, ½·h·w²; None without curvature.
    """

    scores: Mapping[str, Tensor]
    criterion: str
    loss_change: Mapping[str, Tensor] | None = None


@dataclass(frozen=True)
class Plan:
    """Which weights stay. ``keep[name]`` is boolean, of the weight's shape, True = kept.

    ``predicted_loss_change`` is the sum of ``Saliency.loss_change`` over what this plan deletes and the one before it
    kept; None without curvature.
    """

    keep: Mapping[str, Tensor]
    predicted_loss_change: float | None

    @property
    def total(self) -> int:
        return sum(mask.numel() for mask in self.keep.values())

    @property
    def deleted(self) -> int:
        return self.total - sum(int(mask.sum()) for mask in self.keep.values())

    @property
    def sparsity(self) -> float:
        """Fraction of zeros among the prunable weights, in [0, 1]."""
        return self.deleted / self.total if self.total else 0.0


NEGLIGIBLE_LOSS = 1e-4
"""A change of the loss (nats, or half a variance of the output) that nobody would notice."""


@dataclass(frozen=True)
class Round:
    """One round of deletion: what was predicted and what happened.

    Losses are means per sample; a change is relative to the state before this round's deletion. ``predicted`` sums what
    each deletion does alone; ``predicted_together`` has their cross terms, and the gradient, at the weights before this
    round, on the scoring samples; None without a forward derivative, or if other weights made up for the deletion. But
    ``predicted_jointly`` and ``measured_since_original`` tell of all deletions up to here, on the scoring samples, from
    the original weights: predicted by the derivatives there with all cross terms, and measured; None where that was not
    predicted: if weights were changed otherwise, too, or once the two have left the factor of two (``left_band``).
    """

    sparsity: float
    predicted: float | None
    measured_scoring: float
    measured_held_back: float
    loss_held_back: float
    seconds: float
    predicted_jointly: float | None = None
    measured_since_original: float | None = None
    predicted_together: float | None = None

    @property
    def left_band(self) -> bool:
        """Do derivatives at the original weights no longer tell what all deletions up to here do?"""
        return outside_band(self.predicted_jointly, self.measured_since_original)

    @property
    def went_too_far(self) -> bool:
        """Did this round's deletions do something else than derivatives just before it tell?"""
        return outside_band(self.predicted_together, self.measured_scoring)


def outside_band(predicted: float | None, measured: float | None) -> bool:
    """Did the loss change by less than half or more than twice what was predicted, and not negligibly?"""
    if predicted is None or measured is None or max(abs(predicted), abs(measured)) < NEGLIGIBLE_LOSS:
        return False
    low, high = sorted((0.5 * predicted, 2 * predicted))
    return not low <= measured <= high


@dataclass(frozen=True)
class Quality:
    """How one pruned variant does on the held-back samples, compared with the original.

    ``loss`` is the objective (see ``objective`` in the report). ``agreement`` is the fraction of samples with the
    same top-1 class as the original, None for other outputs. ``accuracy`` needs integer labels. ``relative_error``
    is ||y - y0|| / ||y0 - mean(y0)|| over all held-back outputs (0 = equal, 1 = as bad as the constant mean).
    """

    method: str
    sparsity: float
    loss: float
    agreement: float | None
    accuracy: float | None
    relative_error: float
    seconds: float = 0.0


@dataclass(frozen=True)
class WeightSummary:
    """One weight tensor in the report. ``reason`` says why it was not prunable, if it was not."""

    name: str
    shape: tuple[int, ...]
    node: str
    op_type: str
    prunable: bool
    reason: str = ""
    sparsity: float = 0.0
    sparsity_before: float = 0.0


@dataclass(frozen=True)
class UnitFamily:
    """Removable units that are alike (the channels of one Conv with all they are tied to), counted.

    ``elements_each``: stored weights that go with one. ``macs_share_each``: its share of the model's multiplications.
    ``idle``: how many of them add nothing to any sum on the samples; None without samples.
    """

    kind: str
    nodes: tuple[str, ...]
    count: int
    elements_each: int
    macs_share_each: float
    idle: int | None = None


@dataclass(frozen=True)
class FrozenUnits:
    """What would be removable but for ``reason``."""

    kind: str
    nodes: tuple[str, ...]
    count: int
    reason: str


@dataclass(frozen=True)
class UnusedFeatures:
    """``count`` of the ``of`` features of an input on which nothing depends; the places of the ``first``."""

    name: str
    count: int
    of: int
    first: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Units:
    """The removable units of a model, family by family, and what is frozen.

    ``elements_share``, ``macs_share``: of all ``elements`` weights and ``macs`` multiplications those in removable
    units. ``boundaries``: nodes that are not followed. ``samples``: how many were looked at for what is ``unused``.
    """

    model: str
    families: tuple[UnitFamily, ...]
    frozen: tuple[FrozenUnits, ...]
    elements: int
    elements_share: float
    macs: int
    macs_share: float
    boundaries: tuple[str, ...]
    samples: int | None
    unused: tuple[UnusedFeatures, ...]


@dataclass(frozen=True)
class CellSaliency:
    """What the input variables, neurons or channels of one value are worth: ``onnx_obd.cells``.

    ``saliency`` is the predicted rise of the mean loss if one is set to zero, flattened from ``shape``; ``axis`` is the
    axis of the value that is judged, None if every element of a sample is. ``read_by`` is the node that reads it.
    """

    value: str
    kind: str
    read_by: str
    axis: int | None
    shape: tuple[int, ...]
    saliency: tuple[float, ...]

    @property
    def unused(self) -> tuple[int, ...]:
        """Flat indices of those whose saliency is zero."""
        return tuple(index for index, value in enumerate(self.saliency) if value == 0)

    def largest(self, number: int) -> list[tuple[int, ...]]:
        """The indices, in ``shape``, of the most salient, the most first."""
        order = sorted(range(len(self.saliency)), key=lambda index: -self.saliency[index])[:number]
        return [_unravel(index, self.shape) for index in order]


def _unravel(index: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    found: list[int] = []
    for size in reversed(shape):
        index, place = divmod(index, size)
        found.append(place)
    return tuple(reversed(found))


@dataclass(frozen=True)
class Cells:
    """The saliencies of a model's values on some samples, and the loss they are of."""

    model: str
    samples: int
    objective: str
    values: tuple[CellSaliency, ...]


@dataclass(frozen=True)
class Interval:
    """A median with its 95 % interval."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Latency:
    """Two models timed interleaved in one process. Milliseconds per run; ``speedup`` = original / pruned."""

    original: Interval
    pruned: Interval
    speedup: Interval
    threads: int
    batch: int
    runs: int
    subnormal_weights: int = 0
    original_flushed: Interval | None = None
    provider: str = "CPUExecutionProvider"


@dataclass(frozen=True)
class FrontierPoint:
    """A model on the way to a faster one: how fast it is, measured, and how good on the held-back samples.

    ``units`` went from the original, ``parameters`` are left. ``speedup`` is original over this one at the batch,
    number of threads and provider of the run. ``drop`` is what the accuracy has fallen by at most, estimated where
    there are no labels to measure it (``calibration.expected_drop``). ``path``: where the model was kept.
    """

    units: int
    parameters: int
    milliseconds: float
    speedup: Interval
    loss: float
    agreement: float | None
    accuracy: float | None
    drop: float | None
    trained: bool = False
    shipped: bool = False
    path: str = ""


@dataclass(frozen=True)
class Report:
    """Everything one run found out; what the table, the JSON and the HTML are drawn from.

    ``parameters_after`` is the number of parameters left if units were removed (the tensors shrank), None if the
    shapes stayed and weights were only set to zero. ``provenance`` names what went in: hashes, library versions.
    """

    model: str
    output: str
    version: str
    method: str
    shipped: str
    options: Mapping[str, Any]
    objective: str
    num_scoring: int
    num_held_back: int
    target_sparsity: float
    sparsity: float
    sparsity_all_weights: float
    parameters: int
    dense: Quality
    candidates: tuple[Quality, ...]
    exported: Quality
    rounds: tuple[Round, ...]
    weights: tuple[WeightSummary, ...]
    bytes_before: int
    bytes_after: int
    sparse_tensors: int
    latency: Latency | None
    mirror_error: float
    export_error: float
    seconds: Mapping[str, float]
    notes: tuple[str, ...] = ()
    parameters_after: int | None = None
    frontier: tuple[FrontierPoint, ...] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)
