"""The test of truth for shrinking: with the consumers' weights of the removed units zeroed, original and shrunk model
agree in onnxruntime."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence

import numpy as np
import onnx
import onnxruntime as ort

from onnx_obd.graph.weights import holder
from onnx_obd.surgery.shrink import read_stored, replace_tensor
from onnx_obd.units.find import Unit


def zero_consumers(proto: onnx.ModelProto, removed: Collection[Unit]) -> onnx.ModelProto:
    """The model with zeros wherever a stored tensor is summed over an index that goes.

    Where a unit is summed over between two activations (a dimension of queries and keys) there is no such tensor: then
    all that the unit has is zeroed.
    """
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    pieces = defaultdict(list)
    for unit in removed:
        for piece in unit.slices:
            if piece.summed or unit.paired:
                pieces[piece.path].append(piece)
    for path, own in pieces.items():  # each tensor once: protobuf keeps what is replaced
        target = holder(result, path)
        array = np.array(read_stored(target))
        for piece in own:
            array[(slice(None),) * piece.axis + (list(piece.indices),)] = 0
        replace_tensor(target, array)
    return result


def run(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def some_of_each(units: Sequence[Unit], share: float, seed: int = 0) -> list[Unit]:
    """That share of every family, at random, one at least staying."""
    generator, families = np.random.default_rng(seed), {}
    for unit in units:
        families.setdefault(unit.family, []).append(unit)
    found = []
    for members in families.values():
        count = min(len(members) - 1, max(1, round(share * len(members))))
        found += [members[i] for i in sorted(generator.choice(len(members), count, replace=False))]
    return found
