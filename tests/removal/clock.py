"""A clock that runs by the numbers of weights, so that what the search does is the same on every machine."""

import math

import onnx

from onnx_obd.records import Interval, Latency
from onnx_obd.removal import frontier, time_of_sizes

FIXED = 1000
"""The time of a model without weights."""


def microseconds(proto: onnx.ModelProto) -> float:
    return FIXED + sum(math.prod(tensor.dims) for tensor in proto.graph.initializer)


def run_by_weights(monkeypatch, time=microseconds) -> list[tuple[int, float]]:
    """Replace the clock; returns a list that will tell how many variants were timed at a time and for how long each."""
    timed: list[tuple[int, float]] = []

    def latency(original, pruned, samples, *, batch=1, threads=1, provider="", seconds=1.0):
        a, b = time(original) / 1e3, time(pruned) / 1e3
        return Latency(Interval(a, a, a), Interval(b, b, b), Interval(a / b, a / b, a / b), threads, batch, 1)

    def variants(reference, makes, feed, *, threads=1, provider="", seconds_each=0.1, progress=None):
        timed.append((len(makes), seconds_each))
        return time(reference), [time(make()) for make in makes], 0.0

    monkeypatch.setattr(frontier, "measure_latency", latency)
    monkeypatch.setattr(time_of_sizes, "time_variants", variants)
    return timed
