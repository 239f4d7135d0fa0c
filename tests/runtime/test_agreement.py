from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from onnx_obd.errors import DataError, UsageError
from onnx_obd.runtime.agreement import measure_agreement, paired_difference
from tests.export.models import normal


def softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    return torch.softmax(torch.from_numpy(x), axis).numpy()


def test_errors_per_output():
    a, b = normal(5, 7), normal(5, 7, seed=1)
    agreement = measure_agreement(["y", "z"], [a, a], [b, a])
    y, z = agreement.outputs
    assert (y.name, z.name) == ("y", "z")
    assert y.max_abs == pytest.approx(np.abs(b - a).max())
    assert y.relative == pytest.approx(np.linalg.norm(b - a) / np.linalg.norm(a))
    assert (z.max_abs, z.relative) == (0, 0)
    assert agreement.num_samples == 5
    assert agreement.top1_agreement is None


def test_values_that_are_not_finite():
    a = np.float32([[1, np.inf, np.nan]])
    assert measure_agreement(["y"], [a], [a]).outputs[0].max_abs == 0
    for other in ([[1, np.nan, np.nan]], [[np.inf, np.inf, np.nan]], [[1, -np.inf, np.nan]]):
        error = measure_agreement(["y"], [a], [np.float32(other)]).outputs[0]
        assert math.isnan(error.max_abs)
    zero = np.zeros((2, 3))
    assert measure_agreement(["y"], [zero], [zero + 1]).outputs[0].relative == math.inf


def test_outputs_of_different_shapes_are_counted():
    def ragged(*lengths: int) -> np.ndarray:
        rows = np.empty(len(lengths), dtype=object)
        for index, length in enumerate(lengths):
            rows[index] = np.full((length, 4), index, np.float32)
        return rows

    error = measure_agreement(["boxes"], [ragged(2, 3, 1)], [ragged(2, 5, 1)]).outputs[0]
    assert (error.incomparable, error.max_abs) == (1, 0)
    names = np.array(["cat", "dog"])
    assert measure_agreement(["label"], [names], [names]).outputs[0].incomparable == 1


