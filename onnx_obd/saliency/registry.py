"""The criteria by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from onnx_obd.errors import UsageError
from onnx_obd.records import Curvature, Saliency

Function = Callable[[Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Criterion:
    """``function(weight, h)`` gives the scores of one tensor; h is None unless ``needs_curvature``."""

    name: str
    function: Function
    needs_curvature: bool


CRITERIA: dict[str, Criterion] = {}


def criterion(name: str, *, needs_curvature: bool) -> Callable[[Function], Function]:
    def register(function: Function) -> Function:
        CRITERIA[name] = Criterion(name, function, needs_curvature)
        return function

    return register


def find_criterion(name: str) -> Criterion:
    """The criterion of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in CRITERIA:
        raise UsageError(f"no criterion '{name}'; there are {', '.join(sorted(CRITERIA))}")
    return CRITERIA[name]


def score(name: str, weights: Mapping[str, Tensor], curvature: Curvature | None) -> Saliency:
    """Scores of the named criterion for all weights.

    Raises:
        UsageError: no such criterion, or it needs a curvature and got none.
    """
    chosen = find_criterion(name)
    if chosen.needs_curvature and curvature is None:
        raise UsageError(f"criterion '{name}' needs a curvature")
    h = curvature.diag if curvature is not None else dict.fromkeys(weights)
    values = {weight: value.detach() for weight, value in weights.items()}
    scores = {weight: chosen.function(value, h[weight]) for weight, value in values.items()}
    change = None if curvature is None else {weight: 0.5 * h[weight] * w.square() for weight, w in values.items()}
    return Saliency(scores, name, change)
