"""Is the mirror the model? Compared with onnxruntime on the user's own samples, node by node where they part."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import onnx
import torch

from onnx_obd.calibration.measure import Calibration
from onnx_obd.calibration.quality import head_values
from onnx_obd.calibration.samples import Feed, Samples
from onnx_obd.errors import MirrorMismatchError, ModelError
from onnx_obd.graph.session import open_session, outputs_of
from onnx_obd.mirror.mirror import Mirror
from onnx_obd.mirror.values import to_numpy, to_torch

TOLERANCE = 1e-3
"""Largest accepted difference, relative to the largest element of the output (or 1 if that is smaller)."""

NOISE = 2.0
"""The largest of a few samples is no more certain than that."""

PRECISE = 0.1
"""A mirror that is so much nearer to itself in double precision does not lose what it differs by."""


def compare_with_onnxruntime(
    mirror: Mirror, proto: onnx.ModelProto, samples: Samples, *, tolerance: float = TOLERANCE
) -> float:
    """The largest difference between the mirror and onnxruntime over the samples.

    A difference within ``NOISE`` times the largest one on any of the samples between onnxruntime's own optimised and
    unoptimised runs counts as none: where values are rounded to integers, the order of a sum decides some of them, on
    one sample and not on the next.

    Raises:
        MirrorMismatchError: a larger one; the message names the first node at which they part.
        ModelError: onnxruntime refuses the model.
        DataError: it refuses the samples.
    """
    sessions = [open_session(proto, optimize=optimize) for optimize in (False, True)]
    names = [value.name for value in proto.graph.output]
    worst = dict.fromkeys(names, (0.0, samples.feeds[0]))
    own = dict.fromkeys(names, 0.0)
    for feed in samples.feeds:
        plain, optimised = (outputs_of(session, names, feed, samples.source) for session in sessions)
        with torch.no_grad():
            ours = mirror.evaluate(_inputs(mirror, feed))
        for name, value, expected, other in zip(names, ours, plain, optimised, strict=True):
            error = difference(to_numpy(value), expected)
            if error > worst[name][0]:
                worst[name] = error, feed
            own[name] = max(own[name], difference(other, expected))
    for name, (error, feed) in worst.items():
        if error > tolerance and error > NOISE * own[name]:
            where = first_divergence(mirror, proto, feed, tolerance)
            raise MirrorMismatchError(
                f"the mirror and onnxruntime differ by {error:.2g} in output '{name}'; {where}; "
                f"{_advice(mirror, feed, names.index(name), error)}"
            )
    return max((error for error, _ in worst.values()), default=0.0)


def _inputs(mirror: Mirror, feed: Feed) -> list[Any]:
    return [to_torch(feed.get(name)) for name in mirror.input_names]


def _advice(mirror: Mirror, feed: Feed, position: int, error: float) -> str:
    """What to do about a difference: samples of a wrong scale can be more than single precision bears."""
    inputs = _inputs(mirror, feed)
    with torch.no_grad():
        single, exact = (to_numpy(each.evaluate(inputs)[position]) for each in (mirror, deepcopy(mirror).double()))
    if difference(single, exact) > PRECISE * error:
        return "please report it"
    return (
        "in double precision the mirror says the same: if the samples are scaled as the model wants, please report it"
    )


def difference(ours: Any, theirs: Any) -> float:
    """max |a − b| / max(1, max |b|) for float arrays; 0 or infinity for anything else; infinity for unequal shapes."""
    if isinstance(theirs, (list, tuple)) or not hasattr(theirs, "dtype"):
        return 0.0  # sequences and maps: tails behind the tensors that are compared
    if ours.shape != theirs.shape:
        return float("inf")
    if theirs.dtype.kind not in "fV" and theirs.dtype.name != "bfloat16":
        return 0.0 if np.array_equal(ours, theirs) else float("inf")
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    if not a.size:
        return 0.0
    finite = np.isfinite(b)
    if not np.array_equal(finite, np.isfinite(a)):
        return float("inf")
    a, b = a[finite], b[finite]
    return float(np.abs(a - b).max() / max(1.0, np.abs(b).max())) if a.size else 0.0


def first_divergence(mirror: Mirror, proto: onnx.ModelProto, feed: dict[str, np.ndarray], tolerance: float) -> str:
    """In words: the first node of the main graph whose output differs, all values before it being equal."""
    made = {name: node for node in proto.graph.node for name in node.output if name}
    wanted = [name for name in made if name in mirror.value_names]
    try:
        session = open_session(with_outputs(proto, wanted), optimize=False)
        theirs = dict(zip(wanted, session.run(wanted, feed), strict=True))
    except (ModelError, RuntimeError):
        return "the first differing node could not be found"
    with torch.no_grad():
        ours = mirror.program.record(mirror.start(_inputs(mirror, feed)))
    for name in wanted:
        value = to_numpy(ours[mirror.slot(name)])
        if hasattr(value, "shape") and difference(value, theirs[name]) > tolerance:
            node = made[name]
            return f"they part at node '{node.name or name}' ({node.op_type}, output '{name}')"
    return "no single node differs by that much"


def with_outputs(proto: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """A copy of the model whose graph outputs are the named values."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    known = {value.name: value for value in proto.graph.output}
    del copy.graph.output[:]
    copy.graph.output.extend(known.get(name, onnx.ValueInfoProto(name=name)) for name in names)
    return copy


def onnxruntime_values(calibration: Calibration, proto: onnx.ModelProto) -> list[tuple[torch.Tensor, ...]]:
    """What the objective looks at, for every batch of the calibration, computed by onnxruntime.

    Values inside function bodies cannot be asked of onnxruntime; then the mirror's are returned.
    """
    mirror = calibration.mirror
    names = [head.value for head in calibration.objective.heads]
    if any(name not in mirror.value_names for name in names):
        return head_values(calibration)
    unique = list(dict.fromkeys(names))
    session = open_session(with_outputs(proto, unique))
    found, start = [], 0
    for batch in calibration.batches:
        if calibration.samples.batchable:
            parts = [{name: to_numpy(value) for name, value in zip(mirror.input_names, batch.inputs, strict=True)}]
        else:
            parts = calibration.samples.feeds[start : start + batch.count]
        start += batch.count
        results = [dict(zip(unique, session.run(unique, feed), strict=True)) for feed in parts]
        found.append(tuple(torch.cat([to_torch(result[name]) for result in results]) for name in names))
    return found
