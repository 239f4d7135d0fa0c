"""Control flow: If, Loop, Scan. The graphs arrive as callables that hold what they capture from outside."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from onnx_obd.mirror.composite import through_bodies
from onnx_obd.mirror.registry import Body, Ints, Like, family

_control_op = family(second=through_bodies)


@_control_op("If", 1, 11, 13, 16, 19, 21, 23, 24, 25)
def if_(cond: Ints, *, then_branch: Body, else_branch: Body):
    return then_branch() if cond[0] else else_branch()


@_control_op("Loop", 1, 11, 13, 16, 19, 21, 23, 24, 25)
def loop(m: Ints | None, cond: Ints | None = None, *v_initial, body: Body, like: Like):
    """The body maps (iteration, condition, *carried) to (condition, *carried, *scanned); the scanned are stacked."""
    carried, scanned = v_initial, []
    proceed, iteration = cond is None or bool(cond[0]), 0
    while proceed and (m is None or iteration < m[0]):
        number = torch.tensor(iteration, device=like.device)
        proceed, *results = body(number, torch.tensor(True, device=like.device), *carried)
        carried, scanned = results[: len(v_initial)], [*scanned, results[len(v_initial) :]]
        proceed, iteration = bool(proceed), iteration + 1
    return *carried, *_stack(scanned, body.no_steps[1 + len(v_initial) :])


def _stack(rows: Sequence[Sequence[Tensor]], no_rows: Sequence[Tensor], axes: Sequence[int] | None = None) -> list:
    """Column by column: the values of all iterations along a new axis."""
    if not rows:
        return list(no_rows)
    columns = list(zip(*rows, strict=True))
    return [torch.stack(column, axis) for column, axis in zip(columns, axes or (0,) * len(columns), strict=True)]


@_control_op("Scan", 9, 11, 16, 19, 21, 23, 24, 25)
def scan(
    *initial_state_and_scan_inputs, body: Body, num_scan_inputs, scan_input_axes=None, scan_input_directions=None,
    scan_output_axes=None, scan_output_directions=None,
):  # fmt: skip
    """The body maps (*states, *slices) to (*states, *scanned); an axis with direction 1 is gone through backwards."""
    count = len(initial_state_and_scan_inputs) - num_scan_inputs
    states, sequences = initial_state_and_scan_inputs[:count], initial_state_and_scan_inputs[count:]
    axes = scan_input_axes or (0,) * num_scan_inputs
    directions = scan_input_directions or (0,) * num_scan_inputs
    slices = [_slices(*three) for three in zip(sequences, axes, directions, strict=True)]
    scanned = []
    for step in zip(*slices, strict=True):
        results = body(*states, *step)
        states, scanned = results[:count], [*scanned, results[count:]]
    columns = _stack(scanned, body.no_steps[count:], scan_output_axes)
    directions = scan_output_directions or (0,) * len(columns)
    axes = scan_output_axes or directions
    turned = [c.flip(axis) if turn else c for c, axis, turn in zip(columns, axes, directions, strict=True)]
    return *states, *turned


def _slices(sequence: Tensor, axis: int, backwards: int) -> Sequence[Tensor]:
    found = sequence.unbind(axis)
    return found[::-1] if backwards else found


@_control_op("Scan", 8)
def scan_8(sequence_lens: Ints | None, *initial_state_and_scan_inputs, body: Body, num_scan_inputs, directions=None):
    """As Scan-9 for each item of the batch: states [B, ...], scanned values [B, T, ...], zero beyond a given length."""
    count = len(initial_state_and_scan_inputs) - num_scan_inputs
    batches = zip(*(value.unbind(0) for value in initial_state_and_scan_inputs), strict=True)
    items = []
    for item, values in enumerate(batches):
        steps = values[count].shape[0]
        length = sequence_lens[item] if sequence_lens else steps
        own = (*values[:count], *(value[:length] for value in values[count:]))
        results = scan(*own, body=body, num_scan_inputs=num_scan_inputs, scan_input_directions=directions)
        items.append([*results[:count], *(_pad_to(column, steps) for column in results[count:])])
    return tuple(torch.stack(column) for column in zip(*items, strict=True))


def _pad_to(column: Tensor, steps: int) -> Tensor:
    return torch.cat([column, column.new_zeros(steps - column.shape[0], *column.shape[1:])])
