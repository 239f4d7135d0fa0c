"""The surgeon on one node under squared error, where the quadratic model is exact."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from onnx_obd.curvature import estimate_curvature
from onnx_obd.surgery import least_squares, surgeon
from onnx_obd.surgery.mask import apply_masks, restore, snapshot
from onnx_obd.surgery.operands import find_operands
from onnx_obd.surgery.surgeon import compensating_updates, surgeon_curvature
from tests.curvature.networks import calibration, linear, mlp


@pytest.fixture
def undamped(monkeypatch):
    monkeypatch.setattr(surgeon, "DAMPING", 0.0)
    for function in (least_squares.inverse_diagonal, least_squares.solve_supported):
        monkeypatch.setattr(surgeon, function.__name__, partial(function, ridge=0.0))


def deleted_one_by_one(found, operands, original):
    """The loss after each weight of w0 is deleted and the others of its output are refitted."""
    losses = torch.zeros_like(original["w0"])
    for index in range(original["w0"].numel()):
        restore(found.mirror, original)
        keep = torch.ones(original["w0"].numel(), dtype=torch.bool)
        keep[index] = False
        apply_masks(found.mirror, {"w0": keep.reshape(original["w0"].shape)})
        (update,) = compensating_updates(found, operands, original).values()
        assert float(update.reshape(-1)[index]) == 0
        with torch.no_grad():
            found.mirror.weights["w0"] += update
        losses.reshape(-1)[index] = found.loss()
    restore(found.mirror, original)
    return losses


def test_the_saliency_is_the_loss_after_deletion_and_update(undamped):
    """Hassibi and Stork's equation 5: s_q is what remains of the loss when the others make up for w_q."""
    found, _ = calibration(linear(), count=30, batch_size=8)
    original = snapshot(found.mirror)
    operands, _ = find_operands(found.mirror, found.batches[0], ["w0"])
    h = estimate_curvature("lecun", found, found, ["w0"]).diag
    curvature = surgeon_curvature(found, operands, h)["w0"]
    saliency = 0.5 * curvature * original["w0"].square()
    torch.testing.assert_close(saliency, deleted_one_by_one(found, operands, original))
    assert (curvature < h["w0"]).all()  # making up for it never costs more


def test_deleted_weights_stay_deleted_and_the_update_helps():
    found, _ = calibration(linear(), count=30, batch_size=8)
    before = snapshot(found.mirror)
    operands, _ = find_operands(found.mirror, found.batches[0], ["w0"])
    apply_masks(found.mirror, {"w0": torch.arange(12).reshape(4, 3) % 5 != 1})
    (update,) = compensating_updates(found, operands, before).values()
    loss = found.loss()
    assert (update[found.mirror.weights["w0"] == 0] == 0).all()
    with torch.no_grad():
        found.mirror.weights["w0"] += update
    assert found.loss() < loss


@pytest.mark.parametrize(("work", "columns"), [(1e9, 256), (176 * 50**2, 50), (0, 16)])
def test_blocks_are_as_wide_as_the_work_allows(monkeypatch, work, columns):
    """176 weights: 176 / b inverses of b³ multiplications."""
    found, _ = calibration(mlp(sizes=(6, 16, 5)), count=8, batch_size=8)
    operands, _ = find_operands(found.mirror, found.batches[0], ["w0", "w1"])
    monkeypatch.setattr(surgeon, "WORK", work)
    assert surgeon.block_size(operands) == columns
