"""The search for a faster model: steps along the cheapest microseconds, accepted by the clock and by the samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from onnx_obd.errors import UsageError
from onnx_obd.plan.widths import Offer, choose_sizes, fewer
from onnx_obd.removal.frontier import Frontier, Point
from onnx_obd.removal.minutes import Minutes
from onnx_obd.removal.share import Offers, ascending_in, going_to, told_units, without_share
from onnx_obd.removal.thinning import REFIT_SECONDS, Gone, Thinned, Thinning
from onnx_obd.removal.time_of_sizes import TimeOfSizes
from onnx_obd.run import Run

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

AIMED, OVERSHOT, NEARER = 1.02, 1.05, 3
"""Times the speed asked for: where the last step aims, for a little less is another step; and beyond what so many
smaller ones are tried in its place."""

NEAR = 2.0
"""Times what is allowed: what is no further off may still get there by all the training that is left."""

HOPELESS = 10.0
"""Times what is allowed: training left an eighth at best, so from there it does not lead back, and none is tried."""

REMEDY, TRAININGS = 0.25, 3
"""What training is expected to leave of the damage, at first; each takes one of so many parts of the time left."""

PROBE = 1 / 8
"""The share of the time that a training gets which shows whether the rate is right."""

DAMAGED = 0.5
"""Relative error of the outputs: without a goal what is worse is trained before more goes, for the curvature of a ruin
tells little."""


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


class Search:
    """Where the search has been (``frontier``), and what it may still spend."""

    def __init__(self, run: Run):
        self.run, self.options = run, run.options
        self.minutes = Minutes(self.options.recover_minutes, everything=self.options.goal is not None)
        self.thinning = Thinning(run, min(REFIT_SECONDS, self.minutes.seconds_of_a_refit))
        self.times = TimeOfSizes(self.thinning)
        self.frontier = Frontier(self.thinning, self.times)
        self.chosen: Point | None = None
        self.missed, self.target = "", math.inf
        self._refused: list[Point] = []
        self._tried: dict[Gone, set[Gone]] = {}
        self._known: dict[Gone, Offers] = {}

    def remove_share(self, share: float) -> None:
        self.chosen = self.frontier.timed(without_share(self.thinning, share), self.target)

    # ---- a speed

    def walk(self) -> None:
        """To the speed asked for, or as far as the samples allow: by refits alone, then by what training allows.

        What is trained a little after every step ends worse than what is trained as long after the last one: each refit
        leads back to what the nodes computed originally.
        """
        here = self.frontier.timed(self.thinning.whole, self.target)
        self.target, self.chosen = self._target(here), here
        why = self._refits(here)
        if self.minutes.everything:
            why = self._trainings(why)
            self._last_chance()
        elif not self.options.goal:
            self._come_nearer()
            if not self.minutes.over and self.chosen.state.gone:
                self._train_chosen()
        self.missed = "" if self.chosen.speed >= self.target else f"; {self.target:.2f}x was not reached: {why}"

    def _refits(self, here: Point) -> str:
        """Step by step while it gets faster and training, if there are minutes for it, could make up for the damage.

        Returns why it ends.
        """
        fastest, step, stalled, why = here, 0.0, 0, "nothing that could still go saves time"
        while fastest.speed < self.target:
            if self.minutes.half_over:
                return "the minutes were over"
            going, step = self._going(here, step or self.minutes.step(STEP, self.target))
            if not going:
                break
            there = self._stepped(here, going)
            if objection := self._objection(there.state):
                why = objection
                if not self.minutes.everything:
                    step = math.sqrt(step)
                    continue
                if self._hopeless(there.state):
                    self._refused.append(there)
                    break
            elif there.speed >= LEAST_GAIN * self.chosen.speed:
                self.chosen = there
            here, step = there, 0.0 if step >= STEP else step
            if there.speed >= LEAST_GAIN * fastest.speed:
                fastest, stalled = there, 0
            elif (stalled := stalled + 1) >= PATIENCE:
                return "the last steps made it no faster"
        return why

    def _come_nearer(self) -> None:
        """Smaller steps from the last point that is too slow: what is faster than asked for has lost too much."""
        slower, step = [point for point in self.frontier.points if point.speed < self.target], STEP
        here = max(slower, key=lambda point: point.speed, default=None)
        for _ in range(NEARER):
            if here is None or self.chosen.speed <= OVERSHOT * self.target:
                return
            going, step = self._going(here, math.sqrt(step))
            if not going:
                return
            there = self._stepped(here, going)
            if here.speed < there.speed < self.target:
                here = there
            elif there.speed >= self.target and there.state.quality.loss < self.chosen.state.quality.loss:
                self.chosen = there

    def _trainings(self, why: str) -> str:
        """Trains the fastest of what was refitted that may pass then, faster or slower ones next, smaller steps last.

        Returns why it ends.
        """
        above = [point for point in self.frontier.refitted.values() if not self._hopeless(point.state)]
        leaves = REMEDY
        while not self.minutes.over and self.chosen.speed < self.target:
            floor = LEAST_GAIN * self.chosen.speed
            ceiling = min((point.speed for point in self._refused if point.speed >= floor), default=math.inf)
            above = sorted((p for p in above if floor <= p.speed < ceiling), key=lambda point: point.speed)
            likely = [point for point in above if leaves * self._excess(point.state) <= 1]
            nearest = min(above, key=lambda point: self._excess(point.state), default=None)
            before = likely[-1] if likely else nearest or self._between(ceiling)
            if before is None:
                return why
            after = self._trained(before, self.minutes.part(TRAININGS))
            if objection := self._objection(after.state):
                self._refused.append(after)
                why = objection
            else:
                self.chosen = after
            leaves = self._excess(after.state) / max(self._excess(before.state), 1e-12)
        return "the minutes were over"

    def _between(self, ceiling: float) -> Point | None:
        """A step from the chosen one, half way to what was refused if that is nearer; None if none is left."""
        origin = self.frontier.refitted[self.chosen.state.gone]
        step = min(STEP, math.sqrt(ceiling / origin.speed))
        while step >= SMALLEST_STEP:
            going, step = self._going(origin, step)
            if not going:
                return None
            there = self._stepped(origin, going)
            nearer = there.speed < ceiling or not self._objection(there.state)
            if nearer and there.speed >= LEAST_GAIN * self.chosen.speed:
                return there
        return None

    def _trained(self, point: Point, share: float) -> Point:
        """Trained by a share of the time if it needs that."""

        def needs_it(state: Thinned) -> bool:
            return bool(self._objection(state)) and not self._hopeless(state)

        return self.frontier.told(point, self._at_a_rate_that_helps(point.state, share, needs_it))

    def _train_chosen(self) -> None:
        """At a rate at which a short training helps; by all that is left, unless single weights are to go next."""
        state = self._at_a_rate_that_helps(self.chosen.state, PROBE)
        with self.minutes.last() if self.options.units_alone else self.minutes.training(1.0) as minutes:
            state = self.thinning.trained(state, minutes)
        self.chosen = self.frontier.told(self.chosen, state)

    def _at_a_rate_that_helps(
        self, state: Thinned, share: float, needs_it: Callable[[Thinned], bool] = lambda state: True
    ) -> Thinned:
        """Trained by a share of the time, and once more as long as the rate was too high and became lower."""
        rate = math.inf
        while self.thinning.learning_rate < rate and not self.minutes.over and needs_it(state):
            rate = self.thinning.learning_rate
            state = self._trained_by(state, share)
        return state

    def _last_chance(self) -> None:
        """Of what is faster the nearest to what is allowed is trained by all that is left, and chosen if it passes."""
        floor = LEAST_GAIN * self.chosen.speed
        faster = [point for point in (*self.frontier.refitted.values(), *self._refused) if point.speed >= floor]
        near = min(faster, key=lambda point: self._excess(point.state), default=None)
        if near is None or self._excess(near.state) > NEAR:
            return
        with self.minutes.last() as minutes:
            state = self.thinning.trained(near.state, minutes, trials=True)
        if not self._objection(state):
            self.chosen = self.frontier.told(near, state)

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
        """What the families have to give from a point."""
        if here.state.gone in self._known:
            return self._known[here.state.gone]
        with self.minutes.measured("offers"):
            with self.run.progress.stage(f"removing units: {here.speed:.2f}x, what the rest is worth") as report:
                losses = self.thinning.losses(here.state, report)
            with self.run.progress.stage(f"removing units: {here.speed:.2f}x, timing sizes") as report:
                microseconds, gains = self.times.gains(here.state.gone, report)
            ascending = ascending_in(self.thinning, here.state, losses)
            offers = {f: Offer([losses[unit] for unit in units], gains[f]) for f, units in ascending.items()}
        return self._known.setdefault(here.state.gone, Offers(microseconds, ascending, offers))

    def _going(self, here: Point, step: float) -> tuple[list[int], float]:
        """The units that cost least loss per microsecond, for the largest step not tried yet, and that step."""
        offers, tried = self._offers(here), self._tried.setdefault(here.state.gone, set())
        families, step = offers.families, max(step, SMALLEST_STEP)
        while len(tried) < MOST_TRIED:
            while step >= SMALLEST_STEP:
                aim = min(here.speed * step, max(AIMED * self.target, SMALLEST_STEP * here.speed))
                sizes = choose_sizes(families, offers.microseconds * (1 - here.speed / aim))
                going = going_to(offers.ascending, sizes)
                gone = here.state.gone | frozenset(going)
                if gone not in tried or not going:
                    tried.add(gone)
                    return going, step
                step = math.sqrt(step)
            # Too much of a family: fewer of it cost more loss per microsecond, or another family does, but less in all.
            families, step = fewer(families, sizes, offers.microseconds * (1 - 1 / SMALLEST_STEP)), SMALLEST_STEP
        return [], step

    def _stepped(self, here: Point, going: list[int]) -> Point:
        """A point further: refitted and timed, and trained before if epochs are given or there is little left."""
        options = self.options
        with (
            self.run.progress.stage(f"removing units: {here.speed:.2f}x, {len(going)} fewer") as report,
            self.minutes.measured("refit"),
        ):
            state = self.thinning.without(here.state, going, report)
        if options.retrain_epochs:
            state = self.thinning.trained(state, None, options.retrain_epochs)
        elif self._needs_training(here, state):
            state = self._trained_by(state, 1 / math.ceil(math.log(self.target) / math.log(STEP)))
        return self.frontier.timed(state, self.target)

    def _needs_training(self, here: Point, state: Thinned) -> bool:
        """Before more than the last step: without a goal, and if there is little left of the outputs."""
        way = not self.options.goal and here.speed * STEP < self.target
        return way and not self.minutes.over and state.quality.relative_error >= DAMAGED

    def _trained_by(self, state: Thinned, share: float) -> Thinned:
        """Trained by a share of the time, or by what is left of it."""
        with self.minutes.training(share) as minutes:
            return self.thinning.trained(state, minutes)

    def _hopeless(self, state: Thinned) -> bool:
        return self._excess(state) > HOPELESS

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

    def result(self) -> Run:
        """The run with the model chosen; the frontier and a note go with it."""
        run = self.thinning.run_of(self.chosen.state)
        points = [replace(p.record, shipped=p is self.chosen) for p in self.frontier.points]
        left = self.minutes.left_for_the_chosen
        return replace(
            run,
            notes=(*run.notes, told_units(self.thinning, self.chosen.state) + self.missed),
            frontier=tuple(points),
            minutes_left=left,
        )
