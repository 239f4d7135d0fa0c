"""The Gauss-Newton diagonal by random probes, unbiased on any graph."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from onnx_obd.calibration.measure import Calibration
from onnx_obd.curvature.registry import Progress, estimator
from onnx_obd.records import Curvature


@estimator("ggn_probes")
def ggn_probes(
    calibration: Calibration,
    singles: Calibration,
    names: Sequence[str],
    *,
    num_probes: int,
    generator: torch.Generator,
    progress: Progress | None,
) -> Curvature:
    """diag(Jᵀ H J) averaged over the samples: E[(Jᵀ S e)²] = diag(Jᵀ S Sᵀ J) for random signs e, H = S Sᵀ.

    J is the Jacobian of the objective's values with respect to a weight for one sample, H the Hessian of the loss with
    respect to these values. The square is of a gradient of one sample, so the samples go one by one (``singles``).
    Unbiased; every cross term of shared weights is in it. Relative standard deviation of an element about
    sqrt(2 / (num_probes · samples)).

    Source: Schraudolph 2002 (Gauss-Newton products); Dangel, Kunstner, Hennig 2020, section 2 (factor S).
    """
    mirror, objective = singles.mirror, singles.objective
    weights = [mirror.weights[name] for name in names]
    total = [torch.zeros_like(weight.detach()) for weight in weights]
    for done, batch in enumerate(singles.batches):
        with torch.enable_grad():
            values = mirror.evaluate(batch.inputs, outputs=objective.slots)
        for probe in range(num_probes):
            with torch.no_grad():
                cotangents = objective.probe(values, batch.targets, batch.count, generator)
            pairs = [(v, u) for v, u in zip(values, cotangents, strict=True) if v.requires_grad]
            if not pairs:
                break
            gradients = torch.autograd.grad(
                [v for v, _ in pairs],
                weights,
                [u for _, u in pairs],
                retain_graph=probe + 1 < num_probes,
                allow_unused=True,
            )
            for sum_, gradient in zip(total, gradients, strict=True):
                if gradient is not None:
                    sum_ += gradient.square()
        if progress:
            progress(done + 1, len(singles.batches))
    scale = 1.0 / (num_probes * max(1, len(singles.batches)))
    diag = {name: value * scale for name, value in zip(names, total, strict=True)}
    return Curvature(diag, "ggn_probes", singles.num_samples)
