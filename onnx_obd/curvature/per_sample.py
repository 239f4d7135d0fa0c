"""Squared gradients, sample by sample, of a batch that runs at once.

The square of a batch's gradient is not the sum of its samples' squared gradients. So the batch runs forward and
backward once, as far as the outputs of the nodes where a weight meets the data; from the inputs of such a node and the
gradients of its outputs the gradient of each sample follows without another pass. It is taken on the way back, as soon
as the gradients of a node have arrived, so that nothing of them need be kept; or, where several directions go back
together, for all of these at once.

Where the samples lie in a value is found, not assumed (``sample_axes``). Where they cannot be told apart (time before
batch and flattened, say), they go one by one.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from onnx_obd.calibration.measure import Batch, Calibration
from onnx_obd.curvature.sample_axes import InseparableError, Layout, Meeting, find_layout
from onnx_obd.mirror.mirror import Mirror
from onnx_obd.mirror.second import Call
from onnx_obd.mirror.values import is_float

CHUNK = 1 << 25
"""Elements of per-sample gradients of one weight that stand in memory at once, and of gradients of values."""

Directions = Callable[[Sequence[Tensor], Batch], Iterable[Sequence[Tensor]]]
"""(values of the objective, batch) -> directions, each with a vector for every value, of its shape."""

Squares = dict[str, Tensor]


def mean_squares(
    calibration: Calibration,
    names: Sequence[str],
    directions: Directions,
    progress: Callable[[int, int], None] | None = None,
) -> Squares:
    """The mean over the samples n of sum over the directions u of (J_nᵀ u_n)², for every element of the weights.

    J_n is the Jacobian of the objective's values of one sample. ``directions`` are scaled for the mean over the batch:
    the sum of u uᵀ, within each sample, is the Hessian of the batch's mean loss.
    """
    mirror, outputs = calibration.mirror, calibration.objective.slots
    total: Squares = {}
    for done, batch in enumerate(calibration.batches):
        root = (batch.count / calibration.num_samples) ** 0.5
        layout = find_layout(mirror, outputs, batch.inputs, batch.count, names)
        run, values = (_run_together if batch.count > 1 else _run_alone)(layout, mirror, batch)
        with torch.no_grad():
            vectors = directions([value.detach() for value in values], batch)
        scaled = ([root * u for u in vector] for vector in vectors)
        for columns, last in _stacked(scaled, run.columns_at_once()):
            run.add_squares(values, columns, total, last)
        if progress:
            progress(done + 1, len(calibration.batches))
    for name in names:
        if name not in total:
            total[name] = torch.zeros_like(mirror.weights[name].detach())
    return {name: total[name] for name in names}


def probed_samples(calibration: Calibration, limit: int, names: Sequence[str]) -> Calibration:
    """Up to ``limit`` of the samples, evenly spread: in batches if samples can be told apart there, else one by one.

    Only while the mirror holds the original weights, from which the targets come.
    """
    singles = calibration.singles(limit)
    if calibration.batch_size == 1 or len(singles.batches) == 1:
        return singles
    batched = Calibration(calibration.mirror, calibration.objective, singles.samples, calibration.batch_size)
    try:
        for batch in batched.batches:
            find_layout(calibration.mirror, calibration.objective.slots, batch.inputs, batch.count, names)
    except InseparableError:
        return singles
    return batched


def _stacked(vectors: Iterable[Sequence[Tensor]], size: int) -> Iterator[tuple[list[Tensor], bool]]:
    """Up to ``size`` directions side by side on a new first axis of each value; and whether they are the last."""
    rest = iter(vectors)
    following = list(itertools.islice(rest, size))
    while following:
        now, following = following, list(itertools.islice(rest, size))
        yield [torch.stack(column) for column in zip(*now, strict=True)], not following


def _add(total: Squares, name: str, squares: Tensor) -> None:
    total[name] = total[name].add_(squares) if name in total else squares


@dataclass
class _Alone:
    """A single sample that ran forward: the square of its gradient is what is asked for."""

    weights: dict[str, Tensor]

    def columns_at_once(self) -> int:
        return 1

    def add_squares(self, values: Sequence[Tensor], columns: Sequence[Tensor], total: Squares, last: bool) -> None:
        pairs = [(value, column[0]) for value, column in zip(values, columns, strict=True) if value.requires_grad]
        found = _gradients(pairs, list(self.weights.values()), last)
        for name, gradient in zip(self.weights, found, strict=True):
            if gradient is not None:
                _add(total, name, gradient.square())


def _run_alone(layout: Layout, mirror: Mirror, batch: Batch) -> tuple[_Alone, Sequence[Tensor]]:
    env = mirror.start(batch.inputs, layout.plan)
    weights = {}
    for slot in mirror.weight_slots().values():
        env[slot] = env[slot].detach()
    for name, slot in layout.weights.items():
        weights[name] = env[slot] = env[slot].requires_grad_()
    with torch.enable_grad():
        return _Alone(weights), layout.plan.finish(env)


@dataclass
class _Together:
    """A batch that ran forward. ``inputs`` are the values that went into its meetings.

    It is held by the graph that was recorded, and so may not hold any of it, or neither would ever be freed. Where a
    meeting's outputs get their gradients, these are taken; behind that, towards the weights, nothing was
    recorded but how values are made of weights alone. ``waiting`` are the gradients of outputs, direction by direction,
    that are in hand; ``elements`` is how many numbers those of one direction are.
    """

    layout: Layout
    inputs: dict[int, Any]
    elements: int = 0
    together: int = 1
    total: Squares = field(default_factory=dict)
    waiting: dict[int, list[Tensor]] = field(default_factory=dict)

    def columns_at_once(self) -> int:
        return max(1, CHUNK // max(1, self.elements))

    def add_squares(self, values: Sequence[Tensor], columns: Sequence[Tensor], total: Squares, last: bool) -> None:
        pairs = [(value, u) for value, u in zip(values, columns, strict=True) if value.requires_grad]
        if not pairs:
            return
        self.total, self.together = total, len(columns[0])
        for number in range(self.together):
            values, vectors = zip(*((value, u[number]) for value, u in pairs), strict=True)
            torch.autograd.backward(values, vectors, retain_graph=not last or number < self.together - 1)
        if self.together > 1:
            for meeting in self.layout.meetings:
                self._take(meeting.weights_once)
        self._take(self.layout.used_often)
        self.waiting = {}

    def enter(self, meeting: Meeting, values: Sequence[Any]) -> list[Any]:
        """What the node of a meeting runs on: weights, and what is made of them, apart from their own graph."""
        entered = []
        for slot, value in zip(meeting.step.inputs, values, strict=True):
            apart, made = value.detach() if isinstance(value, Tensor) else value, slot in meeting.origins
            self.inputs[slot] = value if made else apart
            entered.append(apart if made else value)
        return entered

    def take_here(self, meeting: Meeting, outputs: dict[int, Tensor], inputs: Sequence[Any]) -> dict[int, Tensor]:
        """Take the gradients of a meeting's outputs: a single direction's are squared and forgotten.

        Returns the outputs that others are to read in the place of these.
        """
        slots = tuple(outputs)

        def arrived(gradients: Sequence[Tensor | None]) -> None:
            found = {slot: g for slot, g in zip(slots, gradients, strict=True) if g is not None}
            for slot, gradient in found.items():
                self.waiting.setdefault(slot, []).append(gradient)
            if self.together == 1:
                self._take(meeting.weights_once)
                for slot in () if meeting.often else found:
                    del self.waiting[slot]

        self.elements += sum(value.numel() for value in outputs.values())
        if len(outputs) == 1:
            (value,) = outputs.values()  # a hook costs less; what is handed through has gradients of other readers too
            if value.grad_fn is not None and all(value is not other for other in inputs):
                value.register_hook(lambda gradient: arrived([gradient]))
                return {}
        recorded = any(value.requires_grad for value in outputs.values())
        anchor = None if recorded else torch.zeros((), requires_grad=True)
        return dict(zip(slots, _Taken.apply(arrived, anchor, *outputs.values()), strict=True))

    @torch.no_grad()
    def _take(self, names: Iterable[str]) -> None:
        """Add the squares for these weights, from the gradients that are waiting."""
        by_rule: dict[int, tuple[Meeting, list[str]]] = {}
        for name in names:
            uses = [m for m in self.layout.uses[name] if any(s in self.waiting for s in m.step.outputs)]
            if len(uses) == 1 and name in uses[0].positions:
                by_rule.setdefault(id(uses[0]), (uses[0], []))[1].append(name)
            elif uses:
                _add(self.total, name, self._by_gradients(uses, self.layout.weights[name]))
        for meeting, alike in by_rule.values():
            for name, found in self._by_rule(meeting, alike).items():
                slot = self.layout.weights[name]
                _add(self.total, name, self._by_gradients([meeting], slot) if found is None else found)

    def _by_rule(self, meeting: Meeting, names: Sequence[str]) -> dict[str, Tensor | None]:
        """What the operator knows to be cheaper than making the gradients, for weights that stand there as they are."""
        step, rule = meeting.step, meeting.step.operator.sample_squares
        if rule is None:
            return dict.fromkeys(names)
        positions = [meeting.positions[name] for name in names]
        inputs = tuple(step.read_host([self.inputs[source] for source in step.inputs]))
        wanted = tuple(position in positions for position in range(len(inputs)))
        call = Call(step.node, step.call, dict(step.attributes), inputs, (), wanted)
        gradients = [self.waiting.get(s) for s in step.outputs]
        found = rule(call, gradients, self.layout.count, self.layout.axes[step.outputs[0]]) or [None] * len(inputs)
        return {name: found[position] for name, position in zip(names, positions, strict=True)}

    def _by_gradients(self, uses: Sequence[Meeting], slot: int) -> Tensor:
        """The gradients themselves, some samples at a time, summed over the uses before they are squared."""
        weight = self.inputs[slot]
        columns = len(next(iter(self.waiting.values())))
        chunk = max(1, CHUNK // max(1, weight.numel()))
        total = torch.zeros_like(weight.detach())
        for column, start in itertools.product(range(columns), range(0, self.layout.count, chunk)):
            samples = slice(start, min(start + chunk, self.layout.count))
            parts: dict[int, Tensor] = {}
            for meeting in uses:
                for source, gradient in self._node_gradients(meeting, slot, column, samples).items():
                    parts[source] = parts[source] + gradient if source in parts else gradient
            if list(parts) == [slot]:
                (gradient,) = parts.values()
            else:  # back through the nodes that make values from weights alone
                pairs = [(self.inputs[source], part) for source, part in parts.items()]
                (gradient,) = _gradients(pairs, [weight], last=False, batched=True)
            total += gradient.square().sum(0)
        return total

    def _node_gradients(self, meeting: Meeting, slot: int, column: int, samples: slice) -> dict[int, Tensor]:
        """Gradients [samples, ...] of the values of one node that meet the data and are made of the weight."""
        step, layout = meeting.step, self.layout
        sources = [source for source, origins in meeting.origins.items() if slot in origins]
        arguments, axes = [], []
        for position, source in enumerate(step.inputs):
            axis = None if source in meeting.origins else layout.axes.get(source)
            value = meeting.host[position] if position in meeting.host else self.inputs[source]
            value = value.detach() if isinstance(value, Tensor) else value
            arguments.append(value if axis is None else _parted(value, axis, layout.count, samples))
            axes.append(axis)
        outputs = [(i, s) for i, s in enumerate(step.outputs) if s in self.waiting]
        vectors = [_parted(self.waiting[s][column], layout.axes[s], layout.count, samples) for _, s in outputs]

        def pull(values: Sequence, cotangents: Sequence[Tensor]) -> tuple[Tensor, ...]:
            def run(*weights: Tensor) -> tuple[Tensor, ...]:
                new = dict(zip(sources, weights, strict=True))
                result = step.call(*(new.get(s, value) for s, value in zip(step.inputs, values, strict=True)))
                result = result if isinstance(result, tuple) else (result,)
                return tuple(result[i] for i, _ in outputs)

            return torch.func.vjp(run, *(self.inputs[source].detach() for source in sources))[1](tuple(cotangents))

        batched = [(i, value) for i, (value, axis) in enumerate(zip(arguments, axes, strict=True)) if axis is not None]

        def one(parts: Sequence[Tensor], cotangents: Sequence[Tensor]) -> tuple[Tensor, ...]:
            values = list(arguments)
            for (i, _), part in zip(batched, parts, strict=True):
                values[i] = part
            return pull(values, cotangents)

        found = _over_samples(
            one,
            [value for _, value in batched],
            [axes[i] for i, _ in batched],
            vectors,
            [layout.axes[s] for _, s in outputs],
        )
        return dict(zip(sources, found, strict=True))


def _run_together(layout: Layout, mirror: Mirror, batch: Batch) -> tuple[_Together, Sequence[Tensor]]:
    """Forward; weights stand apart from the graph, and what they meet the data in begins it anew."""
    env = mirror.start(batch.inputs, layout.plan)
    for slot in mirror.weight_slots().values():
        env[slot] = env[slot].detach()
    for slot in layout.weights.values():
        env[slot] = env[slot].requires_grad_()
    run = _Together(layout, {slot: env[slot] for slot in layout.weights.values()})
    meetings = {id(meeting.step): meeting for meeting in layout.meetings}
    with torch.enable_grad():
        for step in layout.plan.steps:
            meeting, values = meetings.get(id(step)), [env[slot] for slot in step.inputs]
            if meeting is not None:
                values = run.enter(meeting, values)
            results = dict(zip(step.outputs, step(*values), strict=False))
            if meeting is not None:
                floats = {slot: value for slot, value in results.items() if is_float(value)}
                results |= run.take_here(meeting, floats, values)
                del floats
            for slot, value in results.items():
                env[slot] = value
            del values, results  # what nobody reads again need not wait for the next node
            for slot in step.release:
                env[slot] = None
    return run, [env[slot] for slot in layout.plan.outputs]


class _Taken(torch.autograd.Function):
    """Values as they are; ``arrived`` gets their gradients, even if no gradient goes further.

    Unlike leaves with hooks the values are not kept for it, so that a pass takes the memory of an ordinary one.
    """

    @staticmethod
    def forward(
        ctx: Any, arrived: Callable[[Sequence[Tensor | None]], None], anchor: Tensor | None, *values: Tensor
    ) -> Any:
        ctx.arrived = arrived
        ctx.set_materialize_grads(False)
        return tuple(value.view_as(value) for value in values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple:
        ctx.arrived(gradients)
        return None, None, *gradients


def _gradients(
    pairs: Sequence[tuple[Tensor, Tensor]], targets: Sequence[Tensor], last: bool, batched: bool = False
) -> Sequence[Tensor | None]:
    if not pairs:
        return [None] * len(targets)
    outputs, vectors = zip(*pairs, strict=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vmap says where it is slow
        return torch.autograd.grad(
            outputs, targets, vectors, retain_graph=not last, allow_unused=True, is_grads_batched=batched
        )


def _parted(value: Tensor, axis: int, count: int, samples: slice) -> Tensor:
    """The samples of a value along an axis of their own, at ``axis``."""
    parted = value.unflatten(axis, (count, value.shape[axis] // count))
    return parted.narrow(axis, samples.start, samples.stop - samples.start)


def _over_samples(
    one: Callable, values: list[Tensor], value_axes: list[int], vectors: list[Tensor], vector_axes: list[int]
) -> tuple[Tensor, ...]:
    """``one`` for all samples at once; one after the other for a node that ``vmap`` cannot take."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # vmap says where it is slow
            return torch.vmap(one, in_dims=(value_axes, vector_axes))(values, vectors)
    except (RuntimeError, NotImplementedError, ValueError):
        count = vectors[0].shape[vector_axes[0]]
        found = []
        for n in range(count):
            parts = [value.select(axis, n) for value, axis in zip(values, value_axes, strict=True)]
            cotangents = [vector.select(axis, n) for vector, axis in zip(vectors, vector_axes, strict=True)]
            found.append(one(parts, cotangents))
        return tuple(torch.stack(gradients) for gradients in zip(*found, strict=True))
