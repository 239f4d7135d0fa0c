"""How often each class is the right one among samples that bear no labels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

ROUNDS, SETTLED = 1000, 1e-6
"""Rounds at most, and the change of a share in one at which they end."""


def class_prior(rows: Tensor, temperature: float) -> Tensor:
    """The share π [classes] of samples that are of each class, from logits z [samples, rows, classes].

    A network of a thousand classes that looks at ten knows nothing of that; but what it says of all samples together
    tells it. p_ic = softmax(z_i / T) supposes that all classes are equally frequent; the odds among these samples are
    q_ic in proportion to p_ic π_c, and π_c = (Σ_i q_ic + √N / C) / (N + √N) for N samples and C classes, in turn until
    they agree. The rows of one sample count as one together.

    Source: expectation maximisation, Saerens, Latinne and Decaestecker 2002; √N samples more, spread over the classes,
    as in the estimate of a multinomial with the least worst error, Steinhaus 1957.
    """
    count, classes = len(rows), rows.shape[-1]
    odds = (rows.double() / temperature).softmax(-1)
    prior = torch.full((classes,), 1 / classes, dtype=odds.dtype)
    for _ in range(ROUNDS):
        shares = odds * prior
        found = (shares / shares.sum(-1, keepdim=True)).mean(1).sum(0) + math.sqrt(count) / classes
        before, prior = prior, found / (count + math.sqrt(count))
        if float((prior - before).abs().max()) < SETTLED:
            break
    return prior
