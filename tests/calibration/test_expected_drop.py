"""The estimated drop against the drop that drawn labels measure."""

import math

import pytest
import torch

from onnx_obd.calibration.expected_drop import expected_drop
from onnx_obd.calibration.heads import ProbabilityHead, SigmoidHead, SoftmaxHead, SquaredHead


def logits(count, spread=2.0, seed=0):
    return spread * torch.randn(count, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


SOFTMAX = SoftmaxHead("y", 0, lambda z: z.reshape(-1, z.shape[-1]), 1.0)


def drop(head, now, before):
    return expected_drop(head, [(now[:3],), (now[3:],)], [(before[:3],), (before[3:],)])


@pytest.mark.parametrize("noise", [0.3, 1.0, 3.0])
def test_it_is_about_the_drop_that_labels_drawn_from_the_original_show(noise):
    """A change from a to b costs p_a - p_b; given that a or b is right, it is p_a + p_b times as rare."""
    before = logits(400)
    now = before + noise * logits(400, 1.0, seed=1)
    p = before.softmax(-1)
    true = float((p.max(-1).values - p.gather(-1, now.argmax(-1, keepdim=True))[:, 0]).mean())
    found = drop(SOFTMAX, now, before)
    assert true < found < 1.6 * true


def test_one_pair_by_hand():
    before = torch.tensor([[0.0, 1.0, 3.0], [2.0, 0.5, 0.0]])
    now = before + torch.tensor([[0.0, 3.0, 0.0], [0.0, 0.0, 0.0]])
    # The first movement lifts the second of three by 3: from 1 to 4 against 3, from 0.5 to 3.5 against 2.
    expected = (math.tanh(1.0) + math.tanh(0.75)) / 4
    assert expected_drop(SOFTMAX, [(now,)], [(before,)]) == pytest.approx(expected)


def test_nothing_moved_nothing_dropped_and_a_common_shift_is_nothing():
    before = logits(20)
    assert drop(SOFTMAX, before, before) == 0
    assert drop(SOFTMAX, before + 5, before) == 0


def test_probabilities_are_as_good_as_logits():
    before, now = logits(20), logits(20, seed=1)
    head = ProbabilityHead("y", 0, 1.0)
    found = drop(head, now.softmax(-1), before.softmax(-1))
    assert found == pytest.approx(drop(SOFTMAX, now, before), rel=1e-3)


def test_without_odds_every_change_counts():
    before, head = logits(20), SquaredHead("y", 0, 1.0)
    now = before.scatter(-1, before.argmax(-1, keepdim=True), -1e3)
    assert drop(head, now, before) == 1
    assert drop(head, before, before) == 0


def test_what_chooses_no_class_has_no_drop():
    before = logits(20)
    assert drop(SigmoidHead("y", 0, 1.0), before, before) is None
    assert drop(SquaredHead("y", 0, 1.0), before[:, :2], before[:, :2]) is None
