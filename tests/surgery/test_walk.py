"""A walk gives what running the graph from its inputs gives, wherever it stands and whatever was changed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import helper

from onnx_obd.surgery import walk as module
from onnx_obd.surgery.mask import snapshot
from onnx_obd.surgery.walk import Walk
from tests.curvature.networks import calibration, model


def residual():
    """Two products, one by a transposed weight, around a sum with the input."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Transpose", ["w"], ["t"], name="turn"),
        helper.make_node("MatMul", ["x", "v"], ["a"], name="first"),
        helper.make_node("Tanh", ["a"], ["h"], name="tanh"),
        helper.make_node("MatMul", ["h", "t"], ["b"], name="second"),
        helper.make_node("Add", ["b", "x"], ["y"], name="sum"),
    ]
    weights = {"v": rng.normal(size=(4, 5)), "w": rng.normal(size=(4, 5))}
    return model(nodes, {"x": ["N", 4]}, {"y": ["N", 4]}, weights)


@pytest.fixture(params=["held", "not held"])
def found(request, monkeypatch):
    if request.param == "not held":
        monkeypatch.setattr(module, "SHARE", 0.0)
    return calibration(residual(), count=7, batch_size=3)[0]


def at(walk, slots, before):
    return [torch.cat(values) for values in zip(*walk.values(slots, before), strict=True)]


def anew(found, names, weights=None):
    runs = [found.mirror.evaluate(batch.inputs, outputs=names, weights=weights) for batch in found.batches]
    return [torch.cat(values) for values in zip(*runs, strict=True)]


def test_values_on_the_way_are_those_of_a_run(found):
    mirror = found.mirror
    a, b, x, h = (mirror.slot(name) for name in ("a", "b", "x", "h"))
    walk = Walk(found)
    torch.testing.assert_close(at(walk, [x], a), anew(found, ["x"]), rtol=0, atol=0)
    torch.testing.assert_close(at(walk, [h, x], b), anew(found, ["h", "x"]), rtol=0, atol=0)
    torch.testing.assert_close(at(walk, [x], a), anew(found, ["x"]), rtol=0, atol=0)  # and back again
    assert walk.loss(b) == walk.loss() == found.loss()


def test_a_walk_with_other_weights(found):
    other = {name: 2 * value for name, value in snapshot(found.mirror).items()}
    walk = Walk(found, other)
    torch.testing.assert_close(
        at(walk, [found.mirror.slot("h")], found.mirror.slot("b")), anew(found, ["h"], other), rtol=0, atol=0
    )
    assert torch.equal(walk.weight("v"), other["v"])


@pytest.mark.parametrize("name", ["v", "w"])
def test_what_was_made_of_changed_weights_is_made_anew(found, name):
    """The transposed weight was made before the walk came to it; of the other one data were made."""
    mirror, b = found.mirror, found.mirror.slot("b")
    walk = Walk(found)
    before = walk.loss(b)
    with torch.no_grad():
        mirror.weights[name].mul_(1.5)
    walk.changed([name])
    assert walk.loss(b) == found.loss() != before
    torch.testing.assert_close(at(walk, [mirror.slot("h")], b), anew(found, ["h"]), rtol=0, atol=0)
