"""Scores from weights and curvature: the lower the score, the sooner the weight goes. One file per criterion."""

import importlib
import pkgutil

from onnx_obd.saliency.registry import CRITERIA, METHODS, Criterion, criteria_of, find_criterion, score

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["CRITERIA", "METHODS", "Criterion", "criteria_of", "find_criterion", "score"]
