"""The Gauss-Newton diagonal by random probes, unbiased on any graph."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from onnx_obd.calibration.measure import Calibration
from onnx_obd.curvature.per_sample import mean_squares
from onnx_obd.curvature.registry import Progress, estimator
from onnx_obd.records import Curvature


@estimator("ggn_probes")
def ggn_probes(
    calibration: Calibration,
    probed: Calibration,
    names: Sequence[str],
    *,
    num_probes: int,
    generator: torch.Generator,
    progress: Progress | None,
) -> Curvature:
    """diag(Jᵀ H J) averaged over the samples: E[(Jᵀ S e)²] = diag(Jᵀ S Sᵀ J) for random signs e, H = S Sᵀ.

    J is the Jacobian of the objective's values with respect to a weight for one sample, H the Hessian of the loss with
    respect to these values. The square is of a gradient of one sample. Unbiased; every cross term of shared weights is
    in it. Relative standard deviation of an element about sqrt(2 / (num_probes · samples)).

    Source: Schraudolph 2002 (Gauss-Newton products); Dangel, Kunstner, Hennig 2020, section 2 (factor S).
    """
    objective = probed.objective

    def directions(values, batch):
        for _ in range(num_probes):
            draw = objective.probe(values, batch.targets, batch.count, generator)
            yield [u / num_probes**0.5 for u in draw]

    return Curvature(mean_squares(probed, names, directions, progress), "ggn_probes", probed.num_samples)
