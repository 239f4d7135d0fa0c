"""Samples made of others: what they are made of, who answers for them, and which pictures are turned round."""

import numpy as np
import pytest
import torch
from onnx import helper

from onnx_obd.recovery.composed import Composer
from onnx_obd.surgery.mask import snapshot
from tests.curvature.networks import calibration, mlp, model


def composer(proto, count=40):
    found = calibration(proto, count=count, batch_size=8)[0]
    return Composer(found.batches, found.objective, found.mirror, snapshot(found.mirror)), found


def test_they_lie_among_the_samples_and_the_teacher_answers():
    given, found = composer(mlp(sizes=(6, 16, 5)))
    generator, batch = torch.Generator().manual_seed(0), given.batches[0]
    every = torch.cat([each.inputs[0] for each in given.batches])
    drawn = [given.composed(batch, generator) for _ in range(8)]
    x = torch.stack([each.inputs[0] for each in drawn])
    assert (x >= every.min(0).values - 1e-6).all() and (x <= every.max(0).values + 1e-6).all()
    assert (x != batch.inputs[0]).any(-1).double().mean() > 0.9 and not torch.equal(x[0], x[1])
    # Of 6 elements 3/4 stay on average, and 3/4 of each of those: nearer to the sample than another one is.
    assert (x - batch.inputs[0]).norm() < 0.75 * (every[-batch.count :] - x).norm()
    found.mirror.weights["b1"].data += 1.0  # the teacher is the original, whatever has become of the mirror
    values = found.mirror.evaluate(drawn[0].inputs, outputs=found.objective.slots, weights=given.original)
    torch.testing.assert_close(drawn[0].targets, tuple(found.objective.targets(values, None)))


def pictures(shape, weight):
    nodes = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("Gemm", ["f", "w"], ["y"])]
    return model(nodes, {"x": ["N", *shape]}, {"y": ["N", 5]}, {"w": weight.reshape(-1, 5)})


@pytest.mark.parametrize(("shape", "width"), [((3, 6, 4), 2), ((6, 4, 3), 1), ((1, 6, 4), 2)])
def test_pictures_are_turned_where_the_teacher_sees_the_same(shape, width):
    weight = np.random.default_rng(0).normal(size=(*shape, 5))
    given, _ = composer(pictures(shape, weight))
    assert not given.turns
    given, _ = composer(pictures(shape, weight + np.flip(weight, width)))
    assert given.turns
    other, _ = composer(pictures(shape, weight + np.flip(weight, 3 - width if width == 1 else 1)))
    assert not other.turns


def test_what_is_no_picture_is_not_turned():
    assert not composer(mlp(sizes=(6, 16, 5)))[0].turns
    assert not composer(pictures((5, 6, 4), np.ones((5, 6, 4, 5))))[0].turns
