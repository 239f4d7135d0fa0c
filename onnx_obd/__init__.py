"""onnx-obd: Optimal Brain Damage for ONNX models, proved in onnxruntime."""

from onnx_obd._version import __version__
from onnx_obd.mirror.mirror import Mirror

__all__ = ["Mirror", "__version__"]
