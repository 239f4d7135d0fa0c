"""Removing whole units until onnxruntime is as fast as asked: chosen by loss per microsecond, accepted by the clock."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx
from torch import Tensor

from onnx_obd.calibration.measure import feeds
from onnx_obd.calibration.quality import assess, head_values
from onnx_obd.errors import ModelError
from onnx_obd.graph.weights import write_weights
from onnx_obd.mirror.mirror import Mirror
from onnx_obd.mirror.uses import uses_of
from onnx_obd.plan.selection import select_weights
from onnx_obd.recovery import Recipe, Training
from onnx_obd.run import Run
from onnx_obd.runtime.latency import measure_latency
from onnx_obd.runtime.profile import node_times
from onnx_obd.surgery.mask import snapshot
from onnx_obd.surgery.shrink import shrink
from onnx_obd.surgery.shrink_confirm import confirmed_units
from onnx_obd.units.find import Unit, UnitMap
from onnx_obd.units.saliency import gate_saliency

STEPS = 4
"""Steps towards the target; curvature, sizes and node times are measured anew in each."""

MORE_STEPS = 6
"""Further steps of the same size if the clock says that the target is not reached."""

GATE_SAMPLES = 64
"""Scoring samples from which the curvature of the gates is estimated."""

MULTIPLE = 4
"""Kept sizes are rounded up to a multiple of this: vector kernels pad to it, so the remainder saves no time."""

PATIENCE = 3
"""Steps in a row that may gain no speed, each twice as large as the one before, until they are taken back."""

MOST_AT_ONCE = 0.4
"""Of the time of all nodes, the most that one step removes."""

LEAST_GAIN = 0.03
"""Less than this is no speed gained: the clock is no more certain."""

CLOCK_SECONDS = 1.0


@dataclass(frozen=True)
class Step:
    """One step of removal: how many units went, and what the clock and the loss said afterwards."""

    removed: int
    speedup: float
    loss_held_back: float


def remove_units(run: Run) -> Run:
    """The run with a model that is as much faster in onnxruntime as ``run.options`` ask for, by removing units.

    In each step the units go whose removal costs least loss per microsecond gained (``gate_saliency`` over
    ``unit_times``); what is left is trained towards the original's outputs if ``retrain_epochs`` are given; and the
    model is timed, interleaved with the original, at batch 1. If no more units can go before the target is reached,
    they gain nothing any more, or the goal's drop would be exceeded, the model before that is returned and a note says
    so.

    Raises:
        ModelError: the model has no unit that can be removed.
    """
    speedup = run.options.speedup or _speedup_for(run)
    current, steps, states, why = run, [], [run], "no more units can go"
    for number in range(STEPS + MORE_STEPS):
        gained = steps[-1].speedup if steps else 1.0
        if gained >= speedup:
            break
        stalled = _stalled(steps)
        if stalled > PATIENCE:
            steps, current, why = steps[:-stalled], states[-1 - stalled], "the last steps made it no faster"
            break
        aim = max(speedup ** min(1.0, (number + 1) / STEPS), gained * speedup ** (1 / (2 * STEPS)))
        with run.progress.stage(f"removing units: {gained:.2f}x, now towards {aim:.2f}x") as report:
            units = confirmed_units(current.mirror, feeds(current.mirror, run.scoring.samples.subset([0]), 1)[0][0])
            if not units.units and not steps:
                raise ModelError("no unit of this model can be removed; 'onnx-obd inspect --units' says why")
            going = choose_units(current, units, min(MOST_AT_ONCE, (1 - gained / aim) * 2**stalled), report)
            if not going:
                break
            current = _without(run, current, units, going)
        if run.options.retrain_epochs:
            current = _retrained(run, current)
        if objection := _objection(run, current):
            current, why = states[-1], objection
            break
        states.append(current)
        steps.append(_measured(run, current, len(going)))
    return replace(current, before=run, notes=(*run.notes, _told(steps, speedup, why)))


def _stalled(steps: Sequence[Step]) -> int:
    """How many of the last steps gained no speed over what stood before them."""
    speeds = [1.0] + [step.speedup for step in steps]
    return next((n for n in range(len(steps)) if speeds[-1 - n] >= (1 + LEAST_GAIN) * speeds[-2 - n]), len(steps))


def _objection(run: Run, current: Run) -> str:
    """Why the shrunk model may not pass, by the held-back samples; empty if it may."""
    sides = (head_values(current.held_back), run.original_values)
    now, before = (assess(run.held_back, side, run.original_values, method="", sparsity=0.0) for side in sides)
    if run.options.goal is not None and not run.options.goal.allows(now, before):
        return "more would exceed the drop allowed"
    return "more would leave the outputs no better than a constant" if now.relative_error >= 1 else ""


def _speedup_for(run: Run) -> float:
    """The speed-up that brings the original to the latency asked for."""
    proto, options = run.model.proto, run.options
    timed = measure_latency(proto, proto, run.scoring.samples, threads=options.threads, seconds=CLOCK_SECONDS)
    return max(1.0, timed.original.median / options.target_milliseconds)


def _measured(run: Run, current: Run, removed: int) -> Step:
    samples, threads = run.scoring.samples, run.options.threads
    timed = measure_latency(run.model.proto, current.model.proto, samples, threads=threads, seconds=CLOCK_SECONDS)
    return Step(removed, timed.speedup.median, current.held_back.loss())


def _told(steps: Sequence[Step], speedup: float, why: str) -> str:
    path = "; ".join(f"{step.removed} units: {step.speedup:.2f}x, loss {step.loss_held_back:.3g}" for step in steps)
    reached = bool(steps) and steps[-1].speedup >= speedup
    missed = "" if reached else f"; {speedup:.2f}x was not reached: {why}"
    return f"units removed step by step: {path or 'none'}{missed}"


def _retrained(run: Run, current: Run) -> Run:
    """Trained towards the original's outputs, and the new weights in the model."""
    options = run.options
    recipe = Recipe(options.retrain_epochs, None, options.learning_rate, options.seed)
    with run.progress.stage("removing units: training") as report, run.timed("training"):
        Training(current.scoring, run.original, {}, recipe, teacher=run.mirror).run(report)
    proto = _with_mirror_weights(current.model.proto, current.mirror)
    return replace(current, model=replace(current.model, proto=proto), original=snapshot(current.mirror))


