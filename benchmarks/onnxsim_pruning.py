"""onnxsim's removal of whole channels and neurons: what ``benchmarks.width`` compares with.

Only this file imports it (``pip install onnxsim==0.8.1``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx
from onnxsim.pruning import apply_structured_pruning, apply_structured_wanda_pruning

from onnx_obd.calibration.samples import Feed

VARIANTS: dict[str, Callable[[onnx.ModelProto, Sequence[Feed], float], onnx.ModelProto]] = {
    "L2": lambda model, feeds, sparsity: apply_structured_pruning(model, sparsity),
    "Wanda": lambda model, feeds, sparsity: apply_structured_wanda_pruning(model, feeds, sparsity=sparsity),
}
"""By the norm of what makes a unit; by that times the norm of the unit's values on the samples."""
