"""The estimated drop against the drop that drawn labels measure, its bound, and the temperature's likelihood."""

import copy
import math

import numpy as np
import pytest
import torch
from onnx import helper

from onnx_obd.calibration import expected_drop as module
from onnx_obd.calibration.class_prior import class_prior
from onnx_obd.calibration.expected_drop import (
    ExpectedDrop,
    bounded_mean,
    consistent_temperature,
    costs_of_changes,
    tilted,
)
from onnx_obd.calibration.measure import Calibration
from onnx_obd.calibration.objective import choose_objective
from onnx_obd.calibration.quality import head_values
from onnx_obd.calibration.samples import Samples
from onnx_obd.mirror.mirror import Mirror
from tests.curvature.networks import calibration, mlp, model, pictures_of

EQUAL = [0.25] * 4


def expected_drop(unseen, others=None):
    return ExpectedDrop(unseen, others or unseen, pictures_of(unseen))


def logits(count, spread=2.0, seed=0):
    return spread * torch.randn(count, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("noise", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("shares", [EQUAL, [0.7, 0.1, 0.1, 0.1]])
def test_it_is_the_drop_that_labels_drawn_from_the_odds_show(noise, temperature, shares):
    before = logits(4000)
    after = before + noise * logits(4000, 1.0, seed=1)
    prior = torch.tensor(shares, dtype=torch.float64)
    p = (before / temperature + prior.log()).softmax(-1)
    labels = torch.multinomial(p, 50, replacement=True, generator=torch.Generator().manual_seed(3))
    right = [float((z.argmax(-1, keepdim=True) == labels).double().mean()) for z in (before, after)]
    costs = costs_of_changes(before, after, temperature, prior)
    assert float(costs.mean()) == pytest.approx(right[0] - right[1], abs=0.005)
    assert (costs[before.argmax(-1) == after.argmax(-1)] == 0).all() and (costs >= 0).all() == (shares == EQUAL)


def test_one_change_by_hand():
    before, after = torch.tensor([[3.0, 1.0, 0.0], [0.0, 2.0, 1.0]]), torch.tensor([[3.0, 4.0, 0.0], [0.0, 2.0, 1.0]])
    total = math.exp(3 / 1.5) + math.exp(1 / 1.5) + 1
    expected = (math.exp(3 / 1.5) - math.exp(1 / 1.5)) / total
    assert costs_of_changes(before, after, 1.5, torch.ones(3)).tolist() == pytest.approx([expected, 0.0])

    gain = math.exp(3 / 1.5) * 0.1 - math.exp(1 / 1.5) * 0.8
    total = math.exp(3 / 1.5) * 0.1 + math.exp(1 / 1.5) * 0.8 + 0.1
    found = costs_of_changes(before, after, 1.5, torch.tensor([0.1, 0.8, 0.1]))
    assert found.tolist() == pytest.approx([gain / total, 0.0]) and gain < 0


def test_it_goes_by_the_shares_of_classes_among_all_samples():
    _, samples = network()
    half = [samples.samples.subset(range(start, 40, 2)) for start in (0, 1)]
    parts = [Calibration(samples.mirror, samples.objective, part, 8) for part in half]
    drop = expected_drop(*parts)
    rows = torch.cat([drop._rows(part, head_values(part)) for part in reversed(parts)])
    assert drop.prior.tolist() == pytest.approx(class_prior(rows, drop.temperature).tolist())


def test_so_many_bounds_hold_as_normally_distributed_values_would():
    generator = torch.Generator().manual_seed(0)
    draws = (torch.rand((2000, 64), generator=generator, dtype=torch.float64) < 0.3).double()
    held = sum(bounded_mean(row) >= 0.3 for row in draws) / len(draws)
    assert 0.80 < held < 0.88
    assert bounded_mean(torch.zeros(5)) == 0 and bounded_mean(torch.tensor([0.2])) == pytest.approx(0.2)


def test_the_temperature_is_the_likeliest():
    classes = torch.randint(4, (60,), generator=torch.Generator().manual_seed(2))
    rows = logits(60) + 3 * torch.nn.functional.one_hot(classes, 4)
    found = consistent_temperature(rows, classes)
    grid = found * torch.linspace(0.9, 1.1, 41, dtype=torch.float64)
    losses = [float(torch.nn.functional.cross_entropy(rows / t, classes)) for t in grid]
    assert abs(losses.index(min(losses)) - 20) <= 1
    assert consistent_temperature(7 * rows, classes) == pytest.approx(7 * found, rel=2e-3)


@pytest.mark.parametrize("wanted", [0.85, 0.7, 0.5])
def test_the_weights_go_part_of_the_way_to_the_sureness_wanted(monkeypatch, wanted):
    sure = torch.tensor([0.4, 0.5, 0.9, 1.0], dtype=torch.float64)
    found = []
    for part in (0.0, 0.75, 1.0):
        monkeypatch.setattr(module, "TILT", part)
        weights = tilted(sure, wanted)
        assert float(weights.mean()) == pytest.approx(1)
        found.append((float((weights * sure).mean()), weights.log().diff() / sure.diff()))
    (own, _), (way, slopes), (there, steepest) = found
    assert own == pytest.approx(float(sure.mean())) and there == pytest.approx(wanted, abs=1e-3)
    assert min(own, there) - 1e-3 <= way <= max(own, there) + 1e-3
    assert slopes.tolist() == pytest.approx((0.75 * steepest).tolist(), abs=1e-6)  # exp(part b s)
    assert steepest.tolist() == pytest.approx([float(steepest[0])] * 3, abs=1e-6)


def test_where_all_are_as_sure_all_count_the_same():
    assert tilted(torch.ones(5), 0.9).tolist() == [1.0] * 5


def test_tilted_corruptions_show_the_drop_of_surer_samples(monkeypatch):
    """Samples from a density that is an exponential tilt of another's: the weights take the mean from one to the other.

    Margins m in [0, 6], sureness s = 1 / (1 + exp(-m)), natural density in proportion to exp(3 s), corrupted uniform.
    """
    monkeypatch.setattr(module, "TILT", 1.0)
    margins = torch.linspace(0, 6, 4001, dtype=torch.float64)
    sure = margins.sigmoid()
    natural = (3 * sure).exp() / (3 * sure).exp().sum()
    cost = (2 * sure - 1) * (-margins).exp()  # changes become rarer with the margin
    weights = tilted(sure, float((natural * sure).sum()))
    assert float((weights * cost).mean()) == pytest.approx(float((natural * cost).sum()), rel=1e-3)
    assert float(cost.mean()) > 1.2 * float((natural * cost).sum())


def network(kind="kl", sizes=(6, 16, 4)):
    found, _ = calibration(mlp(sizes=sizes), count=40, kind=kind, batch_size=8)
    return found.mirror, found


def moved(mirror, amount):
    other = copy.deepcopy(mirror)
    with torch.no_grad():
        weight = other.weights["w1"]
        weight += amount * torch.randn(weight.shape, dtype=weight.dtype, generator=torch.Generator().manual_seed(0))
    return other


def drop_on(drop, samples, mirror):
    return drop.of(mirror, head_values(samples.on(mirror)))


@pytest.mark.parametrize("kind", ["kl", "squared"])
def test_nothing_moved_nothing_dropped_and_more_is_more(kind):
    """Outputs that are no logits have a temperature too."""
    mirror, samples = network(kind)
    drop = expected_drop(samples)
    assert drop_on(drop, samples, mirror) == 0
    found = [drop_on(drop, samples, moved(mirror, amount)) for amount in (0.05, 0.3, 2.0)]
    assert 0 < found[0] < found[1] < found[2] <= 1


def test_the_scale_of_the_outputs_does_not_matter():
    found = []
    for scale in (1.0, 50.0):
        mirror, samples = network("squared")
        with torch.no_grad():
            for name in ("w1", "b1"):
                mirror.weights[name] *= scale
        found.append(drop_on(expected_drop(samples), samples, moved(mirror, 0.3 * scale)))
    assert found[0] == pytest.approx(found[1], rel=1e-2) and found[0] > 0


def test_what_chooses_no_class_has_no_drop():
    mirror, samples = network("squared", sizes=(6, 16, 2))
    assert drop_on(expected_drop(samples), samples, mirror) is None


def test_slow_networks_get_fewer_corruptions(monkeypatch):
    _, samples = network()
    for seconds, times in ((1e9, module.TIMES), (0.0, 1)):
        monkeypatch.setattr(module, "SECONDS", seconds)
        parts = expected_drop(samples)._parts
        assert [part.num_samples for part in parts] == [40, times * 40, times * 40]


def looking(smooth):
    """A linear classifier of blobs [N, 1, 12, 12], with smooth weights or with rough ones."""
    rng = np.random.default_rng(0)
    down, across = np.indices((12, 12))
    feeds = []
    for _ in range(20):
        y, x = rng.uniform(5, 7, 2)
        blob = rng.uniform(0.2, 1) * np.exp(-((down - y) ** 2 + (across - x) ** 2) / 8)
        feeds.append({"x": blob.astype(np.float32)[None, None]})
    weight = rng.normal(size=(1, 5)).repeat(144, 0) if smooth else rng.normal(size=(144, 5))
    nodes = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["y"])]
    mirror = Mirror(model(nodes, {"x": ["N", 1, 12, 12]}, {"y": ["N", 5]}, {"w": weight})).double()
    samples = Samples.from_feeds(feeds, source="test", batchable=True)
    objective = choose_objective(mirror, [[torch.ones(1, 1, 12, 12)]], None, kind="kl")
    return Calibration(mirror, objective, samples, 4)