def choose_units(
    run: Run, units: UnitMap, share: float, progress: Callable[[int, int], None] | None = None
) -> list[Unit]:
    """The units whose removal costs least loss per microsecond, until ``share`` of the nodes' time is gained."""
    some = run.scoring.samples
    step = max(1, len(some) // GATE_SAMPLES)
    some = some.subset(range(0, len(some), step)[:GATE_SAMPLES])
    losses = gate_saliency(run.mirror, run.objective, some, units.units, seed=run.options.seed, progress=progress)
    times = node_times(run.model.proto, some.feeds[0], threads=run.options.threads)
    gains = unit_times(run.mirror, run.model.proto, units, times)
    budget = share * sum(times.values())
    order = sorted(range(len(gains)), key=lambda i: float(losses[i]) / max(gains[i], 1e-9))
    left = {family: len(members) for family, members in units.families().items()}
    going: list[int] = []
    for index in order:
        family = units.units[index].family
        if budget <= 0:
            break
        if left[family] > 1 and gains[index] > 0:
            left[family] -= 1
            budget -= gains[index]
            going.append(index)
    return [units.units[index] for index in _rounded(going, units, losses)]


def _rounded(going: Sequence[int], units: UnitMap, losses: Tensor) -> list[int]:
    """Without the dearest few of each family whose going would only leave a ragged size behind."""
    by_family: dict[int, list[int]] = defaultdict(list)
    for index in going:
        by_family[units.units[index].family].append(index)
    kept = []
    for family, indices in by_family.items():
        size = len(units.families()[family])
        left = size - len(indices)
        back = (-left) % MULTIPLE if size >= 4 * MULTIPLE else 0
        indices = sorted(indices, key=lambda index: float(losses[index]))
        kept += indices[: max(0, len(indices) - back)]
    return kept


def unit_times(mirror: Mirror, proto: onnx.ModelProto, units: UnitMap, times: Mapping[int, float]) -> list[float]:
    """Microseconds that go with each unit: of every node it has weights of, the same share as of its weights."""
    by_label = {}
    for index, node in enumerate(proto.graph.node):
        by_label[f"{node.op_type} '{node.name}'" if node.name else f"{node.op_type} #{index}"] = times.get(index, 0.0)
    time_of = {}
    for name, slot in mirror.weight_slots().items():
        use = next((use for use in uses_of(mirror.program, slot) if use.multiplies), None)
        time_of[name] = by_label.get(use.node, 0.0) if use else 0.0
    return [
        sum(
            time_of.get(piece.tensor, 0.0) * len(piece.indices) / mirror.weights[piece.tensor].shape[piece.axis]
            for piece in unit.slices
            if piece.tensor in mirror.weights
        )
        for unit in units.units
    ]


def _without(run: Run, current: Run, units: UnitMap, going: Sequence[Unit]) -> Run:
    """The run with the shrunk model; what its outputs are compared with stays what the original gave."""
    proto = shrink(_with_mirror_weights(current.model.proto, current.mirror), units, going)
    mirror = Mirror(proto)
    weights = select_weights(
        mirror,
        run.objective.slots,
        include=run.options.include,
        exclude=run.options.exclude,
        prune_biases=run.options.prune_biases,
    )
    parts = ("scoring", "fitting", "acceptance", "held_back", "probed")
    return replace(
        current,
        model=replace(run.model, proto=proto),
        mirror=mirror,
        weights=weights,
        original=snapshot(mirror),
        **{part: getattr(current, part).on(mirror) for part in parts},
    )


def _with_mirror_weights(proto: onnx.ModelProto, mirror: Mirror) -> onnx.ModelProto:
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    write_weights(result, mirror.state())
    return result
