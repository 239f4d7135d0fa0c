"""The data: small real data sets that come with scikit-learn, each split once and for all."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_wine
from sklearn.model_selection import train_test_split


@dataclass(frozen=True)
class Split:
    """A data set in two parts.

    `train_x` and `test_x` are float32 [N, ...] as the network takes them; `train_y` and `test_y` are int64 class
    indices [N], or float32 targets [N, 1] for a regression.
    """

    train_x: np.ndarray
    test_x: np.ndarray
    train_y: np.ndarray
    test_y: np.ndarray

    def standardised(self) -> Split:
        """The same split with every feature at mean 0 and variance 1 over the training part."""
        mean, std = self.train_x.mean(axis=0), self.train_x.std(axis=0)
        return replace(self, train_x=(self.train_x - mean) / std, test_x=(self.test_x - mean) / std)


def _split(x: np.ndarray, y: np.ndarray) -> Split:
    """A quarter to test on; the classes keep their shares in both parts."""
    is_class_index = np.issubdtype(y.dtype, np.integer)
    y = y.astype(np.int64) if is_class_index else y.astype(np.float32)[:, np.newaxis]
    stratify = y if is_class_index else None
    return Split(*train_test_split(x.astype(np.float32), y, test_size=0.25, random_state=0, stratify=stratify))


def digits() -> Split:
    """Handwritten digits, 1797 grey images [1, 8, 8] with values in [0, 1], ten classes."""
    x, y = load_digits(return_X_y=True)
    return _split(x.reshape(-1, 1, 8, 8) / 16, y)


def breast_cancer() -> Split:
    """Breast cancer Wisconsin, 569 samples of 30 features in their own units, two classes."""
    return _split(*load_breast_cancer(return_X_y=True))


def wine() -> Split:
    """Wine, 178 samples of 13 standardised features, three classes."""
    return _split(*load_wine(return_X_y=True)).standardised()


def diabetes() -> Split:
    """Diabetes, 442 samples of 10 standardised features; the target is a measure of the disease's progression."""
    return _split(*load_diabetes(return_X_y=True)).standardised()
