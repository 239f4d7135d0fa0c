"""How good a model is on the test part of its data, in onnxruntime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
from sklearn.metrics import accuracy_score, r2_score

from sample_models.train.datasets import Split


def predict(path: Path, x: np.ndarray) -> np.ndarray:
    """The last output [N, ...] of the model for the samples `x`, one at a time where the batch is fixed at 1."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    name, shape = session.get_inputs()[0].name, session.get_inputs()[0].shape
    output = session.get_outputs()[-1].name
    batches = np.split(x, len(x)) if shape[0] == 1 else [x]
    return np.concatenate([session.run([output], {name: batch})[0] for batch in batches])


def score(path: Path, split: Split) -> tuple[str, float]:
    """("accuracy", a) for class indices or ("R²", r) for targets, on the test part of `split`."""
    predicted = predict(path, split.test_x)
    if np.issubdtype(split.test_y.dtype, np.integer):
        return "accuracy", float(accuracy_score(split.test_y, predicted.argmax(axis=1)))
    return "R²", float(r2_score(split.test_y, predicted))
