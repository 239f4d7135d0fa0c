"""What criteria look at beside the weights: readings of the curvature, first derivatives, the size of the inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from onnx_obd.calibration.measure import Batch, Calibration
from onnx_obd.curvature.per_sample import mean_squares
from onnx_obd.curvature.sample_axes import InseparableError
from onnx_obd.errors import UsageError
from onnx_obd.records import Curvature
from onnx_obd.saliency import Criterion
from onnx_obd.surgery.operands import Operand, find_operands
from onnx_obd.surgery.surgeon import surgeon_curvature

CHUNK = 4096
"""Positions of a node's input that are unfolded at once."""


def gather(
    criterion: Criterion,
    calibration: Calibration,
    names: Sequence[str],
    curvature: Curvature | None = None,
    operands: Sequence[Operand] = (),
) -> dict[str, Mapping[str, Tensor]]:
    """Everything the criterion needs but the curvature itself, with the mirror's present weights.

    Args:
        curvature, operands: what readings of the curvature are made from.

    Raises:
        UsageError: it needs gradients and the samples have no labels.
    """
    makers = {"gradient": mean_gradient, "squared_gradient": mean_squared_gradient, "input_norm": input_norms}
    needs = [need for need in criterion.needs if need in makers]
    if any("gradient" in need for need in needs) and not calibration.objective.supervised:
        raise UsageError(
            f"criterion '{criterion.name}' needs labels: without them the loss is the divergence from the original, "
            "whose gradient is zero there"
        )
    found = {need: makers[need](calibration, names) for need in needs}
    readings = [need for need in criterion.needs if need in READINGS]
    return found | {need: READINGS[need](calibration, operands, curvature.diag) for need in readings}


def mean_of_output(calibration: Calibration, operands: Sequence[Operand], h: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """h averaged over the weights of the same output; h itself where outputs are not known."""
    return _averaged(operands, h, -1)


def mean_of_input(calibration: Calibration, operands: Sequence[Operand], h: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """h averaged over the weights of the same input; h itself where inputs are not known."""
    return _averaged(operands, h, -2)


def _averaged(operands: Sequence[Operand], h: Mapping[str, Tensor], axis: int) -> dict[str, Tensor]:
    found = dict(h)
    for operand in operands:
        matrix = operand.matrix(h[operand.name])
        mean = matrix.mean(axis, keepdim=True).expand_as(matrix)
        found[operand.name] = operand.unmatrix(mean, h[operand.name])
    return found


READINGS = {"h_of_output": mean_of_output, "h_of_input": mean_of_input, "h_of_surgeon": surgeon_curvature}
"""One curvature, read in several ways; which ranks best is found by measuring."""


def mean_gradient(calibration: Calibration, names: Sequence[str]) -> dict[str, Tensor]:
    """∂L/∂w of the mean loss over the samples."""
    mirror, objective = calibration.mirror, calibration.objective
    weights = [mirror.weights[name] for name in names]
    total = [torch.zeros_like(weight) for weight in weights]
    for batch in calibration.batches:
        values = mirror.evaluate(batch.inputs, outputs=objective.slots)
        loss = objective.loss(values, batch.targets, batch.count)
        found = torch.autograd.grad(loss, weights, allow_unused=True)
        for sum_so_far, gradient in zip(total, found, strict=True):
            if gradient is not None:
                sum_so_far += gradient * (batch.count / calibration.num_samples)
    return dict(zip(names, (value.detach() for value in total), strict=True))


def mean_squared_gradient(calibration: Calibration, names: Sequence[str]) -> dict[str, Tensor]:
    """The mean over the samples of (∂L_n/∂w)²."""

    def direction(values: Sequence[Tensor], batch: Batch):
        with torch.enable_grad():
            leaves = [value.detach().requires_grad_() for value in values]
            loss = calibration.objective.loss(leaves, batch.targets, batch.count)
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
        # The gradient of a sample is this times the count; the mean over the batch divides its square by the count.
        yield [gradient * batch.count**0.5 for gradient in gradients]

    try:
        return mean_squares(calibration, names, direction)
    except InseparableError:
        return mean_squares(calibration.singles(calibration.num_samples), names, direction)


@torch.no_grad()
def input_norms(calibration: Calibration, names: Sequence[str]) -> dict[str, Tensor]:
    """For every weight the L2 norm of what it multiplies, over all samples and positions; 1 where that is not known.

    Not known are operands of nodes without a matrix form, such as recurrences: their scores are then magnitudes.
    """
    mirror = calibration.mirror
    operands, _ = find_operands(mirror, calibration.batches[0], names)
    squares = {name: torch.zeros_like(mirror.weights[name]) for name in names}
    for batch in calibration.batches:
        for operand in operands:
            product = operand.product(mirror.evaluate(batch.inputs, outputs=operand.slots))
            parts = [
                product.features(torch.arange(start, min(start + CHUNK, product.positions))).square().sum(1)
                for start in range(0, product.positions, CHUNK)
            ]
            norms = sum(parts)[:, None, :].expand(operand.elements.shape)  # [G, R, K]
            squares[operand.name] += operand.unmatrix(norms, squares[operand.name])
    known = {operand.name for operand in operands}
    return {name: value.sqrt() if name in known else torch.ones_like(value) for name, value in squares.items()}
