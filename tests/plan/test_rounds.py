import pytest
import torch

from onnx_obd.plan.nm import Pattern
from onnx_obd.plan.rounds import Rounds, default_rounds
from onnx_obd.plan.scope import Pool
from onnx_obd.records import Saliency


def walk(rounds, shapes):
    """The sparsities after each round and the last masks, with scores that change from round to round."""
    generator = torch.Generator().manual_seed(1)
    keep, found = rounds.start, []
    for number in range(1, rounds.count + 1):
        scores = {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}
        plan = rounds.plan(number, Saliency(scores, "test"), keep)
        assert all(bool((plan.keep[name] <= keep[name]).all()) for name in shapes)
        keep = plan.keep
        found.append(plan.sparsity)
    return found, keep


def ones(shapes):
    return {name: torch.ones(shape, dtype=torch.bool) for name, shape in shapes.items()}


def test_pools_reach_their_own_targets():
    shapes = {"a": (10, 10), "b": (50,)}
    found, keep = walk(Rounds(3, [Pool(("a",), 0.5), Pool(("b",), 0.8)], ones(shapes)), shapes)
    assert found == sorted(found)
    assert 1 - float(keep["a"].float().mean()) == pytest.approx(0.5)
    assert 1 - float(keep["b"].float().mean()) == pytest.approx(0.8)


def test_a_pattern_holds_after_the_last_round_although_the_scores_changed():
    shapes = {"w": (6, 8, 3), "dense": (7,)}
    pattern = Pattern(2, 4)
    found, keep = walk(Rounds(4, [Pool(("w", "dense"), 0.9)], ones(shapes), pattern, {"w": 1}), shapes)
    assert found == sorted(found) and found[0] > 0
    assert pattern.violations(keep["w"].numpy(), 1) == 0
    assert float(keep["w"].float().mean()) == 0.5
    assert keep["dense"].all()


def test_rounds_become_fewer_where_they_take_long():
    assert [default_rounds(size) for size in (0, 10**9, 6 * 10**9, 10**12)] == [12, 12, 5, 3]
