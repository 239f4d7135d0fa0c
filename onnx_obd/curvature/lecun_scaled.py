"""LeCun's pattern with an unbiased scale: the default estimator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from onnx_obd.calibration.measure import Calibration
from onnx_obd.curvature.ggn_probes import ggn_probes
from onnx_obd.curvature.lecun import lecun
from onnx_obd.curvature.registry import Progress, estimator
from onnx_obd.records import Curvature


@estimator("lecun_scaled")
def lecun_scaled(
    calibration: Calibration,
    probed: Calibration,
    names: Sequence[str],
    *,
    num_probes: int,
    generator: torch.Generator,
    progress: Progress | None,
) -> Curvature:
    """LeCun's recursion, each tensor multiplied so that its summed saliency is that of a few Gauss-Newton probes.

    scale = sum(h_ggn · w²) / sum(h_lecun · w²) per tensor, with h_ggn from the samples of ``probed``. The
    recursion knows the pattern within a tensor from all samples at the price of one pass; the probes know the cross
    terms it drops, but singly are noisy. A tensor the recursion does not reach takes the probes' own diagonal.
    """
    pattern = lecun(calibration, probed, names, num_probes=num_probes, generator=generator, progress=progress)
    probes = ggn_probes(calibration, probed, names, num_probes=num_probes, generator=generator, progress=None)
    diag, scale = {}, {}
    for name, h in pattern.diag.items():
        squares = calibration.mirror.weights[name].detach().square()
        raw, unbiased = float((h * squares).sum()), float((probes.diag[name] * squares).sum())
        scale[name] = unbiased / raw if raw > 0 else 0.0
        diag[name] = h * scale[name] if raw > 0 else probes.diag[name]
    return replace(pattern, diag=diag, estimator="lecun_scaled", scale=scale)
