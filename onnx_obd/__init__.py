"""onnx-obd: Optimal Brain Damage for ONNX models, proved in onnxruntime.

    import onnx_obd
    result = onnx_obd.prune("model.onnx", data="calib/", sparsity=0.7)
    print(result.report.exported.agreement)

The same stages one by one: ``load_model``, ``load_samples``, ``prepare`` (mirror, objective, targets),
``estimate_curvature``, ``score``, ``plan_elements``, ``apply_masks``, ``Training``, ``export_model``.
"""

from onnx_obd._version import __version__
from onnx_obd.calibration.folder import load_samples
from onnx_obd.calibration.image_options import ImageOptions
from onnx_obd.calibration.samples import Samples
from onnx_obd.cells import inspect_cells
from onnx_obd.curvature import estimate_curvature
from onnx_obd.curvature.activations import activation_saliency
from onnx_obd.curvature.prediction import predict_jointly
from onnx_obd.curvature.store import CurvatureKey, load_curvature, save_curvature
from onnx_obd.errors import OnnxObdError
from onnx_obd.export import densify_model, export_model
from onnx_obd.graph.load import Model, load_model
from onnx_obd.mirror.mirror import Mirror
from onnx_obd.options import Options
from onnx_obd.pipeline import Result, bench, inspect, prepare, prune
from onnx_obd.plan.elementwise import plan_elements
from onnx_obd.plan.selection import select_weights
from onnx_obd.records import Curvature, Plan, Report, Saliency
from onnx_obd.recovery import Recipe, Training
from onnx_obd.saliency import score
from onnx_obd.surgery.mask import apply_masks

__all__ = [
    "Curvature",
    "CurvatureKey",
    "ImageOptions",
    "Mirror",
    "Model",
    "OnnxObdError",
    "Options",
    "Plan",
    "Recipe",
    "Report",
    "Result",
    "Saliency",
    "Samples",
    "Training",
    "__version__",
    "activation_saliency",
    "apply_masks",
    "bench",
    "densify_model",
    "estimate_curvature",
    "export_model",
    "inspect",
    "inspect_cells",
    "load_curvature",
    "load_model",
    "load_samples",
    "plan_elements",
    "predict_jointly",
    "prepare",
    "prune",
    "save_curvature",
    "score",
    "select_weights",
]
