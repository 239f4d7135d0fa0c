"""Tensors spared because that was measured to be better."""

from __future__ import annotations

import pytest
import torch

from onnx_obd.guard import guarded, loss_after
from onnx_obd.plan.elementwise import plan_elements
from onnx_obd.records import Saliency
from onnx_obd.surgery.mask import snapshot
from tests.curvature.networks import calibration, mlp


@pytest.fixture
def found():
    return calibration(mlp(sizes=(6, 8, 7, 3)), count=40, batch_size=8)[0]


def scores(found, scales):
    """Squared weights, each tensor's by a factor: right within a tensor, between tensors wrong on purpose."""
    weights = {name: found.mirror.weights[name].detach() for name in scales}
    return Saliency({name: scales[name] * weight.square() for name, weight in weights.items()}, "made up")


def plan_of(saliency):
    return plan_elements(saliency, 0.4)


def test_a_tensor_that_would_be_emptied_is_spared(found):
    before = snapshot(found.mirror)
    wrong = scores(found, {"w0": 1.0, "w1": 1.0, "w2": 1e-6})
    assert not plan_of(wrong).keep["w2"].any()
    right = guarded(found, found, wrong, plan_of)
    assert plan_of(right).keep["w2"].all()
    assert plan_of(right).sparsity == plan_of(wrong).sparsity
    assert loss_after(found, plan_of(right).keep) < 0.5 * loss_after(found, plan_of(wrong).keep)
    assert all(torch.equal(found.mirror.weights[name], value) for name, value in before.items())


def test_what_the_other_samples_do_not_confirm_is_not_done(found):
    """On samples of which the objective sees nothing but zeros no plan is better than another."""
    wrong = scores(found, {"w0": 1.0, "w1": 1.0, "w2": 1e-6})
    blind = found.on(found.mirror)
    blind.loss = lambda: 0.0
    assert guarded(found, blind, wrong, plan_of) is wrong


def test_scores_that_are_right_stay():
    """The exact rise of the loss for each weight alone, of a single node, whose inputs are nearly independent."""
    single = calibration(mlp(sizes=(6, 3)), count=200, batch_size=8)[0]
    x = torch.cat([batch.inputs[0] for batch in single.batches])
    right = Saliency({"w0": x.square().mean(0)[:, None] * single.mirror.weights["w0"].detach().square()}, "exact")
    assert guarded(single, single, right, plan_of) is right


def test_a_loss_that_is_not_finite_is_infinite(found):
    before = snapshot(found.mirror)
    with torch.no_grad():
        found.mirror.weights["b2"].fill_(float("nan"))
    assert loss_after(found, {"w0": before["w0"] != 0}) == float("inf")
    assert torch.equal(found.mirror.weights["w0"], before["w0"])
