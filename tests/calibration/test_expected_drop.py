"""The estimated drop against the drop that drawn labels measure; the temperature against its likelihood."""

import copy
import math

import pytest
import torch

from onnx_obd.calibration.expected_drop import ExpectedDrop, consistent_temperature, drop_of_movements
from onnx_obd.calibration.quality import head_values
from tests.curvature.networks import calibration, mlp


def logits(count, spread=2.0, seed=0):
    return spread * torch.randn(count, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("noise", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_it_is_about_the_drop_that_labels_drawn_from_the_original_show(noise, temperature):
    """A change from a to b costs p_a - p_b; given that a or b is right, it is p_a + p_b times as rare."""
    before = logits(400).sort(-1, descending=True).values
    moved = noise * logits(400, 1.0, seed=1)
    p = (before / temperature).softmax(-1)
    true = float((p.max(-1).values - p.gather(-1, (before + moved).argmax(-1, keepdim=True))[:, 0]).mean())
    assert true < drop_of_movements(before, moved, temperature) < 1.8 * true


def test_one_pair_by_hand():
    ordered = torch.tensor([[3.0, 1.0, 0.0], [2.0, 0.5, 0.0]])
    moved = torch.tensor([[0.0, 3.0, 0.0], [0.0, 0.0, 0.0]])
    # The first movement lifts the second of three by 3: from 1 to 4 against 3, from 0.5 to 3.5 against 2.
    expected = (math.tanh(2.0 / 3.0) + math.tanh(1.5 / 3.0)) / 4
    assert drop_of_movements(ordered, moved, 1.5) == pytest.approx(expected)


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
    drop = ExpectedDrop(samples, samples)
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
        found.append(drop_on(ExpectedDrop(samples, samples), samples, moved(mirror, 0.3 * scale)))
    assert found[0] == pytest.approx(found[1], rel=1e-2) and found[0] > 0


def test_what_chooses_no_class_has_no_drop():
    mirror, samples = network("squared", sizes=(6, 16, 2))
    assert drop_on(ExpectedDrop(samples, samples), samples, mirror) is None
