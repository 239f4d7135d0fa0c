"""The criteria by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from onnx_obd.errors import UsageError
from onnx_obd.records import Curvature, Saliency

EVIDENCE = ("h", "h_of_output", "h_of_input", "h_of_surgeon", "gradient", "squared_gradient", "input_norm", "generator")
"""What a criterion may ask for beside the weight, by naming it as a parameter:

    h                 second derivatives of the mean loss
    h_of_output       h averaged over the weights of the same output
    h_of_input        h averaged over the weights of the same input
    h_of_surgeon      1 / [H⁻¹]_qq, the second derivative if the other weights of the output adapt
    gradient          first derivatives of the mean loss over the samples
    squared_gradient  mean over the samples of the squared first derivatives of their losses
    input_norm        L2 norm, over samples and positions, of what the weight multiplies
    generator         a seeded torch.Generator, the only one that is not a tensor of the weight's shape
"""


@dataclass(frozen=True)
class Criterion:
    """``function(weight, ...)`` gives the scores of one tensor; its further parameters are what it needs."""

    name: str
    function: Callable[..., Tensor]

    @cached_property
    def needs(self) -> tuple[str, ...]:
        return tuple(inspect.signature(self.function).parameters)[1:]

    @property
    def needs_curvature(self) -> bool:
        return any(need.startswith("h") for need in self.needs)


CRITERIA: dict[str, Criterion] = {}


def criterion(name: str) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Register the decorated function as the criterion of that name."""

    def register(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        found = Criterion(name, function)
        unknown = set(found.needs) - set(EVIDENCE)
        if unknown:
            raise ValueError(f"criterion {name} asks for {unknown}; there are {EVIDENCE}")
        CRITERIA[name] = found
        return function

    return register


def find_criterion(name: str) -> Criterion:
    """The criterion of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in CRITERIA:
        raise UsageError(f"no criterion '{name}'; there are {', '.join(sorted([*CRITERIA, *METHODS]))}")
    return CRITERIA[name]


METHODS = {"auto": ("obd", "per_output", "per_input", "factored", "per_tensor")}
"""Methods that try several criteria in every round."""


def criteria_of(method: str) -> tuple[str, ...]:
    """The criteria of a method: several of ``METHODS``, or the one of that name.

    Raises:
        UsageError: there is none.
    """
    return METHODS.get(method) or (find_criterion(method).name,)


def score(
    name: str,
    weights: Mapping[str, Tensor],
    curvature: Curvature | None = None,
    evidence: Mapping[str, Mapping[str, Tensor]] | None = None,
    *,
    seed: int = 0,
) -> Saliency:
    """Scores of the named criterion for all weights.

    Args:
        curvature: gives ``h``; with it, the record also predicts the change of the loss.
        evidence: what else the criterion needs, by the names of ``EVIDENCE``, then by weight.
        seed: of the generator, for a criterion that wants one.

    Raises:
        UsageError: no such criterion, or what it needs is not given.
    """
    chosen = find_criterion(name)
    if chosen.needs_curvature and curvature is None:
        raise UsageError(f"criterion '{name}' needs a curvature")
    given = dict(evidence or {})
    if curvature is not None:
        given["h"] = curvature.diag
    generator = torch.Generator().manual_seed(seed)
    missing = [need for need in chosen.needs if need not in given and need != "generator"]
    if missing:
        raise UsageError(f"criterion '{name}' needs {missing[0]}")
    values = {weight: value.detach() for weight, value in weights.items()}

    def arguments(weight: str) -> list:
        return [generator if need == "generator" else given[need][weight] for need in chosen.needs]

    scores = {weight: chosen.function(value, *arguments(weight)) for weight, value in values.items()}
    if curvature is None:
        return Saliency(scores, name)
    change = {weight: 0.5 * curvature.diag[weight] * value.square() for weight, value in values.items()}
    return Saliency(scores, name, change)