def test_pictures_are_warped_where_the_original_sees_the_same_in_them():
    """Warps keep within the range of each picture; differences of others and noise do not."""
    for smooth in (True, False):
        found = looking(smooth)
        parts = expected_drop(found)._parts
        within = []
        for part in parts[1:]:
            assert len(part.samples) == module.TIMES * len(found.samples)
            pairs = list(zip(part.samples.feeds, module.TIMES * list(found.samples.feeds), strict=True))
            assert np.mean([np.array_equal(a["x"], b["x"]) for a, b in pairs]) < 0.2  # some differences are 0
            within.append(all(a["x"].min() >= b["x"].min() and a["x"].max() <= b["x"].max() for a, b in pairs))
        assert within == [smooth, False]


def test_others_of_another_shape_are_left_out():
    """How sure the original is can then be told of the held-back samples alone."""
    nodes = [helper.make_node("ReduceMean", ["x"], ["m"], axes=[1]), helper.make_node("MatMul", ["m", "w"], ["y"])]
    weights = {"w": np.random.default_rng(0).normal(size=(3, 4))}
    mirror = Mirror(model(nodes, {"x": [1, "L", 3]}, {"y": [1, 4]}, weights)).double()
    parts = [
        Samples.from_feeds(
            [{"x": x} for x in np.random.default_rng(length).normal(size=(9, 1, length, 3)).astype(np.float32)],
            source="test",
            batchable=False,
        )
        for length in (2, 5)
    ]
    objective = choose_objective(mirror, [[torch.ones(1, 2, 3)]], None, kind="kl")
    short, long = (Calibration(mirror, objective, part, 1) for part in parts)
    found, alone = expected_drop(short, long), expected_drop(short)
    assert found.temperature > 0 and len(found._before) == (1 + 2 * module.TIMES) * 9 == len(alone._before)
