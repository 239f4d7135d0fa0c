"""One network with more and more of its units removed: at full size with masks, and as the smaller model.

Refits take place at full size, where every node still has the original's outputs for target; training, time and quality
are those of the smaller model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import onnx
from torch import Tensor

from onnx_obd.calibration.expected_drop import ExpectedDrop
from onnx_obd.calibration.measure import Calibration, feeds
from onnx_obd.calibration.mixtures import with_mixtures
from onnx_obd.calibration.pictures import with_warps
from onnx_obd.calibration.quality import assess, head_values
from onnx_obd.candidates import original_masks
from onnx_obd.errors import ModelError
from onnx_obd.graph.weights import write_weights
from onnx_obd.mirror.mirror import Mirror
from onnx_obd.records import Quality
from onnx_obd.recovery import LEARNING_RATES, MINIBATCH, Composer, Recipe, Training
from onnx_obd.run import Run, weights_of
from onnx_obd.runtime.subnormals import count_subnormals, flush_subnormals
from onnx_obd.surgery.compensate import compensate
from onnx_obd.surgery.mask import apply_masks, restore, snapshot
from onnx_obd.surgery.removed import restore_survivors, unit_masks
from onnx_obd.surgery.shrink import shrink
from onnx_obd.surgery.shrink_confirm import confirmed_units
from onnx_obd.units.find import Unit
from onnx_obd.units.saliency import gate_saliency

GATE_SAMPLES = 64
"""Scoring samples from which the curvature of the gates is estimated at least: a unit that is silent on all of them
seems to be worth nothing."""

GATE_SECONDS = 20.0
"""More are used while that takes no longer."""

RIDGES = (0.01, 0.1, 1.0, 10.0)
"""Of the refit of the consumers: of many survivors few samples determine little."""

REFIT_SECONDS = 60.0
"""A refit of the whole network takes about as long at most by default: of large networks fewer samples are used."""

BOTH_WAYS = 5
"""A sample by itself with its gradients takes about so many times as long as one in a batch without."""

MIXTURES = 4
"""For every sample that training is judged by."""

LEARNING_RATE, SLOWER, FASTER = 5e-3, 4.0, 2.0
"""Of the training, at first; so many times lower after one that did not help, higher after one in which the loss never
rose above where it began, within ``LEARNING_RATES``. A trial of a few steps would take a low one: what was refitted
stands at the bottom of a valley, and leaves it only for a better one. But where the first training has fewer steps
than ``TRIED_BELOW``, trials are cheaper than one at a rate that is too high."""

TRIED_BELOW, STEP_RUNS = 200, 3 * MINIBATCH
"""A step is as long as so many runs of one sample without gradients: a batch there and back."""

HELPED = 0.95
"""A training did not, after which the loss is above this share of what it was."""

FEWEST = 8
"""Samples of which a refit makes use at least."""

WARPS = 3
"""Of each of them where pictures may be warped: few samples determine little (docs/benchmarks.md)."""

Gone = frozenset[int]
"""The ids of the removed units."""


@dataclass(frozen=True)
class Thinned:
    """The network without some units: their ids, all its weights at full size, and what is measured held back.

    ``drop`` is what the accuracy has fallen by at most (``ExpectedDrop``), None for outputs that are no classes.
    """

    gone: Gone
    weights: Mapping[str, Tensor]
    quality: Quality
    drop: float | None
    trained: bool = False


class Thinning:
    """What can be done to the units of the run's model. The run's mirror is the network at full size.

    Raises:
        ModelError: the model has no unit that can be removed.
    """

    def __init__(self, run: Run, refit_seconds: float = REFIT_SECONDS):
        self.run, self.refit_seconds = run, refit_seconds
        with run.progress.stage("looking for units"):
            first = feeds(run.mirror, run.scoring.samples.subset([0]), 1)[0][0]
            self.units = confirmed_units(Mirror(run.model.proto) if run.freed else run.mirror, first)
        if not self.units.units:
            raise ModelError("no unit of this model can be removed; 'onnx-obd inspect --units' says why")
        self.families = self.units.families()
        self.subnormal = sum(count_subnormals(run.model.proto).values())
        self.learning_rate = run.options.learning_rate or LEARNING_RATE
        self._rate_is_unknown = run.options.learning_rate is None
        self.judging = with_mixtures(run.acceptance, MIXTURES, run.options.seed)
        self.composer = Composer(run.fitting.batches, run.objective, run.mirror, run.original)
        self.unseen = run.held_back.joined(run.acceptance, "those that trainings are judged by")
        self.expected_drop = ExpectedDrop(self.unseen, run.fitting, self.composer.pictures, run.options.seed)
        self.whole = self._told(frozenset(), run.mirror, False)

    def left(self, gone: Gone) -> dict[int, list[Unit]]:
        """The units that are still there, by family."""
        return {family: [unit for unit in members if unit.id not in gone] for family, members in self.families.items()}

    def losses(self, state: Thinned, progress: Callable[[int, int], None] | None = None) -> dict[int, float]:
        """For every unit left: what the loss rises by without it."""
        run = self.run
        restore(run.mirror, state.weights)
        samples = run.scoring.samples
        count = max(GATE_SAMPLES, int(GATE_SECONDS / (BOTH_WAYS * self._seconds_of_a_sample)))
        step = max(1, len(samples) // count)
        some = samples.subset(range(0, len(samples), step)[:count])
        there = [unit for unit in self.units.units if unit.id not in state.gone]
        found = gate_saliency(run.mirror, run.objective, some, there, seed=run.options.seed, progress=progress)
        return {unit.id: loss for unit, loss in zip(there, found.tolist(), strict=True)}

    def without(
        self, state: Thinned, more: Collection[int], progress: Callable[[int, int], None] | None = None
    ) -> Thinned:
        """Further units removed, and what read them refitted (``--no-repair``: not) to what it computed originally."""
        run, gone = self.run, state.gone | frozenset(more)
        restore(run.mirror, state.weights)
        keep = unit_masks(run.mirror, self._removed(gone), original_masks(run))
        apply_masks(run.mirror, keep)
        if run.options.repair:
            operands, _ = run.operands
            fitting, acceptance = self._refit_samples
            with run.timed("repair"):
                compensate(
                    fitting,
                    acceptance,
                    operands,
                    run.original,
                    keep,
                    ridges=RIDGES,
                    seed=run.options.seed,
                    progress=progress,
                )
        return self._told(gone, self.mirror(gone), state.trained)

    def trained(
        self, state: Thinned, minutes: float | None, epochs: int | None = None, trials: bool = False
    ) -> Thinned:
        """What is left trained towards the original's outputs; as it was if that does not lower the loss.

        Args:
            trials: of the rate, by a share of the training, unless the user has given one.
        """
        run = self.run
        restore(run.mirror, state.weights)
        small = self.mirror(state.gone)
        if self._rate_is_unknown and minutes is not None:
            trials |= 60 * minutes < TRIED_BELOW * STEP_RUNS * self._seconds_of_a_sample
        rate = run.options.learning_rate if trials else self.learning_rate
        recipe = Recipe(epochs, minutes, rate, run.options.seed)
        with run.progress.stage("removing units: training") as report, run.timed("training"):
            training = Training(
                run.fitting.on(small),
                run.original,
                {},
                recipe,
                teacher=run.mirror,
                validation=self.judging.on(small),
                composer=self.composer,
            )
            found = training.run(report)
        self.learning_rate, self._rate_is_unknown = found.learning_rate, False
        if found.best_loss > HELPED * found.start_loss:
            self.learning_rate = max(self.learning_rate / SLOWER, min(LEARNING_RATES))
        elif found.highest_loss <= found.start_loss and run.options.learning_rate is None:
            self.learning_rate = min(self.learning_rate * FASTER, max(LEARNING_RATES))
        restore_survivors(run.mirror, self.units, self._removed(state.gone), small.weights)
        return self._told(state.gone, small, True)

    def model(self, gone: Gone, weights: Mapping[str, Tensor] | None = None) -> onnx.ModelProto:
        """The smaller model, with the mirror's present weights or others."""
        if weights is not None:
            restore(self.run.mirror, weights)
        proto = onnx.ModelProto()
        proto.CopyFrom(self.run.model.proto)
        write_weights(proto, self.run.mirror.state())
        return self._shrunk(proto, gone)

    def shape(self, gone: Gone) -> onnx.ModelProto:
        """The smaller model with some weights: enough to time it."""
        return self._shrunk(self.run.model.proto, gone)

    def work_gone(self, gone: Gone) -> tuple[int, int]:
        """Multiplications, and values that nodes wrote, per run on the sample."""
        removed = self._removed(gone)
        return self.units.macs_of(removed), self.units.values_of(removed)

    def _shrunk(self, proto: onnx.ModelProto, gone: Gone) -> onnx.ModelProto:
        """Subnormal weights, which only cost time, become zero."""
        proto = shrink(proto, self.units, self._removed(gone)) if gone else proto
        return flush_subnormals(proto) if self.subnormal else proto

    def mirror(self, gone: Gone) -> Mirror:
        return self.run.mirror_of(self.model(gone))

    def run_of(self, state: Thinned) -> Run:
        """The run with the smaller model; what its outputs are compared with stays what the original gave."""
        run, proto = self.run, self.model(state.gone, state.weights)
        restore(run.mirror, run.original)
        mirror = run.mirror_of(proto)
        parts = ("scoring", "fitting", "acceptance", "refitting", "refit_acceptance", "held_back", "probed")
        return replace(
            run,
            model=replace(run.model, proto=proto),
            mirror=mirror,
            weights=weights_of(mirror, run.objective, run.options),
            original=snapshot(mirror),
            before=run,
            first_curvature=None,
            **{part: getattr(run, part).on(mirror) for part in parts},
        )

    def _removed(self, gone: Gone) -> list[Unit]:
        return [unit for unit in self.units.units if unit.id in gone]

    def _told(self, gone: Gone, mirror: Mirror, trained: bool) -> Thinned:
        """The state that the mirror at full size is in, judged by the smaller one's held-back outputs."""
        run = self.run
        values = head_values(self.unseen.on(mirror))
        held_back = values[: len(run.held_back.batches)]
        quality = assess(run.held_back, held_back, run.original_values, method="units removed", sparsity=0.0)
        return Thinned(gone, snapshot(run.mirror), quality, self.expected_drop.of(mirror, values), trained)

    @cached_property
    def _seconds_of_a_sample(self) -> float:
        """Through the mirror at full size."""
        start = time.perf_counter()
        self.run.acceptance.loss()
        return (time.perf_counter() - start) / self.run.acceptance.num_samples

    @cached_property
    def _refit_samples(self) -> tuple[Calibration, Calibration]:
        """To fit on and to accept by: as many samples as the time allows, warped ones too."""
        run = self.run
        parts = run.fitting, run.acceptance
        nodes = max(1, len(run.operands[0]))
        wanted = self.refit_seconds / (nodes * self._seconds_of_a_sample)  # sample runs for each node
        for_all = len(RIDGES) * run.acceptance.num_samples + 2 * run.fitting.num_samples
        present = snapshot(run.mirror)
        restore(run.mirror, run.original)  # whose outputs are the targets
        try:
            if wanted < for_all:
                return tuple(self._some(part, wanted / for_all) for part in parts)
            pictures = self.composer.pictures
            if wanted < (1 + WARPS) * for_all or run.objective.supervised or not pictures.warp:
                return parts
            return tuple(with_warps(part, pictures.layouts, WARPS, run.options.seed) for part in parts)
        finally:
            restore(run.mirror, present)

    def _some(self, part: Calibration, share: float) -> Calibration:
        count = min(part.num_samples, max(FEWEST, int(share * part.num_samples)))
        some = part.samples.subset(range(count))
        return Calibration(self.run.mirror, self.run.objective, some, min(count, part.batch_size))
