"""Samples moved along the data and across it, so that a smaller network shows where its classes differ.

Mixtures show less: it was trained on mixtures of other samples. Each function gives every sample ``times``, one round
of all samples after the other; the inputs have to be ``mixtures.blendable``.
"""

from __future__ import annotations

import numpy as np

from onnx_obd.calibration.samples import Feed, Samples

DIFFERENCE, NOISE = 0.5, 1.0
"""The largest part of a difference of two samples, and of the standard deviation, that is added."""


def differences(samples: Samples, times: int, seed: int) -> Samples:
    """x_i + (x_j - x_k) t with random j and k, t uniform in [0, ``DIFFERENCE``]: moved as the data vary."""
    generator, count = np.random.default_rng(seed), len(samples)
    others = (np.concatenate([generator.permutation(count) for _ in range(times)]) for _ in range(2))
    drawn = list(zip(*others, generator.uniform(0, DIFFERENCE, times * count), strict=True))

    def moved(number: int, feed: Feed) -> Feed:
        j, k, t = drawn[number]
        return {n: a + (samples.feeds[j][n] - samples.feeds[k][n]) * a.dtype.type(t) for n, a in feed.items()}

    return samples.changed(times, moved, "with differences")


def noise(samples: Samples, times: int, seed: int) -> Samples:
    """x_i + t s e: s the standard deviation of each element over the samples, e normal, t uniform in [0, ``NOISE``]."""
    generator = np.random.default_rng(seed)
    spread = {name: _deviation(samples, name) for name in samples.feeds[0]}

    def moved(_: int, feed: Feed) -> Feed:
        t = generator.uniform(0, NOISE)
        return {n: (a + t * spread[n] * generator.standard_normal(a.shape)).astype(a.dtype) for n, a in feed.items()}

    return samples.changed(times, moved, "with noise")


def _deviation(samples: Samples, name: str) -> np.ndarray:
    """Of each element, one sample after the other: they need not fit in memory twice."""
    mean = sum(feed[name].astype(np.float64) for feed in samples.feeds) / len(samples)
    return np.sqrt(sum(np.square(feed[name] - mean) for feed in samples.feeds) / len(samples))
