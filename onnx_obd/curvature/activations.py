"""Second derivatives with respect to values: the saliency of an input variable, a neuron, a channel.

The recursion passes through every value on its way to the weights, so their curvature costs nothing more.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from onnx_obd.calibration.measure import Calibration
from onnx_obd.curvature.lecun import curvature_of_values
from onnx_obd.errors import UsageError


def activation_saliency(
    calibration: Calibration, values: Sequence[str], axis: int | None = 1, *, seed: int = 0
) -> dict[str, Tensor]:
    """Optimal Cell Damage: the predicted rise of the loss if a slice of a value is set to zero.

    s[c] = Σ over the samples n and the elements i of slice c of ½ · h_n[i] · a_n[i]², with a the value, h its diagonal
    curvature by LeCun's recursion in Levenberg-Marquardt form, both per sample, and the mean loss as objective. A slice
    is one index of ``axis``: a channel of [N, C, H, W], a neuron of [N, C], a variable of an input. Cross terms within
    a slice are dropped, so where a slice has many elements that act together it comes out too small; compare slices of
    one value with each other.

    Args:
        values: names of float values of the main graph (inputs, outputs of nodes) that the objective depends on.
        axis: the axis whose indices are judged; axis 0 holds the samples. None for every element of a sample by itself.
        seed: of the probes for operators without a rule of their own.

    Returns:
        value name -> tensor with one number for each index of the axis, or of the shape of a sample; loss units, not
        negative.

    Raises:
        UsageError: a name that is no value of the graph, or one the objective does not depend on.

    Source: Cibas, Fogelman Soulié, Gallinari, Raudys 1994, "Variable selection with Optimal Cell Damage", equation 5.
    """
    mirror = calibration.mirror
    for name in values:
        if name not in mirror.value_names:
            raise UsageError(f"the main graph has no value '{name}'")
    slots = {name: mirror.slot(name) for name in values}
    generator = torch.Generator().manual_seed(seed)
    total: dict[str, Tensor] = {}
    for batch in calibration.batches:
        found, env = curvature_of_values(calibration, batch, tuple(slots.values()), generator)
        for name, slot in slots.items():
            if not isinstance(found.get(slot), Tensor):
                raise UsageError(f"the objective does not depend on '{name}'")
            change = 0.5 * found[slot] * env[slot].detach().square()
            if axis is not None and not -change.dim() <= axis < change.dim():
                raise UsageError(f"'{name}' has {change.dim()} axes, no axis {axis}")
            others = [0] if axis is None else [d for d in range(change.dim()) if d != axis % change.dim()]
            part = (change.sum(others) if others else change) * (batch.count / calibration.num_samples)
            total[name] = total[name] + part if name in total else part
    return total
