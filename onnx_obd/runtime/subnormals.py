"""Subnormal weights: numbers so near to zero that processors compute them many times slower.

A model with many of them gets faster when pruning happens to set them to zero, which is no merit of pruning. So they
are counted, and the original is also timed with them flushed to zero.
"""

from __future__ import annotations

import numpy as np
import onnx

from onnx_obd.graph.weights import find_weights, write_weights


def count_subnormals(proto: onnx.ModelProto) -> dict[str, int]:
    """How many elements are subnormal, for each float weight that has any, by name.

    Counted are float32, float64 and bfloat16 weights, 0 < |w| < the smallest normal number. A subnormal float16 is
    not slow: the processor computes it as a normal float32.
    """
    weights = find_weights(proto).items()
    counts = {name: int(np.count_nonzero(_subnormal(weight.read(proto)))) for name, weight in weights}
    return {name: count for name, count in counts.items() if count}


def flush_subnormals(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the model whose subnormal weights are zero of the same sign."""
    flushed = onnx.ModelProto()
    flushed.CopyFrom(proto)
    for name, weight in find_weights(proto).items():
        array = weight.read(proto)
        subnormal = _subnormal(array)
        if subnormal.any():
            write_weights(flushed, {name: np.where(subnormal, np.copysign(array.dtype.type(0), array), array)})
    return flushed


def _subnormal(array: np.ndarray) -> np.ndarray:
    """Boolean, of the shape of ``array``."""
    if array.dtype == np.float16:
        return np.zeros(array.shape, dtype=bool)
    range_of = np.float64 if array.dtype == np.float64 else np.float32  # bfloat16 has the exponents of float32
    return (array != 0) & (np.abs(array) < np.finfo(range_of).smallest_normal)
