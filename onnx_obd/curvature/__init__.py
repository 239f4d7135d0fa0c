"""Diagonal second derivatives of an objective with respect to the weights of a mirror.

Each estimator is one file and one function, registered under the name that ``--curvature`` takes:

    lecun             back-propagation of second derivatives, Levenberg-Marquardt form (Le Cun, Denker, Solla 1989)
    lecun_full        the same with the term in the gradient
    lecun_scaled      the pattern of lecun, each tensor scaled to unbiased probes of the Gauss-Newton diagonal
    ggn_probes        Gauss-Newton diagonal by random probes of the output factor
    ggn_exact         Gauss-Newton diagonal, every column of the output factor
    fisher_mc         Fisher information by labels sampled from the model's predictions
    empirical_fisher  squared gradients against the true labels
    hessian_diag      Hessian diagonal by random signs through double back-propagation

What squares gradients does so sample by sample (``per_sample``).
"""

import importlib
import pkgutil

from onnx_obd.curvature.registry import ESTIMATORS, estimate_curvature, find_estimator

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["ESTIMATORS", "estimate_curvature", "find_estimator"]
