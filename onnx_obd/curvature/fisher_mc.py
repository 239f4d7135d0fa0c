"""The Fisher information by sampled labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from onnx_obd.calibration.measure import Calibration
from onnx_obd.curvature.per_sample import mean_squares
from onnx_obd.curvature.registry import Progress, estimator
from onnx_obd.records import Curvature


@estimator("fisher_mc")
def fisher_mc(
    calibration: Calibration,
    probed: Calibration,
    names: Sequence[str],
    *,
    num_probes: int,
    generator: torch.Generator,
    progress: Progress | None,
) -> Curvature:
    """E over x of the samples and y of p(y | x) of (d log p(y | x) / dw)², the diagonal of the Fisher information.

    Labels are drawn from the model's own predictions: classes from its softened softmax, bits from its sigmoids, normal
    values of the objective's variance around its outputs; ``num_probes`` draws per sample. For these likelihoods the
    Fisher information is the Gauss-Newton matrix, so this estimates what ``ggn_probes`` does, with more variance where
    predictions are confident.

    Source: Martens 2014, "New insights and perspectives on the natural gradient method", section 9.
    """
    objective = probed.objective

    def directions(values, batch):
        for _ in range(num_probes):
            draw = objective.draw(values, batch.targets, batch.count, generator)
            yield [u / num_probes**0.5 for u in draw]

    return Curvature(mean_squares(probed, names, directions, progress), "fisher_mc", probed.num_samples)
