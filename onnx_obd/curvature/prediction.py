"""What second derivatives predict for a whole deletion, its cross terms included.

The sum of saliencies, ½ Σ h_k w_k², is the paper's prediction. It drops the terms h_kl w_k w_l between weights that go
together, and these are what it is wrong by (docs/benchmarks.md). Once it is known which weights go, the whole quadratic
form costs no more than a forward pass.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from onnx_obd.calibration.measure import Calibration


def predict_jointly(calibration: Calibration, original: Mapping[str, Tensor], deleted: Mapping[str, Tensor]) -> float:
    """gᵀ d + ½ dᵀ G d with d = deleted − original: the predicted rise of the mean loss, all cross terms included.

    G is the Gauss-Newton matrix at the ``original`` weights, averaged over the samples, g the gradient there. Without
    labels, at the weights that the model came with, g is zero and G the whole Hessian. No matrix is formed: J d is one
    derivative of the forward pass along d, and the whole is (dL/dz)ᵀ (J d) + ½ (J d)ᵀ H (J d) for the objective's
    values z.

    Args:
        original: the weights before the deletion, by name.
        deleted: the weights after the deletion; those not named stay as they are in ``original``.

    Raises:
        NotImplementedError: a node has no forward derivative in torch.
    """
    mirror, objective = calibration.mirror, calibration.objective
    before = {name: original[name].detach() for name in deleted}
    along = {name: deleted[name].detach() - before[name] for name in deleted}
    total = 0.0
    for batch in calibration.batches:

        def values(weights: dict[str, Tensor], batch=batch) -> tuple[Tensor, ...]:
            return mirror.evaluate(batch.inputs, outputs=objective.slots, weights={**original, **weights})

        mirror.plan(batch.inputs, objective.slots)  # specialising reads values that a dual number does not have
        with torch.no_grad():
            at, moved = torch.func.jvp(values, (before,), (along,))
        with torch.enable_grad():
            leaves = [value.detach().requires_grad_() for value in at]
            loss = objective.loss(leaves, batch.targets, batch.count)
            slopes = torch.autograd.grad(loss, leaves, create_graph=True)
            products = torch.autograd.grad(slopes, leaves, list(moved))
        terms = zip(moved, slopes, products, strict=True)
        total += batch.count * sum(float((move * (slope.detach() + 0.5 * hm)).sum()) for move, slope, hm in terms)
    return total / calibration.num_samples
