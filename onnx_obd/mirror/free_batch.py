"""Graphs that are fixed to a batch of one, freed of that: samples run together, many times as fast as one by one.

Exporters write the batch that they were given into the shapes of Reshape nodes ([1, -1] before a classifier). The file
stays as it is; only a mirror is built from the copy made here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import onnx
import torch
from onnx import NodeProto, TensorProto, numpy_helper

from onnx_obd.mirror.mirror import Mirror


def with_free_batch(mirror: Mirror, inputs: Sequence[Any]) -> onnx.ModelProto | None:
    """The model with the first number of every constant shape of a Reshape left to the data (-1), the others as they
    come out for one sample.

    For one sample it computes the same, and so it does for several wherever the samples stay outermost. Whether that is
    everywhere is left to whoever runs several (``mirror_batch_size``).

    Args:
        inputs: one sample.

    Returns:
        A copy; None if no shape is constant.
    """
    with torch.no_grad():
        env = mirror.program.record(mirror.start(inputs))
    proto = onnx.ModelProto()
    proto.CopyFrom(mirror.proto)
    reshapes = [node for node in proto.graph.node if node.op_type == "Reshape" and node.domain in ("", "ai.onnx")]
    readers = Counter(_read(proto.graph))
    constants = dict(_constants(proto.graph))
    freed = False
    for node in reshapes:
        value = env[mirror.slot(node.output[0])] if node.output[0] in mirror.value_names else None
        if not isinstance(value, torch.Tensor) or not value.dim() or not value.numel():
            continue
        shape = [-1, *value.shape[1:]]
        if len(node.input) == 1:  # before opset 5
            own = next(attribute for attribute in node.attribute if attribute.name == "shape")
            own.ints[:], freed = shape, True
        elif node.input[1] in constants and readers[node.input[1]] == 1:
            constants[node.input[1]].CopyFrom(numpy_helper.from_array(torch.tensor(shape).numpy(), node.input[1]))
            freed = True
    return proto if freed else None


def _read(graph: onnx.GraphProto) -> Iterator[str]:
    """Names as often as they are read, in subgraphs too or as outputs."""
    yield from (value.name for value in graph.output)
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from _read(inner)


def _constants(graph: onnx.GraphProto) -> Iterator[tuple[str, TensorProto]]:
    yield from ((tensor.name, tensor) for tensor in graph.initializer)
    yield from ((node.output[0], tensor) for node in graph.node for tensor in _held(node))


def _held(node: NodeProto) -> Iterator[TensorProto]:
    if node.op_type == "Constant":
        yield from (attribute.t for attribute in node.attribute if attribute.name == "value")
