"""The estimated shares of the classes against those that samples were drawn from, and against their likelihood."""

import math

import pytest
import torch

from onnx_obd.calibration.class_prior import class_prior


def drawn(shares, count, seed=0):
    """Samples from normal distributions, one a class; the logits of who takes all classes for equally frequent."""
    generator = torch.Generator().manual_seed(seed)
    centres = 1.5 * torch.randn((len(shares), 3), dtype=torch.float64, generator=generator)
    classes = torch.multinomial(torch.tensor(shares), count, replacement=True, generator=generator)
    x = centres[classes] + torch.randn((count, 3), dtype=torch.float64, generator=generator)
    return -(x[:, None] - centres).square().sum(-1)[:, None] / 2, classes


def test_the_shares_that_samples_were_drawn_from():
    shares = [0.6, 0.2, 0.1, 0.1, 0.0]
    rows, classes = drawn(shares, 4000)
    found = class_prior(rows, 1.0)
    said = rows[:, 0].argmax(-1).bincount(minlength=5) / 4000
    assert float(found.sum()) == pytest.approx(1)
    error = (found - torch.tensor(shares)).abs().max()
    assert error < 0.03 < (said - torch.tensor(shares)).abs().max()
    right = [(z.argmax(-1) == classes).double().mean() for z in (rows[:, 0], rows[:, 0] + found.log())]
    assert right[1] > right[0] + 0.02  # who knows the shares is right more often


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_they_are_the_likeliest(temperature):
    """With s = √N / C more of each: the derivative of Σ log Σ p π + s Σ log π is the same for all classes, N + √N."""
    rows, _ = drawn([0.5, 0.3, 0.1, 0.1], 200)
    found = class_prior(rows, temperature)
    p = (rows[:, 0] / temperature).softmax(-1)
    slopes = (p / (p @ found)[:, None]).sum(0) + math.sqrt(200) / 4 / found
    assert slopes.tolist() == pytest.approx([200 + math.sqrt(200)] * 4, rel=1e-3)


def test_who_cannot_tell_learns_nothing():
    assert class_prior(torch.zeros(30, 2, 7), 1.0).tolist() == pytest.approx([1 / 7] * 7)


def test_one_sample_of_many_rows_counts_as_one():
    """64 places of each of 20 pictures are no 1280 samples: what is unlikely stays more than 1 in a thousand."""
    rows = torch.tensor([9.0, 0.0]).repeat(20, 64, 1)
    assert class_prior(rows, 1.0).tolist() == pytest.approx(class_prior(rows[:, :1], 1.0).tolist())
    assert 0.05 < float(class_prior(rows, 1.0)[1]) < 0.15
