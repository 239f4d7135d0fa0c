"""One model on one set of samples, made ready: what every later stage works on."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import onnx
import torch
from torch import Tensor

from onnx_obd.calibration.measure import Calibration, feeds, mirror_for_batches
from onnx_obd.calibration.memory import fitting_batch_size, value_bytes
from onnx_obd.calibration.mixtures import with_mixtures
from onnx_obd.calibration.objective import Objective, choose_objective
from onnx_obd.calibration.quality import assess, head_values
from onnx_obd.calibration.samples import Samples
from onnx_obd.curvature import find_estimator
from onnx_obd.curvature.per_sample import probed_samples
from onnx_obd.errors import ModelError
from onnx_obd.graph.load import Model
from onnx_obd.mirror.free_batch import with_free_batch
from onnx_obd.mirror.mirror import Mirror
from onnx_obd.options import Options
from onnx_obd.plan.rounds import default_rounds
from onnx_obd.plan.selection import select_weights
from onnx_obd.progress import Progress
from onnx_obd.records import Curvature, FrontierPoint, Quality, WeightSummary
from onnx_obd.runtime.verify import compare_with_onnxruntime
from onnx_obd.saliency import criteria_of
from onnx_obd.surgery.mask import snapshot
from onnx_obd.surgery.operands import Operand, find_operands

COMPARED_SAMPLES = 8
"""Samples on which mirror and onnxruntime are compared: enough to meet every branch, few enough to be quick."""

ACCEPTANCE = 0.25
"""Fraction of the scoring samples that refits are judged by."""


MIXTURES = 4
"""For every sample of a network of dense layers: there a sample is one equation of a refit, and many refits in a row
learn the few there are by heart (docs/benchmarks.md)."""


@dataclass
class Run:
    """One model on one set of samples, ready to be pruned: what every stage works on.

    The mirror holds the original weights until a stage changes them; ``original`` is a copy. ``fitting`` and
    ``acceptance`` are the two parts of ``scoring`` that a change is fitted on and judged by; ``refitting`` and
    ``refit_acceptance`` are these for refits, with mixtures where samples are few. ``minutes_left`` of the
    recovery are for the final training, if the search for units has spent some (None: all). ``first_curvature`` is that
    of the original weights, once it has been estimated.
    """

    model: Model
    mirror: Mirror
    objective: Objective
    scoring: Calibration
    fitting: Calibration
    acceptance: Calibration
    refitting: Calibration
    refit_acceptance: Calibration
    held_back: Calibration
    probed: Calibration
    weights: list[WeightSummary]
    options: Options
    progress: Progress
    mirror_error: float
    original: dict[str, Tensor] = field(default_factory=dict)
    original_values: list[tuple[Tensor, ...]] = field(default_factory=list)
    original_loss: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    before: Run | None = None
    notes: tuple[str, ...] = ()
    frontier: tuple[FrontierPoint, ...] = ()
    minutes_left: float | None = None
    first_curvature: Curvature | None = None

    @property
    def origin(self) -> Run:
        """The run with the model that came in: another than this one if units were removed."""
        return self.before or self

    @cached_property
    def original_quality(self) -> Quality:
        """What the original does on the held-back samples: what goals compare with."""
        return assess(self.held_back, self.original_values, self.original_values, method="original", sparsity=0.0)

    @property
    def prunable(self) -> list[str]:
        return [weight.name for weight in self.weights if weight.prunable]

    @cached_property
    def operands(self) -> tuple[list[Operand], dict[str, str]]:
        """Where the prunable weights multiply data, and why some have no such place."""
        return find_operands(self.mirror, self.probed.batches[0], self.prunable)

    def mirror_of(self, proto: onnx.ModelProto) -> Mirror:
        """The mirror of the model in other sizes, for batches like those of this run's mirror."""
        mirror = Mirror(proto, beside=self.mirror)
        if not self.freed:
            return mirror
        sample = feeds(mirror, self.scoring.samples.subset([0]), 1)[0][0]
        return Mirror(with_free_batch(mirror, sample), beside=self.mirror)

    @property
    def freed(self) -> bool:
        """Is the mirror freed of a batch of one (``with_free_batch``), and so another graph's than the model's?"""
        return self.mirror.proto is not self.model.proto

    def changed_weights(self) -> dict[str, np.ndarray]:
        """The mirror's weights that are no longer the original's, as the file holds them."""
        state = self.mirror.state()
        return {
            name: state[name]
            for name, value in self.original.items()
            if not torch.equal(self.mirror.weights[name].detach(), value)
        }

    @contextmanager
    def timed(self, stage: str):
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


