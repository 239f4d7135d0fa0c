"""The estimated drop against the drop that drawn labels measure, its bound, and the temperature's likelihood."""

import copy
import math

import pytest
import torch

from onnx_obd.calibration import expected_drop as module
from onnx_obd.calibration.expected_drop import (
    ExpectedDrop,
    bounded_mean,
    consistent_temperature,
    costs_of_changes,
)
from onnx_obd.calibration.quality import head_values
from tests.curvature.networks import calibration, mlp


def logits(count, spread=2.0, seed=0):
    return spread * torch.randn(count, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("noise", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_it_is_the_drop_that_labels_drawn_from_the_original_show(noise, temperature):
    before = logits(4000)
    after = before + noise * logits(4000, 1.0, seed=1)
    p = (before / temperature).softmax(-1)
    labels = torch.multinomial(p, 50, replacement=True, generator=torch.Generator().manual_seed(3))
    right = [float((z.argmax(-1, keepdim=True) == labels).double().mean()) for z in (before, after)]
    costs = costs_of_changes(before, after, temperature)
    assert float(costs.mean()) == pytest.approx(right[0] - right[1], abs=0.005)
    assert (costs[before.argmax(-1) == after.argmax(-1)] == 0).all() and (costs >= 0).all()


def test_one_change_by_hand():
    before, after = torch.tensor([[3.0, 1.0, 0.0], [0.0, 2.0, 1.0]]), torch.tensor([[3.0, 4.0, 0.0], [0.0, 2.0, 1.0]])
    total = math.exp(3 / 1.5) + math.exp(1 / 1.5) + 1
    expected = (math.exp(3 / 1.5) - math.exp(1 / 1.5)) / total
    assert costs_of_changes(before, after, 1.5).tolist() == pytest.approx([expected, 0.0])


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
    drop = ExpectedDrop(samples)
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
        found.append(drop_on(ExpectedDrop(samples), samples, moved(mirror, 0.3 * scale)))
    assert found[0] == pytest.approx(found[1], rel=1e-2) and found[0] > 0


def test_what_chooses_no_class_has_no_drop():
    mirror, samples = network("squared", sizes=(6, 16, 2))
    assert drop_on(ExpectedDrop(samples), samples, mirror) is None


def test_slow_networks_get_fewer_mixtures(monkeypatch):
    _, samples = network()
    assert ExpectedDrop(samples)._mixed.num_samples == module.TIMES * samples.num_samples
    monkeypatch.setattr(module, "SECONDS", 0.0)
    assert ExpectedDrop(samples)._mixed.num_samples == samples.num_samples
