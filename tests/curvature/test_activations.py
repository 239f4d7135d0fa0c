import numpy as np
import pytest
import torch
from onnx import helper

from onnx_obd.curvature.activations import activation_saliency
from onnx_obd.errors import UsageError
from tests.curvature.networks import calibration, linear, mlp, model


def dense(found, value):
    """½ Σ h a² per index of axis 1, with h from the dense Hessian of each sample's loss in the value."""
    total = 0
    for batch in found.singles(len(found.samples)).batches:
        plan = found.mirror.plan(batch.inputs, found.objective.slots)
        start, slot = found.mirror.start(batch.inputs, plan), found.mirror.slot(value)
        a = plan.record(list(start))[slot].detach()

        def loss(v, batch=batch, plan=plan, start=start, slot=slot):
            env = list(start)
            env[slot] = v
            for step in plan.steps:
                if slot not in step.outputs:
                    for out, result in zip(step.outputs, step(*(env[s] for s in step.inputs)), strict=False):
                        env[out] = result
            return found.objective.loss([env[s] for s in found.objective.slots], batch.targets, 1)

        hessian = torch.autograd.functional.hessian(loss, a).reshape(a.numel(), a.numel())
        change = 0.5 * hessian.diagonal().reshape(a.shape) * a.square()
        total = total + change.sum([axis for axis in range(a.dim()) if axis != 1])
    return total / len(found.samples)


def test_input_variables_of_one_weighted_node():
    found, _ = calibration(linear())
    torch.testing.assert_close(activation_saliency(found, ["x"])["x"], dense(found, "x"))


def test_neurons_before_the_last_node():
    found, _ = calibration(mlp())
    torch.testing.assert_close(activation_saliency(found, ["t0"])["t0"], dense(found, "t0"))


def test_channels():
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Tanh", ["a"], ["b"]),
        helper.make_node("Flatten", ["b"], ["flat"]),
        helper.make_node("MatMul", ["flat", "v"], ["y"]),
    ]
    weights = {"w": rng.normal(size=(3, 2, 2, 2)), "v": rng.normal(size=(3 * 2 * 3, 2))}
    found, _ = calibration(model(nodes, {"x": ["N", 2, 3, 4]}, {"y": ["N", 2]}, weights))
    saliency = activation_saliency(found, ["b", "a"])
    assert saliency["b"].shape == (3,)
    torch.testing.assert_close(saliency["b"], dense(found, "b"))
    torch.testing.assert_close(saliency["a"], dense(found, "a"))


def test_what_cannot_be_judged():
    found, _ = calibration(mlp())
    with pytest.raises(UsageError, match="no value 'nowhere'"):
        activation_saliency(found, ["nowhere"])
    with pytest.raises(UsageError, match="no axis 2"):
        activation_saliency(found, ["x"], axis=2)
