"""The Gauss-Newton diagonal without randomness, for outputs of few elements."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from onnx_obd.calibration.measure import Calibration
from onnx_obd.curvature.per_sample import mean_squares
from onnx_obd.curvature.registry import Progress, estimator
from onnx_obd.errors import UsageError
from onnx_obd.records import Curvature

MAX_COLUMNS = 512
"""Output elements per sample, over all heads."""

SAMPLES = 64
"""To go through all columns at once: fewer stay in cache better, more keep fixed costs low (measured)."""


@estimator("ggn_exact")
def ggn_exact(
    calibration: Calibration,
    probed: Calibration,
    names: Sequence[str],
    *,
    num_probes: int,
    generator: torch.Generator,
    progress: Progress | None,
) -> Curvature:
    """diag(Jᵀ H J) averaged over the samples, from every column u of the output factor: Σ (Jᵀ u)², H = Σ u uᵀ.

    One backward pass for each element that the objective looks at in a sample: for classifiers of up to some hundred
    classes.

    Raises:
        UsageError: there are more than ``MAX_COLUMNS``.

    Source: Dangel, Kunstner, Hennig 2020, section 2 ("DiagGGN").
    """
    objective = probed.objective

    def directions(values, batch):
        columns = sum(value.numel() for value in values) // batch.count
        if columns > MAX_COLUMNS:
            raise UsageError(
                f"ggn_exact takes one backward pass for each of the {columns} output elements of a sample, and at most "
                f"{MAX_COLUMNS}; use --curvature ggn_probes"
            )
        return objective.columns(values, batch.targets, batch.count)

    diag = mean_squares(probed.in_parts(SAMPLES), names, directions, progress)
    return Curvature(diag, "ggn_exact", probed.num_samples)