def kl_by_torch(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over rows of KL(softmax a || softmax b)."""
    log_a, log_b = (torch.log_softmax(torch.from_numpy(x).double(), 1) for x in (a, b))
    return float(torch.nn.functional.kl_div(log_b, log_a, reduction="batchmean", log_target=True))


def test_divergence_and_top1():
    a, b = normal(50, 7), normal(50, 7) + 0.8 * normal(50, 7, seed=1)
    agreement = measure_agreement(["y"], [a], [b], task="classification")
    assert agreement.kl == pytest.approx(kl_by_torch(a, b))
    assert agreement.top1_agreement == np.mean(a.argmax(1) == b.argmax(1))
    assert 0 < agreement.top1_agreement < 1
    assert agreement.num_decisions == 50
    assert agreement.accuracy_original is None


def test_probabilities_are_recognised():
    a, b = normal(50, 7), normal(50, 7, seed=1)
    agreement = measure_agreement(["p"], [softmax(a)], [softmax(b)], task="classification")
    assert agreement.kl == pytest.approx(kl_by_torch(a, b), rel=1e-5)
    certain = np.eye(3, dtype=np.float32)
    assert measure_agreement(["p"], [certain], [certain], task="classification").kl == 0
    wrong = measure_agreement(["p"], [certain], [certain[::-1]], task="classification").kl
    assert 10 < wrong < math.inf


@pytest.mark.parametrize("probability", [False, True])
def test_a_single_column_is_two_classes(probability):
    a, b = 2 * normal(40, 1), 2 * normal(40, 1, seed=1)
    columns = [1 / (1 + np.exp(-x)) if probability else x for x in (a, b)]
    labels = (normal(40, seed=2) > 0).astype(np.int64)
    agreement = measure_agreement(["y"], [columns[0]], [columns[1]], labels, task="classification")
    logits = [np.hstack([np.zeros_like(x), x]) for x in (a, b)]
    assert agreement.kl == pytest.approx(kl_by_torch(*logits), rel=1e-4)
    assert agreement.accuracy_original == np.mean((a[:, 0] > 0) == labels)
    assert agreement.accuracy_pruned == np.mean((b[:, 0] > 0) == labels)


@pytest.mark.parametrize(
    ("shape", "axis", "label_shape"),
    [
        ((6, 5, 3, 2), 1, (6, 3, 2)),
        ((6, 4, 5), 2, (6, 4)),
        ((6, 5, 4), 1, (6, 4)),
        ((6, 5, 1, 1), 1, (6,)),
        ((6, 3, 2, 3), 1, (6, 2, 3)),
        ((7, 2, 3, 5), 3, (7, 2, 3)),
    ],
)
def test_the_class_axis(shape, axis, label_shape):
    a, b = normal(*shape), normal(*shape, seed=1)
    labels = np.random.default_rng(0).integers(0, shape[axis], label_shape)
    agreement = measure_agreement(["y"], [a], [b], labels, task="classification")
    for output, accuracy in ((a, agreement.accuracy_original), (b, agreement.accuracy_pruned)):
        assert accuracy == np.mean(output.argmax(axis).reshape(label_shape) == labels)
    assert agreement.num_decisions == labels.size


def test_right_and_wrong_decisions_are_paired():
    logits = np.eye(4, dtype=np.float32)
    labels = np.array([0, 1, 3, 2])
    agreement = measure_agreement(["y"], [logits], [logits[[0, 2, 3, 3]]], labels, task="classification")
    assert (agreement.accuracy_original, agreement.accuracy_pruned) == (0.5, 0.5)
    assert (agreement.broken, agreement.repaired) == (1, 1)
    change, low, high = agreement.accuracy_change
    assert low < change == 0 < high


def test_the_classes_are_read_from_the_first_output_that_has_them():
    labels = np.array([0, 1, 1])
    probabilities = np.float32([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]])
    agreement = measure_agreement(
        ["label", "p"], [labels, probabilities], [labels, probabilities], labels, "classification"
    )
    assert agreement.accuracy_original == pytest.approx(2 / 3)


def test_regression():
    targets = normal(8, 3, seed=2)
    a, b = targets + 1, targets - 2
    agreement = measure_agreement(["y"], [a], [b], targets)
    assert agreement.rmse_original == pytest.approx(1, rel=1e-6)
    assert agreement.rmse_pruned == pytest.approx(2, rel=1e-6)
    assert measure_agreement(["y"], [a], [b]).rmse_original is None


def test_labels_and_outputs_that_do_not_fit():
    with pytest.raises(DataError, match=r"\[5\]"):
        measure_agreement(["y"], [normal(4, 3)], [normal(4, 3)], np.zeros(5, np.int64), "classification")
    with pytest.raises(DataError):
        measure_agreement(["y"], [normal(4, 3)], [normal(4, 3)], normal(4, 2))
    with pytest.raises(UsageError):
        measure_agreement(["y"], [np.zeros(4, np.int64)], [np.zeros(4, np.int64)], None, "classification")


def test_the_interval_of_a_paired_difference():
    assert paired_difference(0, 0, 10)[0] == 0
    assert paired_difference(0, 9, 9)[1] == -1
    assert paired_difference(3, 12, 100)[0] == pytest.approx(-0.09)
    low, high = paired_difference(3, 12, 100)[1:]
    assert [-value for value in paired_difference(12, 3, 100)[1:]] == pytest.approx([high, low])


def test_the_interval_covers_the_truth_in_about_95_percent():
    """Simulated: of n = 60 samples each is gained with probability 0.06 and lost with 0.14."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(4000):
        gained, lost, _ = rng.multinomial(60, [0.06, 0.14, 0.8])
        _, low, high = paired_difference(int(gained), int(lost), 60)
        covered += low <= 0.06 - 0.14 <= high
    assert 0.935 < covered / 4000 < 0.98
