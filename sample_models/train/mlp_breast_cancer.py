"""scikit-learn's MLPClassifier behind a StandardScaler; exported by skl2onnx, opset 15.

The graph has two outputs: `label`, which no gradient reaches, and `probabilities`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from sklearn.datasets import load_breast_cancer
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sample_models.train.datasets import Split
from sample_models.train.datasets import breast_cancer as load

__all__ = ["load", "train", "write_samples"]

CALIBRATION_SAMPLES = 300


def train(split: Split) -> onnx.ModelProto:
    """30 features, 64 and 32 hidden neurons, the probabilities of two classes."""
    from skl2onnx import to_onnx  # here, since tests read `load` without it

    scaler = StandardScaler()
    classifier = make_pipeline(scaler, MLPClassifier((64, 32), alpha=1.0, max_iter=500, random_state=0))
    classifier.fit(split.train_x, split.train_y)
    return to_onnx(
        classifier,
        split.train_x[:1],
        name="breast_cancer",
        target_opset={"": 15, "ai.onnx.ml": 3},
        # Probabilities as a tensor, not a map; the scaler as Sub and Div, not as ai.onnx.ml's Scaler.
        options={id(classifier): {"zipmap": False}, id(scaler): {"div": "div"}},
    )


def write_samples(split: Split, model: Path) -> None:
    """A table with the features' names in its header and the class in its last column."""
    folder = model.with_name(f"{model.stem}_calib")
    folder.mkdir()
    features = [name.replace(" ", "_") for name in load_breast_cancer().feature_names]
    rows = zip(split.train_x[:CALIBRATION_SAMPLES], split.train_y, strict=False)
    lines = [",".join((*features, "label"))]
    lines += [",".join((*(np.format_float_positional(value, trim="-") for value in x), str(y))) for x, y in rows]
    (folder / "samples.csv").write_text("\n".join(lines) + "\n")
