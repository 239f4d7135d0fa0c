"""Diagonal second derivatives of an objective with respect to the weights of a mirror.

Each estimator is one file and one function, registered under the name that ``--curvature`` takes:

    lecun         back-propagation of second derivatives, Levenberg-Marquardt form (Le Cun, Denker, Solla 1989)
    lecun_scaled  the same pattern, each tensor scaled to a few unbiased probes of the Gauss-Newton diagonal
    ggn_probes    Gauss-Newton diagonal by random probes of the output factor, sample by sample
"""

import importlib
import pkgutil

from onnx_obd.curvature.registry import ESTIMATORS, estimate_curvature, find_estimator

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["ESTIMATORS", "estimate_curvature", "find_estimator"]
