import itertools

import pytest
import torch

from onnx_obd.errors import UsageError
from onnx_obd.plan.elementwise import plan_elements, schedule
from onnx_obd.records import Saliency


def saliency(**scores):
    return Saliency({name: torch.tensor(value) for name, value in scores.items()}, "test")


def test_the_lowest_go_across_tensors():
    plan = plan_elements(saliency(a=[5.0, 1.0, 3.0], b=[[2.0, 4.0], [6.0, 0.5]]), 3 / 7)
    assert plan.keep["a"].tolist() == [True, False, True]
    assert plan.keep["b"].tolist() == [[False, True], [True, False]]
    assert plan.sparsity == pytest.approx(3 / 7)


@pytest.mark.parametrize("total", [7, 10, 101])
def test_equal_scores_lose_exactly_half_and_the_same_half(total):
    plans = [plan_elements(saliency(a=[2.0] * total), 0.5) for _ in range(2)]
    assert plans[0].deleted == round(0.5 * total)
    assert torch.equal(plans[0].keep["a"], plans[1].keep["a"])


def test_what_is_deleted_stays_deleted():
    keep = {"a": torch.tensor([True, True, False, True])}
    plan = plan_elements(saliency(a=[1.0, 2.0, 9.0, 3.0]), 0.5, keep)
    assert plan.keep["a"].tolist() == [False, True, False, True]
    plan = plan_elements(saliency(a=[1.0, 2.0, 9.0, 3.0]), 0.0, keep)
    assert plan.keep["a"].tolist() == keep["a"].tolist()


def test_the_prediction_counts_only_what_is_newly_deleted():
    keep = {"a": torch.tensor([True, True, False, True])}
    change = {"a": torch.tensor([0.25, 2.0, 9.0, 3.0])}
    record = Saliency({"a": torch.tensor([1.0, 2.0, 9.0, 3.0])}, "test", change)
    assert plan_elements(record, 0.5, keep).predicted_loss_change == pytest.approx(0.25)
    assert plan_elements(saliency(a=[1.0, 2.0]), 0.5).predicted_loss_change is None


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, float("nan")])
def test_sparsity_outside_the_range(sparsity):
    with pytest.raises(UsageError, match="sparsity"):
        plan_elements(saliency(a=[1.0, 2.0]), sparsity)


def test_every_round_deletes_the_same_fraction_of_what_is_left():
    steps = schedule(0.9, 4)
    densities = [1.0] + [1 - s for s in steps]
    ratios = [b / a for a, b in itertools.pairwise(densities)]
    assert steps[-1] == 0.9
    assert ratios == pytest.approx([ratios[0]] * 4)


def test_the_schedule_starts_from_zeros_that_are_there():
    steps = schedule(0.75, 2, start=0.5)
    assert steps == pytest.approx([1 - 0.5 * 0.5**0.5, 0.75])
    assert schedule(0.3, 5, start=0.5) == [0.3]
