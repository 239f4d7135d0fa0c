"""The search for a faster model: steps along the cheapest microseconds, accepted by the clock and by the samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from onnx_obd.errors import UsageError
from onnx_obd.export import export_model
from onnx_obd.plan.widths import Offer, choose_sizes
from onnx_obd.records import FrontierPoint, Interval, Latency
from onnx_obd.removal.minutes import PORTION, Minutes
from onnx_obd.removal.share import Ascending, ascending_in, going_to, without_share
from onnx_obd.removal.thinning import HELPED, REFIT_SECONDS, Gone, Thinned, Thinning
from onnx_obd.removal.time_of_sizes import TimeOfSizes
from onnx_obd.run import Run
from onnx_obd.runtime.latency import measure_latency

STEP = 1.12
"""How much faster one step makes the model; the curvature and the times are measured anew in each."""

SMALLEST_STEP = 1.014
"""A step that oversteps the drop is taken back and halved, down to this."""

LEAST_GAIN = 1.01
"""Less than this is no speed gained: the clock is no more certain."""

PATIENCE = 3
"""Steps in a row that may gain no speed until they are taken back."""

MOST_TRIED = 6
"""Steps from one point that may overstep the drop: a refit of a large network takes a minute."""

CLOCK_SECONDS = 1.0
"""For the timing of one step."""

SURE_SECONDS = 4.0
"""For that of a step that seems to reach the speed: other work on the machine can make one second lie."""

NEAR = 1.5
"""Times what is allowed: what is no further off may still get there by all the training that is left."""

HOPELESS = 5.0
"""Times the drop allowed: from there no training leads back, and none is tried."""


@dataclass(frozen=True)
class Point:
    """A state that was timed."""

    state: Thinned
    record: FrontierPoint

    @property
    def speed(self) -> float:
        return self.record.speedup.median


def remove_units(run: Run) -> Run:
    """The run with a model from which the units went that ``run.options`` ask for, or that make it as fast as asked.

    With ``remove_units`` that share of all units goes, those first whose removal costs least loss. Otherwise, in each
    step, those go that cost least loss per microsecond gained (``units.saliency``, ``TimeOfSizes``, ``choose_sizes``);
    what reads them is refitted, trained if minutes or epochs are given, and the model is timed interleaved with the
    original. The search ends at the speed asked for, when no step gains speed any more, or when the smallest step would
    exceed the drop allowed; then a note says so.

    Raises:
        ModelError: the model has no unit that can be removed.
        UsageError: a drop is to be measured, but there are no classes.
    """
    search = Search(run)
    if run.options.remove_units:
        search.remove_share(run.options.remove_units)
    else:
        search.walk()
    return search.result()


@dataclass(frozen=True)
class Offers:
    """What can be had from a point: the time of one run, the units, and the offers of the families."""

    here: Point
    microseconds: float
    ascending: Ascending
    families: Mapping[int, Offer]


class Search:
    """Where the search has been (``points``), and what it may still spend."""

    def __init__(self, run: Run):
        self.run, self.options = run, run.options
        self.minutes = Minutes(self.options.recover_minutes, everything=self.options.goal is not None)
        self.thinning = Thinning(run, min(REFIT_SECONDS, self.minutes.seconds_of_a_refit))
        self.times = TimeOfSizes(self.thinning)
        self.points: list[Point] = []
        self.chosen: Point | None = None
        self.missed, self.target = "", math.inf
        self._tried: set[Gone] = set()
        self._refused: list[Point] = []
        self._known: Offers | None = None

    def remove_share(self, share: float) -> None:
        self.chosen = self._timed(without_share(self.thinning, share))

    # ---- a speed

    def walk(self) -> None:
        """Step by step to the speed asked for, or as far as the samples allow."""
        here = self._timed(self.thinning.whole)
        target, step, stalled = self._target(here), 0.0, 0
        self.target = target
        self.chosen, why = here, "nothing that could still go saves time"
        while self.chosen.speed < target:
            if self.minutes.over and self.minutes.everything:
                why = "the minutes were over"
                break
            offers = self._offers(here)
            going, step = self._going(here, offers, step or self.minutes.step(STEP, target), target)
            if not going:
                if (better := self._better(here)) is None:
                    break
                here, self.chosen = better, better if here is self.chosen else self.chosen
                step = math.sqrt(STEP)
                continue
            there = self._stepped(here, going, target)
            if objection := self._objection(there.state):
                self._refused.append(there)
                why, step = objection, math.sqrt(step)
                continue
            here, step = there, 0.0 if step >= STEP else step
            self._tried.clear()
            if there.speed >= LEAST_GAIN * self.chosen.speed:
                self.chosen, stalled = there, 0
            elif (stalled := stalled + 1) >= PATIENCE:
                why = "the last steps made it no faster"
                break
        if self.minutes.everything:
            self._last_chance()
        self.missed = "" if self.chosen.speed >= target else f"; {target:.2f}x was not reached: {why}"

    def _last_chance(self) -> None:
        """Of what was refused the nearest is trained by all that is left, and chosen if it passes then."""
        faster = [point for point in self._refused if point.speed >= LEAST_GAIN * self.chosen.speed]
        near = min(faster, key=lambda point: self._excess(point.state), default=None)
        if near is None or self._excess(near.state) > NEAR:
            return
        with self.minutes.last() as minutes:
            state = self.thinning.trained(near.state, minutes, trials=True)
        if not self._objection(state):
            self.chosen = self._timed(state)

    def _excess(self, state: Thinned) -> float:
        """The damage over what is allowed of it."""
        goal, now, before = self.options.goal, state.quality, self.run.original_quality
        if goal.loss_budget is not None:
            return (now.loss - before.loss) / max(goal.loss_budget, 1e-12)
        if goal.max_drop is None:
            return math.inf
        lost = state.drop if before.accuracy is None else before.accuracy - now.accuracy
        return lost / max(goal.max_drop, 1e-12)

    def _target(self, whole: Point) -> float:
        options = self.options
        if options.target_milliseconds is None:
            return options.speedup
        return whole.record.milliseconds * whole.speed / options.target_milliseconds

    def _offers(self, here: Point) -> Offers:
        """What the families have to give from a point; known from the last time if it is the same."""
        if self._known is not None and self._known.here is here:
            return self._known
        with self.minutes.measured("offers"):
            with self.run.progress.stage(f"removing units: {here.speed:.2f}x, what the rest is worth") as report:
                losses = self.thinning.losses(here.state, report)
            with self.run.progress.stage(f"removing units: {here.speed:.2f}x, timing sizes") as report:
                microseconds, gains = self.times.gains(here.state.gone, report)
            ascending = ascending_in(self.thinning, here.state, losses)
            offers = {f: Offer([losses[unit] for unit in units], gains[f]) for f, units in ascending.items()}
        self._known = Offers(here, microseconds, ascending, offers)
        return self._known

    def _going(self, here: Point, offers: Offers, step: float, target: float) -> tuple[list[int], float]:
        """The units that cost least loss per microsecond, for the largest step not tried yet, and that step."""
        families, step = offers.families, max(step, SMALLEST_STEP)
        while len(self._tried) < MOST_TRIED:
            while step >= SMALLEST_STEP:
                aim = min(here.speed * step, max(1.005 * target, SMALLEST_STEP * here.speed))
                sizes = choose_sizes(families, offers.microseconds * (1 - here.speed / aim))
                going = going_to(offers.ascending, sizes)
                gone = here.state.gone | frozenset(going)
                if gone not in self._tried or not going:
                    self._tried.add(gone)
                    return going, step
                step = math.sqrt(step)
            # Too much of a family: fewer of it cost more loss per microsecond, or another family does, but less in all.
            families, step = _fewer(families, sizes, offers.microseconds * (1 - 1 / SMALLEST_STEP)), SMALLEST_STEP
        return [], step

    def _stepped(self, here: Point, going: list[int], target: float) -> Point:
        """A point further: refitted, trained and timed."""
        with (
            self.run.progress.stage(f"removing units: {here.speed:.2f}x, {len(going)} fewer") as report,
            self.minutes.measured("refit"),
        ):
            state = self.thinning.without(here.state, going, report)
        return self._timed(self._trained(state, target))

    def _better(self, here: Point) -> Point | None:
        """Where no step is left: the same units, trained by a portion; None if that is not worth it."""
        if not self.options.goal or self.minutes.over or not here.state.gone:
            return None
        state = self._trained_by(here.state, PORTION)
        if state.quality.loss >= HELPED * here.state.quality.loss:
            return None
        self._tried.clear()
        return self._timed(state)

    def _trained_by(self, state: Thinned, share: float) -> Thinned:
        """Trained by a share of the time, or by what is left of it."""
        with self.minutes.training(share) as minutes:
            return self.thinning.trained(state, minutes)

    def _trained(self, state: Thinned, target: float) -> Thinned:
        """Trained by a portion of the time there is; under a goal as many as are needed to meet it, while they help."""
        options, before = self.options, math.inf
        if options.retrain_epochs:
            state = self.thinning.trained(state, None, options.retrain_epochs)
        if not options.goal:
            share = 1 / math.ceil(math.log(target) / math.log(STEP))
            return self._trained_by(state, share) if not self.minutes.over else state
        while not self.minutes.over and self._objection(state) and not self._hopeless(state):
            if state.quality.loss >= HELPED * before:
                break
            rate, before, drop = self.thinning.learning_rate, state.quality.loss, state.drop
            state = self._trained_by(state, PORTION)
            if self.thinning.learning_rate < rate:  # it was too high to help
                before = math.inf
            elif self._too_slow(drop, state.drop):
                break
        return state

    def _too_slow(self, before: float | None, now: float | None) -> bool:
        """Would another training that lowers the drop by as much as the last one leave too much of it?"""
        allowed = self.options.goal.max_drop
        return allowed is not None and now is not None and now - allowed > max(0.0, before - now)

    def _hopeless(self, state: Thinned) -> bool:
        allowed = self.options.goal.max_drop
        return allowed is not None and state.drop is not None and state.drop > HOPELESS * allowed

    def _objection(self, state: Thinned) -> str:
        """Why the smaller model may not pass, by the held-back samples; empty if it may."""
        goal, now = self.options.goal, state.quality
        if goal is not None and not self._allows(state):
            return "more would exceed the drop allowed"
        return "more would leave the outputs no better than a constant" if now.relative_error >= 1 else ""

    def _allows(self, state: Thinned) -> bool:
        goal, before = self.options.goal, self.run.original_quality
        if goal.max_drop is None or before.accuracy is not None:
            return goal.allows(state.quality, before)
        if state.drop is None:
            raise UsageError("--max-drop needs a classifier; for other outputs give --loss-budget")
        return state.drop <= goal.max_drop

    # ---- what came of it

    def _timed(self, state: Thinned) -> Point:
        """The state with its time, interleaved with the original, as a point of the frontier."""
        options, quality = self.options, state.quality
        proto = self.thinning.model(state.gone, state.weights)
        if state.gone or self.thinning.subnormal:
            timed = self._clock(proto, CLOCK_SECONDS)
            if timed.speedup.median >= self.target:  # what ends the search is made sure of
                timed = self._clock(proto, SURE_SECONDS)
            milliseconds, speedup = timed.pruned.median, timed.speedup
        else:
            milliseconds, speedup = self.times.gains(state.gone)[0] / 1e3, Interval(1.0, 1.0, 1.0)
        record = FrontierPoint(
            units=len(state.gone),
            parameters=sum(weight.numel() for weight in self.thinning.mirror(state.gone).weights.values()),
            milliseconds=milliseconds,
            speedup=speedup,
            loss=quality.loss,
            agreement=quality.agreement,
            accuracy=quality.accuracy,
            drop=state.drop,
            trained=state.trained,
        )
        if options.keep_frontier and state.gone:
            record = replace(record, path=self._kept(record, proto))
        self.points.append(Point(state, record))
        return self.points[-1]

    def _clock(self, proto: onnx.ModelProto, seconds: float) -> Latency:
        """The model beside the original."""
        run, options = self.run, self.options
        return measure_latency(
            run.model.proto,
            proto,
            run.scoring.samples,
            batch=options.batch,
            threads=options.threads,
            provider=options.provider,
            seconds=seconds,
        )

    def _kept(self, record: FrontierPoint, proto: onnx.ModelProto) -> str:
        folder, stem = Path(self.options.keep_frontier), Path(self.run.model.path or "model").stem
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{stem}-{len(self.points):02d}-{record.speedup.median:.2f}x.onnx"
        export_model(replace(self.run.model, proto=proto), {}, path, format="dense")
        return str(path)

    def result(self) -> Run:
        """The run with the model chosen; the frontier and a note go with it."""
        run = self.thinning.run_of(self.chosen.state)
        points = [replace(p.record, shipped=p is self.chosen) for p in self.points]
        left = self.minutes.left_for_the_chosen
        return replace(run, notes=(*run.notes, self._note()), frontier=tuple(points), minutes_left=left)

    def _note(self) -> str:
        record = self.chosen.record
        families = self.thinning.left(self.chosen.state.gone)
        total = len(self.thinning.units.units)
        parts = [
            f"{self.thinning.families[family][0].kind} {len(units)} of {len(self.thinning.families[family])}"
            for family, units in families.items()
            if len(units) < len(self.thinning.families[family])
        ]
        flushed = f"; {self.thinning.subnormal} subnormal weights set to zero" if self.thinning.subnormal else ""
        return f"units removed: {record.units} of {total}; left: {_briefly(parts)}{flushed}{self.missed}"


def _fewer(families: Mapping[int, Offer], sizes: Mapping[int, int], least: float) -> dict[int, Offer]:
    """The offers without those that take as much of a family as ``sizes`` do, or gain less than ``least``."""
    return {
        f: Offer(offer.losses, {left: g for left, g in offer.gains.items() if left > sizes.get(f, 0) and g >= least})
        for f, offer in families.items()
    }


def _briefly(parts: Sequence[str], most: int = 12) -> str:
    more = f" and {len(parts) - most} more" if len(parts) > most else ""
    return (", ".join(parts[:most]) + more) if parts else "all"
