"""How far the logits of an objective are divided before they become probabilities."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

HIGHEST = 1e9
"""Of a temperature. A row of one class, or with all others at minus infinity, is as sure at any."""


def spread(rows: Sequence[Tensor], centred: bool = True) -> float:
    """The root mean square of logits about the mean of their row; each of ``rows`` is [n, classes].

    As the temperature it makes the objective independent of the scale of the logits: a network trained on confident
    data, or on inputs of 0 to 255, has none of its curvature hidden in the flat parts of the softmax.
    """
    z = torch.cat([row.double() for row in rows])
    z = z - z.mean(-1, keepdim=True) if centred else z
    return max(float(z.square().mean().sqrt()), 1e-6)


def spoken_for(count: int) -> float:
    """What N samples, all right, speak for of all: (N + 1) / (N + 2), Laplace's rule of succession."""
    return (count + 1) / (count + 2)


def supported(rows: Sequence[Tensor]) -> float:
    """The least T, 1 or more, at which the network is no surer than so many samples can tell.

    At T the mean over the rows of max softmax(z / T) is at most what they speak for (``spoken_for``). With labels T = 1
    is the loss of the paper; a network that puts out probabilities of exactly 0 and 1 has no curvature there, and every
    saliency would be zero.
    """
    z = torch.cat([row.double() for row in rows])
    most = spoken_for(len(z))

    def sure(temperature: float) -> bool:
        return float((z / temperature).softmax(-1).max(-1).values.mean()) > most

    high = 1.0
    while sure(high) and high < HIGHEST:
        high *= 2
    return bracket(sure, high / 2, high)[1] if high > 1 else 1.0


def bracket(too_low: Callable[[float], bool], low: float, high: float) -> tuple[float, float]:
    """By bisection, where ``too_low`` goes from true to false between two temperatures, to a thousandth of it."""
    while high > low * math.exp(1e-3):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if too_low(middle) else (low, middle)
    return low, high
