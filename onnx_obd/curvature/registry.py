"""The estimators by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from onnx_obd.calibration.measure import Calibration
from onnx_obd.errors import NumericalError, UsageError
from onnx_obd.records import Curvature

Progress = Callable[[int, int], None]


class Estimator(Protocol):
    def __call__(
        self,
        calibration: Calibration,
        probed: Calibration,
        names: Sequence[str],
        *,
        num_probes: int,
        generator: torch.Generator,
        progress: Progress | None,
    ) -> Curvature: ...


ESTIMATORS: dict[str, Estimator] = {}


def estimator(name: str) -> Callable[[Estimator], Estimator]:
    def register(function: Estimator) -> Estimator:
        ESTIMATORS[name] = function
        return function

    return register


def find_estimator(name: str) -> Estimator:
    """The estimator of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in ESTIMATORS:
        raise UsageError(f"no curvature '{name}'; there are {', '.join(sorted(ESTIMATORS))}")
    return ESTIMATORS[name]


def estimate_curvature(
    name: str,
    calibration: Calibration,
    probed: Calibration,
    names: Sequence[str],
    *,
    num_probes: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
) -> Curvature:
    """The diagonal curvature of the mean loss with respect to the named weights, as they are now.

    Args:
        name: one of ``ESTIMATORS``.
        calibration: the scoring samples in batches.
        probed: those of them that get probes; gradients are squared sample by sample.
        names: the weights.
        num_probes: random vectors per sample.
        seed: of the random vectors.

    Raises:
        UsageError: no such estimator.
        NumericalError: a curvature that is not finite; the message names the weight.
    """
    generator = torch.Generator().manual_seed(seed)
    found = find_estimator(name)(
        calibration, probed, names, num_probes=num_probes, generator=generator, progress=progress
    )
    for weight, diag in found.diag.items():
        if not math.isfinite(diag.sum()) and not torch.isfinite(diag).all():  # of finite numbers the sum may overflow
            raise NumericalError(f"the curvature of '{weight}' is not finite; are the samples in the right range?")
    return found
