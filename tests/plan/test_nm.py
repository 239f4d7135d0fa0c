import itertools
import math

import numpy as np
import pytest
import torch

from onnx_obd.errors import UsageError
from onnx_obd.plan.elementwise import plan_elements
from onnx_obd.plan.nm import Pattern, reduction_axis, restrict
from onnx_obd.records import Saliency

TWO_OF_FOUR = Pattern(2, 4)


def rand(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(len(shape)))


@pytest.mark.parametrize("text", ["2:4", " 1:4 ", "3:16"])
def test_patterns_are_read(text):
    assert str(Pattern.parse(text)) == text.strip()


@pytest.mark.parametrize("text", ["4:2", "0:4", "4:4", "2", "2:4:8", "-1:4", "half", "1:99999999999999"])
def test_what_is_no_pattern(text):
    with pytest.raises(UsageError, match="not a pattern"):
        Pattern.parse(text)


def test_the_highest_of_every_group_stay():
    scores = torch.tensor([[1.0, 4.0, 3.0, 2.0, 9.0, 9.0, 9.0, 9.0]])
    assert TWO_OF_FOUR.keep(scores, 1).tolist() == [[False, True, True, False, True, True, False, False]]


@pytest.mark.parametrize(("shape", "axis"), [((8, 3), 0), ((3, 8), 1), ((5, 4, 3, 2), 1), ((2, 3, 12), 2)])
def test_groups_lie_along_the_axis_against_plain_loops(shape, axis):
    scores = rand(*shape)
    keep = Pattern(2, 4).keep(scores, axis)
    for start in range(0, shape[axis], 4):
        for rest in itertools.product(*(range(n) for i, n in enumerate(shape) if i != axis)):
            places = [(*rest[:axis], start + i, *rest[axis:]) for i in range(4)]
            best = sorted(places, key=lambda place: -float(scores[place]))[:2]
            assert {place for place in places if keep[place]} == set(best)


def test_violations_are_counted_along_the_axis_only():
    weight = np.ones((4, 8))
    weight[:2] = 0
    assert TWO_OF_FOUR.violations(weight, 0) == 0
    assert TWO_OF_FOUR.violations(weight, 1) == 4
    weight[0, 5] = 1e-30
    assert TWO_OF_FOUR.violations(weight, 0) == 1


def test_an_axis_has_to_be_a_multiple():
    assert TWO_OF_FOUR.fits((6, 8), 1)
    assert not TWO_OF_FOUR.fits((6, 8), 0)
    assert not TWO_OF_FOUR.fits((6, 1, 3, 3), 1)


def test_any_part_of_the_way_deletes_only_what_the_pattern_will():
    saliency = Saliency({"w": rand(3, 8), "dense": torch.zeros(5)}, "test")
    keep = {name: torch.ones(s.shape, dtype=torch.bool) for name, s in saliency.scores.items()}
    restricted, sparsity = restrict(saliency, TWO_OF_FOUR, {"w": 1}, keep)
    assert sparsity == pytest.approx(12 / 29)
    final = plan_elements(restricted, sparsity, keep)
    assert torch.equal(final.keep["w"], TWO_OF_FOUR.keep(saliency.scores["w"], 1))
    assert bool(final.keep["dense"].all())
    half = plan_elements(restricted, sparsity / 2, keep)
    assert half.deleted == 6
    assert not bool((half.keep["w"] & ~final.keep["w"]).sum() == 0)
    assert bool((final.keep["w"] <= half.keep["w"]).all())


def test_zeros_from_before_count_in_their_group():
    keep = {"w": torch.tensor([[False, True, True, True]])}
    restricted, sparsity = restrict(Saliency({"w": torch.tensor([[9.0, 1, 3, 2]])}, "t"), TWO_OF_FOUR, {"w": 1}, keep)
    assert restricted.scores["w"].tolist() == [[9.0, 1.0, math.inf, math.inf]]
    assert sparsity == 0.5


def ids(*shape):
    return torch.arange(math.prod(shape)).reshape(shape)


@pytest.mark.parametrize(
    ("elements", "shape", "axis"),
    [
        (ids(6, 4, 3, 2).reshape(1, 6, 24), (6, 4, 3, 2), 1),  # Conv: outputs, channels, window
        (ids(6, 2, 3, 2).reshape(2, 3, 12), (6, 2, 3, 2), 1),  # in two groups
        (ids(6, 1, 4, 4).reshape(6, 1, 16), (6, 1, 4, 4), 1),  # depthwise: the window is not the channels
        (ids(8, 5).T[None], (8, 5), 0),  # MatMul, Gemm: [K, N]
        (ids(5, 8)[None], (5, 8), 1),  # Gemm with transB: [N, K]
        (ids(8).reshape(1, 1, 8), (8,), 0),  # MatMul with a vector
        (ids(3, 8, 5).mT, (3, 8, 5), 1),  # a batch of matrices
        (ids(4, 6, 3).permute(1, 0, 2).reshape(1, 6, 12), (4, 6, 3), 0),  # ConvTranspose: channels first
    ],
)
def test_the_axis_that_is_summed_over(elements, shape, axis):
    assert reduction_axis(elements, shape) == axis
