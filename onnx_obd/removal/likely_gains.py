"""What removing units is likely to gain, from what the clock says and from the work that goes with them.

Of many gains measured with an error, those that look largest are so by luck in part: who picks them finds that they
were not there (the winner's curse). So each is drawn towards what the work that goes would explain, by as much as the
errors of the clock account for what that leaves unexplained. Where the clock is sure, nothing changes.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np


def likely_gains(measured: np.ndarray, error: float, work: np.ndarray) -> np.ndarray:
    """E[gain | measured]: explained + (measured - explained) τ² / (τ² + error²).

    ``explained`` is the work times the non-negative prices at which it explains most of what was measured, and τ² the
    mean square of the gains around that, without what the error adds to it.

    Source: empirical Bayes, Efron and Morris 1973, "Stein's estimation rule and its competitors"; towards a regression
    as in Fay and Herriot 1979.

    Args:
        measured: gains [n], in any unit.
        error: their standard error, in the same unit.
        work: kinds of work that go with each, [n, kinds].
    """
    explained, prices = _explained(measured, work)
    free = len(measured) - prices
    if not prices or free < 1:
        return measured
    unexplained = float(((measured - explained) ** 2).sum()) / free
    kept = max(0.0, 1 - error**2 / unexplained) if unexplained else 0.0
    return explained + kept * (measured - explained)


def _explained(measured: np.ndarray, work: np.ndarray) -> tuple[np.ndarray, int]:
    """The least-squares fit with non-negative prices, and how many of them are not 0: the best of all subsets."""
    best, least = (np.zeros_like(measured), 0), np.inf
    for count in range(1, work.shape[1] + 1):
        for chosen in combinations(range(work.shape[1]), count):
            prices, *_ = np.linalg.lstsq(work[:, chosen], measured, rcond=None)
            fit = work[:, chosen] @ prices
            error = float(((measured - fit) ** 2).sum())
            if (prices > 0).all() and error < least:
                best, least = (fit, count), error
    return best
