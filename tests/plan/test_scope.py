import pytest
import torch

from onnx_obd.errors import UsageError
from onnx_obd.plan.scope import Pool, make_pools, parse_sparsity_of, plan_pools
from onnx_obd.records import Saliency

SCORES = {"conv": [1.0, 2.0, 3.0, 4.0], "fc.1": [0.1, 0.2], "fc.2": [0.3, 0.4]}


def plan(pools, targets, **kwargs):
    change = {name: torch.tensor(value) for name, value in SCORES.items()}
    return plan_pools(Saliency(change, "test", change), pools, targets, **kwargs)


def test_globally_the_lowest_go_wherever_they_are():
    pools = make_pools(list(SCORES), 0.5)
    assert pools == [Pool(("conv", "fc.1", "fc.2"), 0.5)]
    found = plan(pools, [0.5])
    assert found.keep["conv"].all() and not found.keep["fc.1"].any() and not found.keep["fc.2"].any()


def test_by_tensor_each_loses_its_share():
    pools = make_pools(list(SCORES), 0.5, scope="tensor")
    found = plan(pools, [pool.sparsity for pool in pools])
    assert [mask.tolist() for mask in found.keep.values()] == [[False, False, True, True], [False, True], [False, True]]
    assert found.predicted_loss_change == pytest.approx(1 + 2 + 0.1 + 0.3)


def test_named_tensors_on_their_own_terms_and_the_last_pattern_counts():
    pools = make_pools(list(SCORES), 0.25, sparsity_of={"fc*": 0.9, "fc.2": 0.0})
    assert pools == [Pool(("conv",), 0.25), Pool(("fc.1",), 0.9), Pool(("fc.2",), 0.0)]
    found = plan(pools, [pool.sparsity for pool in pools])
    assert found.deleted == 1 + 2
    assert list(found.keep) == list(SCORES)


def test_rounds_start_from_the_zeros_that_are_there_and_end_at_the_target():
    keep = {"a": torch.tensor([True, False, True, True]), "b": torch.tensor([False, False])}
    assert Pool(("a",), 0.75).targets(2, keep) == pytest.approx([1 - 0.75 * 3**-0.5, 0.75])
    assert Pool(("b",), 0.5).targets(3, keep) == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("item", ["fc*", "=0.5", "fc=1", "fc=-0.1", "fc=much", "fc=nan"])
def test_what_is_no_override(item):
    with pytest.raises(UsageError, match="PATTERN=SPARSITY"):
        parse_sparsity_of([item])


def test_overrides_are_read():
    assert parse_sparsity_of(["fc*=0.9", "a=b=0"]) == {"fc*": 0.9, "a=b": 0.0}


def test_patterns_and_scopes_that_are_not_there():
    with pytest.raises(UsageError, match="'lstm"):
        make_pools(list(SCORES), 0.5, sparsity_of={"lstm*": 0.5})
    with pytest.raises(UsageError, match=r"no scope 'row'; there are global, tensor"):
        make_pools(list(SCORES), 0.5, scope="row")
