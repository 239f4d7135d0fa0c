"""The diagonal of the Hessian itself, by random signs and double back-propagation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from onnx_obd.calibration.heads import random_signs
from onnx_obd.calibration.measure import Batch, Calibration
from onnx_obd.curvature.registry import Progress, estimator
from onnx_obd.errors import UsageError
from onnx_obd.mirror.second import Call, carries_h
from onnx_obd.records import Curvature


@estimator("hessian_diag")
def hessian_diag(
    calibration: Calibration,
    probed: Calibration,
    names: Sequence[str],
    *,
    num_probes: int,
    generator: torch.Generator,
    progress: Progress | None,
) -> Curvature:
    """E[v * (H v)] = diag(H) for random signs v over all weights, H the Hessian of the mean loss over all samples.

    Unbiased, and the only estimator here that sees negative curvature. Its variance is the squared off-diagonal part of
    each row, so it takes many probes: ``num_probes`` for every batch.

    Raises:
        UsageError: a node has no second derivative in torch; the message names it.

    Source: Hutchinson 1989; Bekas, Kokiopoulou, Saad 2007.
    """
    weights = [calibration.mirror.weights[name] for name in names]
    total = [torch.zeros_like(weight.detach()) for weight in weights]
    for done, batch in enumerate(calibration.batches):
        share = batch.count / calibration.num_samples / num_probes
        for _ in range(num_probes):
            signs = [random_signs(weight, generator) for weight in weights]
            products = _hessian_product(calibration, batch, weights, signs)
            for sum_, v, product in zip(total, signs, products, strict=True):
                if product is not None:
                    sum_ += v * product * share
        if progress:
            progress(done + 1, len(calibration.batches))
    return Curvature(dict(zip(names, total, strict=True)), "hessian_diag", calibration.num_samples)


def _hessian_product(
    calibration: Calibration, batch: Batch, weights: Sequence[Tensor], direction: Sequence[Tensor]
) -> Sequence[Tensor | None]:
    mirror, objective = calibration.mirror, calibration.objective
    with torch.enable_grad():
        values = mirror.evaluate(batch.inputs, outputs=objective.slots)
        loss = objective.loss(values, batch.targets, batch.count)
        try:
            slopes = torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True)
            pairs = [(g, v) for g, v in zip(slopes, direction, strict=True) if g is not None and g.requires_grad]
            if not pairs:
                return [None] * len(weights)
            return torch.autograd.grad([g for g, _ in pairs], weights, [v for _, v in pairs], allow_unused=True)
        except RuntimeError as error:
            node = _without_second_derivative(calibration, batch)
            reason = str(error).splitlines()[0]
            raise UsageError(f"{node} has no second derivative ({reason}); use another --curvature") from error


def _without_second_derivative(calibration: Calibration, batch: Batch) -> str:
    """The first node that cannot be differentiated twice."""
    plan = calibration.mirror.plan(batch.inputs, calibration.objective.slots)
    with torch.no_grad():
        env = plan.record(calibration.mirror.start(batch.inputs, plan))
    for step in plan.steps:
        values = tuple(step.read_host([env[slot] for slot in step.inputs]))
        wanted = tuple(isinstance(value, Tensor) and carries_h(value) for value in values)
        if not any(wanted) or not step.operator.differentiable:
            continue
        leaves, results = Call(step.node, step.call, {}, values, (), wanted).differentiate()
        outputs = [value for value in results if isinstance(value, Tensor) and value.requires_grad]
        targets = [leaf for leaf in leaves if leaf is not None]
        try:
            found = torch.autograd.grad([y.sum() for y in outputs], targets, create_graph=True, allow_unused=True)
            twice = [g.sum() for g in found if g is not None and g.requires_grad]
            if twice:
                torch.autograd.grad(twice, targets, allow_unused=True)
        except RuntimeError:
            return f"node {step.node}"
    return "the model"
