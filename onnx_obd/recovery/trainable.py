"""Which weights training may move."""

from __future__ import annotations

from collections.abc import Sequence

from onnx_obd.mirror.mirror import Mirror
from onnx_obd.mirror.uses import Use, reaching, uses_of


def trainable_weights(mirror: Mirror, outputs: Sequence[int]) -> list[str]:
    """The weights that may be trained towards the values in the slots ``outputs``, in the mirror's order.

    These are what multiplies the data, biases, and the scale and bias of normalisations. Left alone are operands that
    describe the operation (``Operator.constants``: running statistics, quantisation scales, exponents, ...), what the
    mirror reads on the host (sizes, scales of Resize), and single numbers that belong to no kernel or matrix, such as
    the bounds of a Clip. A weight with several uses has to pass in all of them.
    """
    reached = reaching(mirror.program, tuple(outputs))
    found = []
    for name, slot in mirror.weight_slots().items():
        weight = mirror.weights[name]
        uses = uses_of(mirror.program, slot)
        if slot in reached and uses and all(_learns(use, weight.numel()) for use in uses):
            found.append(name)
    return found


def _learns(use: Use, size: int) -> bool:
    operator = use.operator
    if use.position in (*operator.constants, *operator.host) or (operator.recodes and use.position > 0):
        return False
    return size > 1 or bool(operator.weights)