def prepare(model: Model, samples: Samples, options: Options, progress: Progress | None = None) -> Run:
    """Steps up to the first derivative: mirror, comparison with onnxruntime, objective, targets.

    Raises:
        ModelError: no weight can be pruned, or weights are not finite.
        MirrorMismatchError: the mirror does not compute what onnxruntime computes.
    """
    progress = progress or Progress(quiet=True)
    criteria_of(options.method)  # a wrong name is told before the work, not after
    find_estimator(options.curvature)
    start = time.perf_counter()
    mirror = Mirror(model.proto)
    scoring_samples, held_back_samples = samples.split(options.held_back, options.seed)
    with progress.stage("comparing with onnxruntime"):
        some = scoring_samples.subset(range(min(COMPARED_SAMPLES, len(scoring_samples))))
        mirror_error = compare_with_onnxruntime(mirror, model.proto, some)
    sizes = value_bytes(mirror, scoring_samples)
    if options.rounds is None:
        options = replace(options, rounds=default_rounds(sum(sizes) * len(scoring_samples)))
    mirror, batch_size = mirror_for_batches(mirror, scoring_samples, fitting_batch_size(sizes, options.batch_size))
    objective = _objective(mirror, scoring_samples, batch_size, options)
    scoring = Calibration(mirror, objective, scoring_samples, batch_size)
    weights = weights_of(mirror, objective, options)
    _check_finite(mirror, weights)
    if not any(weight.prunable for weight in weights):
        raise ModelError("no weight can be pruned; 'onnx-obd inspect' says why for each")
    parts = scoring_samples.split(ACCEPTANCE, options.seed + 1) if len(scoring_samples) > 1 else (scoring_samples,) * 2
    fitting, acceptance = (Calibration(mirror, objective, part, batch_size) for part in parts)
    run = Run(
        model=model,
        mirror=mirror,
        objective=objective,
        scoring=scoring,
        fitting=fitting,
        acceptance=acceptance,
        refitting=fitting,
        refit_acceptance=acceptance,
        held_back=Calibration(mirror, objective, held_back_samples, batch_size),
        probed=probed_samples(scoring, options.probe_samples, [weight.name for weight in weights if weight.prunable]),
        weights=weights,
        options=options,
        progress=progress,
        mirror_error=mirror_error,
        original=snapshot(mirror),
    )
    if _one_position_each(run):
        parts = (with_mixtures(part, MIXTURES, options.seed) for part in (fitting, acceptance))
        run.refitting, run.refit_acceptance = parts
    run.original_values = head_values(run.held_back)
    run.original_loss = run.scoring.loss()
    run.seconds["prepare"] = time.perf_counter() - start
    return run


def weights_of(mirror: Mirror, objective: Objective, options: Options) -> list[WeightSummary]:
    """Which weights of a mirror the options let be pruned."""
    return select_weights(
        mirror,
        objective.slots,
        include=options.include,
        exclude=options.exclude,
        prune_biases=options.prune_biases,
    )


def _one_position_each(run: Run) -> bool:
    """Does every sample pass once, not at many places as in a convolution, through each weight that can be refitted?"""
    batch, (operands, _) = run.probed.batches[0], run.operands
    with torch.no_grad():
        values = (run.mirror.evaluate(batch.inputs, outputs=operand.slots) for operand in operands)
        counts = [operand.product(found).positions for operand, found in zip(operands, values, strict=True)]
    return bool(counts) and max(counts) <= batch.count


def _check_finite(mirror: Mirror, weights: list[WeightSummary]) -> None:
    """Constants may be infinite (attention masks are); what is to be ranked may not."""
    for weight in weights:
        if weight.prunable and not torch.isfinite(mirror.weights[weight.name]).all():
            raise ModelError(f"weight '{weight.name}' holds NaN or infinity; such a weight cannot be ranked")


def _objective(mirror: Mirror, samples: Samples, batch_size: int, options: Options) -> Objective:
    some = samples.subset(range(min(len(samples), 4 * batch_size if batch_size > 1 else 16)))
    batches = [inputs for inputs, _, _ in feeds(mirror, some.subset([0]), 1) + feeds(mirror, some, batch_size)]
    labels = None if samples.labels is None else torch.from_numpy(samples.labels)
    return choose_objective(mirror, batches, labels, kind=options.objective, temperature=options.temperature)
