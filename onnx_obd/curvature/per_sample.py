"""Squared gradients, sample by sample, of a batch that runs at once.

The square of a batch's gradient is not the sum of its samples' squared gradients. So the batch runs forward and
backward once, as far as the outputs of the nodes where a weight meets the data; from the inputs of such a node and the
gradients of its outputs the gradient of each sample follows without another pass.

Where the samples lie in a value is found, not assumed (``sample_axes``). Where they cannot be told apart (time before
batch and flattened, say), they go one by one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from onnx_obd.calibration.measure import Batch, Calibration
from onnx_obd.curvature.sample_axes import InseparableError, Layout, Meeting, find_layout
from onnx_obd.mirror.program import Env
from onnx_obd.mirror.second import Call
from onnx_obd.mirror.values import is_float

CHUNK = 1 << 25
"""Elements of per-sample gradients of one weight that stand in memory at once."""

Directions = Callable[[Sequence[Tensor], Batch], Iterable[Sequence[Tensor]]]
"""(values of the objective, batch) -> directions, each with a vector for every value, of its shape."""


def mean_squares(
    calibration: Calibration,
    names: Sequence[str],
    directions: Directions,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Tensor]:
    """The mean over the samples n of sum over the directions u of (J_nᵀ u_n)², for every element of the weights.

    J_n is the Jacobian of the objective's values of one sample. ``directions`` are scaled for the mean over the batch:
    the sum of u uᵀ, within each sample, is the Hessian of the batch's mean loss.
    """
    mirror, outputs = calibration.mirror, calibration.objective.slots
    total = {name: torch.zeros_like(mirror.weights[name].detach()) for name in names}
    for done, batch in enumerate(calibration.batches):
        layout = find_layout(mirror, outputs, batch.inputs, batch.count, names)
        with torch.enable_grad():
            env = layout.plan.record(mirror.start(batch.inputs, layout.plan))
        values = [env[slot] for slot in outputs]
        with torch.no_grad():
            vectors = directions([value.detach() for value in values], batch)
        for vector in vectors:
            for name, squares in _squares(layout, env, values, vector).items():
                total[name] += squares * (batch.count / calibration.num_samples)
        if progress:
            progress(done + 1, len(calibration.batches))
    return total


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


def _squares(layout: Layout, env: Env, values: Sequence[Tensor], vector: Sequence[Tensor]) -> dict[str, Tensor]:
    """Sum over the samples of (J_nᵀ u_n)² by weight; nothing for a weight that no gradient reaches."""
    pairs = [(value, u) for value, u in zip(values, vector, strict=True) if value.requires_grad]
    if not pairs:
        return {}
    if layout.count == 1:
        weights = {name: env[slot] for name, slot in layout.weights.items()}
        found = _gradients(pairs, list(weights.values()))
        return {name: g.square() for name, g in zip(weights, found, strict=True) if g is not None}
    slots = [slot for meeting in layout.meetings for slot in meeting.step.outputs]
    slots = [slot for slot in slots if is_float(env[slot]) and env[slot].requires_grad]
    gradients = dict(zip(slots, _gradients(pairs, [env[slot] for slot in slots]), strict=True))
    squares = {}
    for name, slot in layout.weights.items():
        uses = [meeting for meeting in layout.meetings if meeting.reached_from(slot)]
        uses = [meeting for meeting in uses if any(gradients.get(s) is not None for s in meeting.step.outputs)]
        if not uses:
            continue
        found = _by_rule(uses[0], slot, env, gradients, layout.count) if len(uses) == 1 else None
        squares[name] = _by_gradients(layout, uses, slot, env, gradients) if found is None else found
    return squares


def _gradients(pairs: Sequence[tuple[Tensor, Tensor]], targets: Sequence[Tensor]) -> Sequence[Tensor | None]:
    outputs, vectors = zip(*pairs, strict=True)
    return torch.autograd.grad(outputs, targets, vectors, retain_graph=True, allow_unused=True)


@torch.no_grad()
def _by_rule(
    meeting: Meeting, slot: int, env: Env, gradients: dict[int, Tensor | None], count: int
) -> Tensor | None:
    """What the operator knows to be cheaper than making the gradients, for a weight that is used once and as it is."""
    step = meeting.step
    positions = [i for i, source in enumerate(step.inputs) if slot in meeting.origins.get(source, ())]
    if step.operator.sample_squares is None or [step.inputs[i] for i in positions] != [slot]:
        return None
    inputs = tuple(step.read_host([env[source] for source in step.inputs]))
    wanted = tuple(position in positions for position in range(len(inputs)))
    outputs = tuple(env[source] for source in step.outputs)
    call = Call(step.node, step.call, dict(step.attributes), inputs, outputs, wanted)
    found = step.operator.sample_squares(call, [gradients.get(s) for s in step.outputs], count)
    return None if found is None else found[positions[0]]


def _by_gradients(
    layout: Layout, uses: Sequence[Meeting], slot: int, env: Env, gradients: dict[int, Tensor | None]
) -> Tensor:
    """The gradients themselves, some samples at a time, summed over the uses before they are squared."""
    weight = env[slot]
    chunk = max(1, CHUNK // max(1, weight.numel()))
    total = torch.zeros_like(weight.detach())
    for start in range(0, layout.count, chunk):
        samples = slice(start, min(start + chunk, layout.count))
        parts: dict[int, Tensor] = {}
        for meeting in uses:
            for source, gradient in _node_gradients(layout, meeting, slot, env, gradients, samples).items():
                parts[source] = parts[source] + gradient if source in parts else gradient
        if list(parts) == [slot]:
            (gradient,) = parts.values()
        else:  # back through the nodes that make values from weights alone
            (gradient,) = torch.autograd.grad(
                [env[source] for source in parts],
                [weight],
                list(parts.values()),
                retain_graph=True,
                is_grads_batched=True,
            )
        total += gradient.square().sum(0)
    return total


def _node_gradients(
    layout: Layout,
    meeting: Meeting,
    slot: int,
    env: Env,
    gradients: dict[int, Tensor | None],
    samples: slice,
) -> dict[int, Tensor]:
    """Gradients [samples, ...] of the values that meet the data in one node and come from the weight in ``slot``."""
    step = meeting.step
    sources = [source for source, origins in meeting.origins.items() if slot in origins]
    arguments, axes = [], []
    for position, source in enumerate(step.inputs):
        axis = None if source in meeting.origins else layout.axes.get(source)
        value = meeting.host[position] if position in meeting.host else env[source]
        value = value.detach() if isinstance(value, Tensor) else value
        arguments.append(value if axis is None else _parted(value, axis, layout.count, samples))
        axes.append(axis)
    outputs = [(i, s) for i, s in enumerate(step.outputs) if gradients.get(s) is not None]
    vectors = [_parted(gradients[s], layout.axes[s], layout.count, samples) for _, s in outputs]

    def pull(values: Sequence, cotangents: Sequence[Tensor]) -> tuple[Tensor, ...]:
        def run(*weights: Tensor) -> tuple[Tensor, ...]:
            new = dict(zip(sources, weights, strict=True))
            result = step.call(*(new.get(source, value) for source, value in zip(step.inputs, values, strict=True)))
            result = result if isinstance(result, tuple) else (result,)
            return tuple(result[i] for i, _ in outputs)

        return torch.func.vjp(run, *(env[source].detach() for source in sources))[1](tuple(cotangents))

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
