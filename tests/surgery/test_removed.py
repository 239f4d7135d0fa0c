"""Removing in place is removing: the mirror at full size against the smaller model in onnxruntime."""

import numpy as np
import pytest
import torch

from onnx_obd.mirror.mirror import Mirror
from onnx_obd.mirror.values import to_torch
from onnx_obd.surgery.mask import apply_masks, snapshot
from onnx_obd.surgery.removed import restore_survivors, unit_masks
from onnx_obd.surgery.shrink import shrink
from onnx_obd.units.behind import slices_behind
from onnx_obd.units.find import find_units
from tests.surgery import networks_of_sequences  # noqa: F401  registers its networks
from tests.surgery.graphs import feeds_of
from tests.surgery.networks import NETWORKS
from tests.surgery.oracle import run, some_of_each


def removed_from(name):
    """A network, its feeds and mirror, its units, and a third of those that parameters read."""
    proto = NETWORKS[name][0]()
    feeds, mirror = feeds_of(proto), Mirror(proto)
    inputs = tuple(to_torch(feeds[value]) for value in mirror.input_names)
    units = find_units(mirror, inputs)
    known = [unit for unit in units.units if slices_behind(mirror, unit)]
    return proto, feeds, mirror, inputs, units, some_of_each(known, 0.34)


@pytest.mark.parametrize("name", NETWORKS)
def test_without_what_stands_behind_them_units_are_gone(name):
    proto, feeds, mirror, inputs, units, removed = removed_from(name)
    assert removed
    whole = mirror.evaluate(inputs)
    masks = unit_masks(mirror, removed, {})
    apply_masks(mirror, masks)
    with torch.no_grad():
        found = mirror.evaluate(inputs)
    expected = run(shrink(proto, units, removed), feeds)
    for ours, theirs, before in zip(found, expected, whole, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-3, atol=2e-5)
        assert not torch.allclose(ours, before, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("name", ["conv_batchnorm_pool", "attention", "lstm"])
def test_survivors_come_back_to_their_places(name):
    proto, _, mirror, inputs, units, removed = removed_from(name)
    smaller = Mirror(shrink(proto, units, removed))
    with torch.no_grad():
        for number, weight in enumerate(smaller.weights.values(), 1):
            weight.mul_(1 + 0.1 / number)
        expected = smaller.evaluate(inputs)
    before = snapshot(mirror)
    restore_survivors(mirror, units, removed, smaller.weights)
    masks = unit_masks(mirror, removed, {})
    assert all(torch.equal(mirror.weights[name][~mask], before[name][~mask]) for name, mask in masks.items())
    apply_masks(mirror, masks)
    with torch.no_grad():
        for ours, theirs in zip(mirror.evaluate(inputs), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_masks_are_added_to_those_that_are_given():
    _, _, mirror, _, _, removed = removed_from("mlp")
    given = {name: torch.rand(weight.shape) > 0.5 for name, weight in mirror.weights.items()}
    before = {name: mask.clone() for name, mask in given.items()}
    masks = unit_masks(mirror, removed, given)
    alone = unit_masks(mirror, removed, {})
    assert all(torch.equal(mask, before[name] & alone.get(name, True)) for name, mask in masks.items())
    assert all(torch.equal(given[name], before[name]) for name in given)
