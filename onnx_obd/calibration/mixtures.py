"""Mixtures of two samples each: many inputs that nothing was fitted to, from a few samples."""

from __future__ import annotations

import numpy as np

from onnx_obd.calibration.measure import Calibration
from onnx_obd.calibration.samples import Samples


def blendable(samples: Samples) -> bool:
    """Are all inputs floats of the same shape?"""
    shapes = {tuple((name, a.shape, a.dtype.kind) for name, a in sorted(feed.items())) for feed in samples.feeds}
    return len(shapes) == 1 and all(kind == "f" for _, _, kind in next(iter(shapes)))


def mixtures(samples: Samples, times: int, seed: int) -> Samples | None:
    """x_i (1 - t) + x_j t with t in [0, 1/2] (mixup; Zhang et al. 2018), for every i ``times`` with random j.

    None if inputs are not ``blendable``.
    """
    if not blendable(samples):
        return None
    generator, count = np.random.default_rng(seed), len(samples)
    first = np.tile(np.arange(count), times)
    second = np.concatenate([generator.permutation(count) for _ in range(times)])
    shares = generator.uniform(0, 0.5, len(first))
    feeds = [
        {
            name: (a + (samples.feeds[j][name] - a) * a.dtype.type(t)).astype(a.dtype)
            for name, a in samples.feeds[i].items()
        }
        for i, j, t in zip(first, second, shares, strict=True)
    ]
    return Samples.from_feeds(feeds, source=f"mixtures of {samples.source}", batchable=samples.batchable)


def with_mixtures(calibration: Calibration, times: int, seed: int) -> Calibration:
    """The samples and their mixtures; as it is if there are none. Only while the mirror holds the original weights.

    Of few samples the loss often hangs on one or two; their mixtures show what else may happen.
    """
    mixed = None if calibration.objective.supervised else mixtures(calibration.samples, times, seed)
    return calibration if mixed is None else calibration.with_more(mixed, "mixtures")
