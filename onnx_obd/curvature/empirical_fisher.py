"""The squared gradients of the loss against the true labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from onnx_obd.calibration.measure import Calibration
from onnx_obd.curvature.per_sample import mean_squares
from onnx_obd.curvature.registry import Progress, estimator
from onnx_obd.errors import UsageError
from onnx_obd.records import Curvature


@estimator("empirical_fisher")
def empirical_fisher(
    calibration: Calibration,
    probed: Calibration,
    names: Sequence[str],
    *,
    num_probes: int,
    generator: torch.Generator,
    progress: Progress | None,
) -> Curvature:
    """The mean over the samples of (dL_n/dw)², L_n the loss of sample n against its label.

    Not a curvature: it takes the place of one where the model fits its labels and its noise is of the assumed kind. On
    a well trained classifier nearly all of it is zero. Here for comparison.

    Raises:
        UsageError: the objective uses no labels: its gradient is then zero at the original weights.

    Source: Kunstner, Balles, Hennig 2019, "Limitations of the empirical Fisher approximation".
    """
    objective = probed.objective
    if not objective.supervised:
        raise UsageError(
            "empirical_fisher squares the gradients of the loss against labels, and the objective has none; "
            "give labels or use --curvature fisher_mc"
        )

    def directions(values, batch):
        gradients = objective.gradient(values, batch.targets, batch.count)
        return [[g * batch.count**0.5 for g in gradients]]  # of the mean loss: each sample's is 1 / count of its own

    return Curvature(mean_squares(probed, names, directions, progress), "empirical_fisher", probed.num_samples)
