"""Handwritten digits of 16 x 16 pixels: USPS zip codes, or scikit-learn's digits drawn twice as large."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Digits:
    """Images [N, 1, 16, 16] in [-1, 1], and targets [N, 10]: +1 for the class, -1 for the others, as in the paper."""

    images: np.ndarray
    classes: np.ndarray
    name: str

    @property
    def targets(self) -> np.ndarray:
        return np.where(np.eye(10, dtype=bool)[self.classes], 1.0, -1.0).astype(np.float32)


def load_digits(folder: Path | None) -> tuple[Digits, Digits]:
    """Training and test part. ``folder`` holds usps.npz: train_x, test_x float [N, 256] in [0, 1], train_y, test_y."""
    if folder is not None:
        with np.load(folder / "usps.npz", allow_pickle=False) as z:
            parts = [(z[f"{part}_x"].reshape(-1, 16, 16), z[f"{part}_y"]) for part in ("train", "test")]
        return tuple(_digits(x, y, "USPS zip codes") for x, y in parts)
    from sklearn.datasets import load_digits as load

    data = load()
    x = data.images.repeat(2, 1).repeat(2, 2) / 16
    order = np.random.default_rng(0).permutation(len(x))
    return tuple(_digits(x[part], data.target[part], "scikit-learn") for part in (order[450:], order[:450]))


def _digits(x: np.ndarray, y: np.ndarray, name: str) -> Digits:
    return Digits((2 * x[:, None] - 1).astype(np.float32), y.astype(np.int64), name)
