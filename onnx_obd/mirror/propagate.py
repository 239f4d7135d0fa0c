"""LeCun's back-propagation of second derivatives over a program (Le Cun, Denker, Solla 1989, eqs. 7 to 10)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from onnx_obd.mirror.composite import Recursion, own, run_by_rules
from onnx_obd.mirror.program import Env, Program
from onnx_obd.mirror.values import is_float

Seeds = Callable[[Env], Mapping[int, Tensor]]
"""From the values of a run: slot of an output -> a tensor of its shape."""


def propagate(
    program: Program,
    env: Env,
    seeds: Mapping[int, Tensor] | Seeds,
    wanted: Iterable[int],
    *,
    gradients: Mapping[int, Tensor] | Seeds | None = None,
    outputs: Sequence[int] | None = None,
    generator: torch.Generator | None = None,
    estimated: set[str] | None = None,
) -> dict[int, Any]:
    """The diagonal second derivatives of the objective with respect to the values in ``wanted``.

    Levenberg-Marquardt form: h_in[i] = sum_j (dy_j/dx_i)^2 h_out[j], summed over all uses of a value; with
    ``gradients`` the full form, + sum_j d2y_j/dx_i^2 g_out[j] (see ``second.bend``). One forward and one backward pass,
    which takes the memory of an ordinary one; two of each for the full form.

    Args:
        env: where the program starts from (``Program.start``); filled with the values of ``wanted`` and of the outputs.
        seeds: d2E/dy^2 of the outputs: slot -> a tensor of the output's shape, or what makes that from their values.
        wanted: slots whose h is asked for (weights, inputs, values between).
        gradients: dE/dy of the outputs, likewise.
        outputs: the slots of the outputs, where ``seeds`` has yet to be called; the program's by default.
        generator: draws the probes where an operator has no rule of its own.
        estimated: receives the nodes whose rule was estimated.

    Returns:
        slot -> h, of the value's shape, for what the outputs depend on; of a sequence a list, with None where no
        second derivative arrives.

    Raises:
        UsageError: the full form is asked for and a node has no second derivative in torch.
    """
    wanted, recursion = tuple(dict.fromkeys(wanted)), Recursion(generator, estimated)
    outputs = tuple(outputs or (program.outputs if callable(seeds) else seeds))
    if gradients is not None:
        recursion.slopes = iter(_slopes(program, list(env), gradients, wanted, outputs))
    _run(program, env, wanted, outputs, recursion)
    return _pull(env, seeds(env) if callable(seeds) else seeds, wanted)


def _run(program: Program, env: Env, wanted: Sequence[int], outputs: Sequence[int], recursion: Recursion) -> None:
    for slot in wanted:
        env[slot] = own(env[slot].detach() if isinstance(env[slot], Tensor) else env[slot])
    with torch.enable_grad():
        run_by_rules(program, env, recursion, (*wanted, *outputs))


def _slopes(program: Program, env: Env, gradients: Any, wanted: Sequence[int], outputs: Sequence[int]) -> list[tuple]:
    """Of every part of a run, in its order, the gradients of the outputs."""
    recursion = Recursion(noted=[])
    _run(program, env, wanted, outputs, recursion)
    ends = gradients(env) if callable(gradients) else gradients
    targets = [value for part in recursion.noted for value in part if is_float(value) and value.requires_grad]
    found = dict(zip(map(id, targets), _grad(env, ends, targets), strict=True))
    return [tuple(found.get(id(value)) for value in part) for part in recursion.noted]


def _pull(env: Env, ends: Mapping[int, Tensor], wanted: Sequence[int]) -> dict[int, Any]:
    leaves = {slot: env[slot] if isinstance(env[slot], list) else [env[slot]] for slot in wanted}
    targets = [leaf for each in leaves.values() for leaf in each if is_float(leaf)]
    found = iter(_grad(env, ends, targets))
    h = {}
    for slot, each in leaves.items():
        values = [next(found) if is_float(leaf) else None for leaf in each]
        if any(value is not None for value in values):
            h[slot] = values if isinstance(env[slot], list) else values[0]
    return h


def _grad(env: Env, ends: Mapping[int, Tensor], targets: Sequence[Tensor]) -> Sequence[Tensor | None]:
    pairs = [(env[slot], end) for slot, end in ends.items() if env[slot].requires_grad]
    if not pairs or not targets:
        return [None] * len(targets)
    return torch.autograd.grad([y for y, _ in pairs], targets, [v.to(y) for y, v in pairs], allow_unused=True)
