"""Which weights stand behind a unit: without them the rest of the network sees nothing of it."""

from __future__ import annotations

from onnx_obd.mirror.mirror import Mirror
from onnx_obd.units.find import TensorSlice, Unit


def slices_behind(mirror: Mirror, unit: Unit) -> list[TensorSlice]:
    """The slices of parameters that read the unit; of a paired one, which activations read, all its slices.

    With these at zero the mirror computes what is left when the unit is removed. Empty if something reads the unit that
    is no parameter of the mirror: then nothing can be said of it.
    """
    wanted = unit.slices if unit.paired else [piece for piece in unit.slices if piece.summed]
    return list(wanted) if all(piece.tensor in mirror.weights for piece in wanted) else []
