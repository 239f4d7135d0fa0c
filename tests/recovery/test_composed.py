"""Samples made of others: what they are made of, who answers for them, and which pictures are turned round."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from onnx import helper

from onnx_obd.recovery import composed
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
    drawn = [given.answered(batch, given.composed(batch, generator)) for _ in range(8)]
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
    assert not given.pictures.turn
    given, _ = composer(pictures(shape, weight + np.flip(weight, width)))
    assert given.pictures.turn
    other, _ = composer(pictures(shape, weight + np.flip(weight, 3 - width if width == 1 else 1)))
    assert not other.pictures.turn


def test_what_is_no_picture_is_not_turned():
    assert not composer(mlp(sizes=(6, 16, 5)))[0].pictures.turn
    assert not composer(pictures((5, 6, 4), np.ones((5, 6, 4, 5))))[0].pictures.turn


def test_half_of_the_batches_are_warped_where_that_means_the_same():
    """Of a picture of one colour with a spot a warp keeps the colours; a mixture with others does not."""
    weight = np.random.default_rng(0).normal(size=5) * np.ones((1, 12, 12, 5))
    given, _ = composer(pictures((1, 12, 12), weight))
    assert given.pictures.warp
    spot = torch.zeros_like(given.batches[0].inputs[0])
    spot[:, :, 5:7, 4:6] = 50.0
    batch = replace(given.batches[0], inputs=(spot,))
    drawn = [given.composed(batch, torch.Generator().manual_seed(seed))[0] for seed in range(60)]
    only = [x for x in drawn if (x >= 0).all() and (x[..., 0, 0] == 0).all()]
    assert 20 <= len(only) <= 40
    assert all((x != spot).any() for x in only)
    rough, _ = composer(pictures((1, 12, 12), np.random.default_rng(0).normal(size=(1, 12, 12, 5))))
    assert not rough.pictures.warp


def test_disputed_samples_are_those_the_two_disagree_on():
    given, found = composer(mlp(sizes=(6, 16, 5)))
    student = copy.deepcopy(found.mirror)
    generator, batch = torch.Generator().manual_seed(0), given.batches[0]
    same = given.disputed(batch.inputs, batch.count, student, generator)
    torch.testing.assert_close(same, batch.inputs)
    student.weights["w0"].data[:, ::2] = 0.0
    losses = torch.zeros(2)
    for _ in range(8):
        near = given.composed(batch, generator)
        far = given.disputed(near, batch.count, student, generator)
        distance = (far[0] - near[0]).square().mean(1).sqrt() / near[0].std(1, correction=0)
        assert (0 < distance).all() and (distance <= composed.FAR).all() and distance.std() > 0
        for i, inputs in enumerate((near, far)):
            each = given.answered(batch, inputs)
            with torch.no_grad():
                values = student.evaluate(each.inputs, outputs=found.objective.slots)
            losses[i] += float(found.objective.loss(values, each.targets, each.count))
    assert losses[1] > 1.2 * losses[0]
    assert all(weight.grad is None for weight in student.parameters())


def test_the_teacher_counts_for_the_direction():
    """Against finite differences: where both outputs move alike, the loss does not change."""
    given, found = composer(mlp(sizes=(6, 5)))
    student = copy.deepcopy(found.mirror)
    student.weights["b0"].data[0] += 1.0  # the difference of the outputs is the same everywhere
    batch = given.batches[0]
    (moved,) = given.disputed(batch.inputs, batch.count, student, torch.Generator().manual_seed(0))
    torch.testing.assert_close(moved, batch.inputs[0])
