"""What a unit is worth: the curvature of a gate on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from onnx_obd.calibration.measure import feeds
from onnx_obd.calibration.objective import Objective
from onnx_obd.calibration.samples import Samples
from onnx_obd.mirror.mirror import Mirror
from onnx_obd.units.behind import slices_behind
from onnx_obd.units.find import Unit


def gate_saliency(
    mirror: Mirror,
    objective: Objective,
    samples: Samples,
    units: Sequence[Unit],
    *,
    num_probes: int = 1,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """s_u = ½ · E[(Σ_w w · ∂(eᵀSᵀz)/∂w)²] for every unit u, in units of the loss, of shape [len(units)].

    A gate c on the unit, now 1, multiplies what its consumers see of it, which is the same as multiplying their weights
    w in the slices that sum over the unit. dz/dc is therefore Σ w · dz/dw, and the Gauss-Newton curvature of the gate
    is E[(eᵀSᵀ dz/dc)²] over samples and random signs e, with S Sᵀ the Hessian of the objective with respect to the
    values z it looks at. Removing the unit sets c to 0: the loss rises by ½ of that curvature, to second order and with
    every cross term inside the unit. A paired unit, such as a dimension of queries and keys, has the gate on both sides
    of a product, so its slope is counted twice and halved.

    A unit of which nothing can be said (``slices_behind``) is infinitely dear.

    Args:
        samples: they go one by one, since the square is of one sample's gradient.
        num_probes: random sign vectors per sample; unbiased for any number.
    """
    gates = _Gates(mirror, units)
    weights = [mirror.weights[name] for name in gates.tensors]
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(len(units), dtype=torch.float64)
    singles = feeds(mirror, samples, 1) if weights else []
    for done, (inputs, _, _) in enumerate(singles):
        with torch.enable_grad():
            values = mirror.evaluate(inputs, outputs=objective.slots)
        targets = objective.targets([value.detach() for value in values], None)
        for probe in range(num_probes):
            with torch.no_grad():
                cotangents = objective.probe(values, targets, 1, generator)
            pairs = [(v, u) for v, u in zip(values, cotangents, strict=True) if v.requires_grad]
            gradients = torch.autograd.grad(
                [v for v, _ in pairs],
                weights,
                [u for _, u in pairs],
                retain_graph=probe + 1 < num_probes,
                allow_unused=True,
            )
            total += gates.slopes(gradients).square()
        if progress:
            progress(done + 1, len(singles))
    return (0.5 * total / (num_probes * max(1, len(singles)))).masked_fill(~gates.known, math.inf)


class _Gates:
    """Which weights stand behind the gate of which unit, arranged by tensor and axis."""

    def __init__(self, mirror: Mirror, units: Sequence[Unit]):
        self.mirror = mirror
        self.known = torch.zeros(len(units), dtype=torch.bool)
        self.share = torch.tensor([0.5 if unit.paired else 1.0 for unit in units], dtype=torch.float64)
        places: dict[tuple[str, int], tuple[list[int], list[int]]] = {}
        for number, unit in enumerate(units):
            for piece in slices_behind(mirror, unit):
                self.known[number] = True
                indices, numbers = places.setdefault((piece.tensor, piece.axis), ([], []))
                indices += piece.indices
                numbers += [number] * len(piece.indices)
        self.places = {key: tuple(map(torch.tensor, value)) for key, value in places.items()}
        self.tensors = list(dict.fromkeys(tensor for tensor, _ in places))

    def slopes(self, gradients: Sequence[Tensor | None]) -> Tensor:
        """d/dc of each gate: the sum of w · gradient over the weights behind it."""
        found = torch.zeros_like(self.share)
        products = {
            name: gradient * self.mirror.weights[name].detach()
            for name, gradient in zip(self.tensors, gradients, strict=True)
            if gradient is not None
        }
        for (tensor, axis), (indices, numbers) in self.places.items():
            if tensor in products:
                others = [other for other in range(products[tensor].dim()) if other != axis]
                along = products[tensor].sum(others) if others else products[tensor]
                found.index_add_(0, numbers, along[indices].double().cpu())
        return found * self.share
